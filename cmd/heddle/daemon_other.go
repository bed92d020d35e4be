//go:build !linux

package main

import (
	"context"
	"log/slog"

	"github.com/heddle-net/heddle/cmd/heddle/daemon"
	"github.com/heddle-net/heddle/overlay"
)

func runDaemon(context.Context, daemon.Config, *slog.Logger) error { return notLinux("daemon") }

// mayRun leaves the word to runDaemon.
func mayRun() error { return nil }

func examineHost(string) (overlay.Diagnosis, error) { return overlay.Diagnosis{}, notLinux("doctor") }
