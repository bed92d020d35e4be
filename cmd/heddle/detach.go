package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay/local"
)

func (c *cli) detachCmd() *cobra.Command {
	var r local.DetachRequest
	cmd := &cobra.Command{Use: "detach NAME", Short: "Take a workload off its networks", Args: oneArg("NAME")}
	parsed(cmd.Flags(), &r.Network, "network", "network", "network to leave, by name or ID; default all", nonEmpty)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r.Name = args[0]
		_, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (none, error) { return none{}, cl.Detach(ctx, r) })
		if err == nil {
			c.printf("%s\n", r.Name)
		}
		return err
	}
	return cmd
}
