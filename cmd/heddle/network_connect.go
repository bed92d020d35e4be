package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
)

func (c *cli) networkConnect() *cobra.Command {
	var f attachFlags
	cmd := &cobra.Command{
		Use: "connect NETWORK NAME", Short: "Give a workload of this node a further network", Args: twoArgs("NETWORK", "NAME"),
		Example: "  heddle network connect green web --gw-priority 1",
	}
	f.addPlace(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f.r.Network, f.r.Connect = args[0], true
		r, err := f.request(cmd, args[1])
		if err != nil {
			return err
		}
		e, err := c.attach(cmd, r)
		if err == nil {
			c.printf("%s\n", endpointLine(e))
		}
		return err
	}
	return cmd
}

func (c *cli) networkDisconnect() *cobra.Command {
	var force bool
	var grace *time.Duration
	cmd := &cobra.Command{Use: "disconnect NETWORK NAME", Short: "Take a workload of this node off a network", Args: twoArgs("NETWORK", "NAME")}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "no error if it is not there")
	addGrace(cmd, &grace)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := c.detach(cmd, overlay.DetachRequest{Name: args[1], Network: args[0], Grace: grace})
		if force && overlay.KindOf(err) == overlay.NotFound {
			err = nil
		}
		if err == nil {
			c.printf("%s\n", args[1])
		}
		return err
	}
	return cmd
}
