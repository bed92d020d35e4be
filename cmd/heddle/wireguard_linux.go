package main

import (
	"context"
	"log/slog"

	"github.com/heddle-net/heddle/datapath/wireguard"
)

func runWireGuard(ctx context.Context, log *slog.Logger) error { return wireguard.Run(ctx, log) }
