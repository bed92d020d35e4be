package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

func (c *cli) resolveCmd() *cobra.Command {
	var r overlay.ResolveRequest
	cmd := &cobra.Command{
		Use: "resolve NAME --network NETWORK", Short: "Print the addresses of a name in a network", Args: oneArg("NAME"),
		Long: "Print what workloads of a network find by a name, one address a line: a workload's name or\n" +
			"alias, a service's, or tasks.SERVICE for all that is in rotation behind it. The node answers from\n" +
			"what it knows itself; it asks no manager.",
		Example:               "  heddle resolve web --network blue",
		DisableFlagsInUseLine: true,
	}
	parsed(cmd.Flags(), &r.Network, "network", "network", "network to look in, by name or ID", nonEmpty)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if r.Name = args[0]; r.Network == "" {
			return usagef(cmd, "resolve %s in which network? add --network N", r.Name)
		}
		reply, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (overlay.ResolveReply, error) { return cl.Resolve(ctx, r) })
		for _, a := range reply.Addrs {
			c.printf("%s\n", a)
		}
		return err
	}
	return cmd
}
