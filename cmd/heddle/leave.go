package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay/local"
)

func (c *cli) leaveCmd() *cobra.Command {
	var r local.LeaveRequest
	cmd := &cobra.Command{
		Use: "leave", Short: "Take this node out of its cluster", Args: noArgs,
		Long: "Take this node out of its cluster: its leases are freed and its networks torn down.\n" +
			"A manager is demoted first. The last manager, and a node with workloads attached, stay\n" +
			"unless --force is given.",
	}
	cmd.Flags().BoolVarP(&r.Force, "force", "f", false, "leave although workloads are attached, no manager answers, or it is the last manager")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		_, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (none, error) { return none{}, cl.Leave(ctx, r) })
		if err == nil {
			c.printf("This node has left the cluster.\n")
		}
		return err
	}
	return cmd
}
