package main

import (
	"context"
	"log/slog"

	"github.com/heddle-net/heddle/cmd/heddle/daemon"
	"github.com/heddle-net/heddle/overlay"
)

// mayRun refuses where the daemon can't work, before it reads anything.
func mayRun() error { return daemon.Privileged() }

func runDaemon(ctx context.Context, cfg daemon.Config, log *slog.Logger) error {
	return daemon.Run(ctx, cfg, thisVersion().Version, log)
}

// examineHost is what can be said of a host without its daemon, and why that is.
func examineHost(why string) (overlay.Diagnosis, error) {
	return daemon.ExamineHost(thisVersion().Version, why)
}
