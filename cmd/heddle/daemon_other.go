//go:build !linux

package main

import (
	"context"
	"log/slog"

	"github.com/heddle-net/heddle/cmd/heddle/daemon"
)

func runDaemon(context.Context, daemon.Config, *slog.Logger) error { return notLinux("daemon") }

// mayRun leaves the word to runDaemon.
func mayRun() error { return nil }
