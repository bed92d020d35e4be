package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay/local"
)

func (c *cli) keyCmd() *cobra.Command {
	rotate := &cobra.Command{
		Use: "rotate", Short: "Replace this node's WireGuard keys", Args: noArgs,
		Long: "Replace this node's WireGuard keys, one after the other, while traffic goes by the other: no\n" +
			"packet is lost, and no manager is needed. Every node does so by itself every seven days.",
	}
	rotate.RunE = func(cmd *cobra.Command, _ []string) error {
		_, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (none, error) { return none{}, cl.RotateKeys(ctx) })
		if err == nil {
			c.printf("the WireGuard keys of this node are new\n")
		}
		return err
	}
	return c.group("key", "Manage this node's keys", rotate)
}
