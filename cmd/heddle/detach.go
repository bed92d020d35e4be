package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

func (c *cli) detachCmd() *cobra.Command {
	var r overlay.DetachRequest
	cmd := &cobra.Command{
		Use: "detach NAME", Short: "Take a workload off its networks", Args: oneArg("NAME"),
		Long: "Take a workload off its networks. What is in a service leaves first: when the other nodes send\n" +
			"it nothing new, its connections have a grace, and it goes when the last of them has ended. A\n" +
			"second detach with a shorter grace cuts that short.",
	}
	parsed(cmd.Flags(), &r.Network, "network", "network", "network to leave, by name or ID; default all", nonEmpty)
	addGrace(cmd, &r.Grace)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r.Name = args[0]
		err := c.detach(cmd, r)
		if err == nil {
			c.printf("%s\n", r.Name)
		}
		return err
	}
	return cmd
}

func addGrace(cmd *cobra.Command, to **time.Duration) {
	parsed(cmd.Flags(), to, "grace", "time", "how long connections of what is in a service may last; 0 for none, default 10s", func(option, s string) (*time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil {
			return nil, overlay.Errorf(overlay.Invalid, "%s %q is no time; write it as 30s or 2m", option, s)
		}
		return &d, overlay.DetachRequest{Grace: &d}.Validate()
	})
}

// detach takes a workload off, and tells who may still send to it.
func (c *cli) detach(cmd *cobra.Command, r overlay.DetachRequest) error {
	reply, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (overlay.DetachReply, error) { return cl.Detach(ctx, r) })
	for _, node := range reply.Silent {
		c.note("warning: node %s has not acknowledged in time that %s leaves; it may have sent it new connections", node, r.Name)
	}
	return err
}
