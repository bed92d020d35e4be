package main

import (
	"log/slog"

	"github.com/spf13/cobra"
)

func (c *cli) wireguardCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "wireguard DEVICE", Short: "Carry a WireGuard device's packets where the kernel has none", Args: oneArg("DEVICE"), Hidden: true,
		Long: "Carry the packets of a WireGuard device of encrypted networks. The daemon starts it, once for each\n" +
			"device, where the kernel has no WireGuard; it outlives the daemon and ends with its device.",
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return runWireGuard(cmd.Context(), slog.New(slog.NewTextHandler(c.err, nil)))
	}
	return cmd
}
