//go:build !linux

package main

import (
	"context"
	"log/slog"
)

func runWireGuard(context.Context, *slog.Logger) error { return notLinux("wireguard") }
