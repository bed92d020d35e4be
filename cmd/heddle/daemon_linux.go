package main

import (
	"context"
	"log/slog"

	"github.com/heddle-net/heddle/cmd/heddle/daemon"
)

func runDaemon(ctx context.Context, cfg daemon.Config, log *slog.Logger) error {
	return daemon.Run(ctx, cfg, thisVersion().Version, log)
}
