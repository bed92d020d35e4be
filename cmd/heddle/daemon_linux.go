package main

import (
	"context"
	"log/slog"

	"github.com/heddle-net/heddle/cmd/heddle/daemon"
)

// mayRun refuses where the daemon can't work, before it reads anything.
func mayRun() error { return daemon.Privileged() }

func runDaemon(ctx context.Context, cfg daemon.Config, log *slog.Logger) error {
	return daemon.Run(ctx, cfg, thisVersion().Version, log)
}
