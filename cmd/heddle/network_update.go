package main

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

func (c *cli) networkUpdate() *cobra.Command {
	var f createFlags
	var drop []string
	cmd := &cobra.Command{
		Use: "update NETWORK", Short: "Change a network's labels, or add subnets to it", Args: oneArg("NETWORK"),
		Long: "Change a network's labels, or add subnets to it. Endpoints that stand keep their addresses;\n" +
			"later ones get theirs from the first subnet that has one.",
		Example: "  heddle network update blue --label team=a --label-rm old\n  heddle network update blue --subnet 10.21.0.0/16",
	}
	fs := cmd.Flags()
	repeated(fs, &f.labels, "label", "key=value", "label to set", parseLabel)
	repeated(fs, &drop, "label-rm", "key", "label to take away", nonEmpty)
	f.addressFlags(fs)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		spec := overlay.NetworkSpec{}
		if err := f.place(&spec); err != nil {
			return usage(cmd, err)
		}
		u := overlay.NetworkUpdate{Labels: toMap(f.labels), DropLabels: drop, Subnets: spec.Subnets}
		if len(u.Labels)+len(u.DropLabels)+len(u.Subnets) == 0 {
			return usagef(cmd, "network update changes nothing without --label, --label-rm or --subnet")
		}
		row, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (overlay.NetworkRow, error) {
			return cl.UpdateNetwork(ctx, args[0], u)
		})
		if err != nil {
			return err
		}
		c.printf("%s\n", row.Name)
		for _, n := range row.Notes {
			c.note("note: %s", n)
		}
		return nil
	}
	return cmd
}

// networkPrune removes what nothing is attached to. What is attached to in between stays, since
// the managers look again.
func (c *cli) networkPrune() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove all networks that nothing is attached to", Args: noArgs,
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		rows, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) ([]overlay.NetworkRow, error) { return cl.Networks(ctx) })
		if err != nil {
			return err
		}
		var idle []string
		for _, r := range rows {
			if len(r.Endpoints) == 0 {
				idle = append(idle, r.Name)
			}
		}
		if len(idle) == 0 {
			return nil
		}
		if !force {
			yes, err := c.agreed(fmt.Sprintf("Remove the networks that nothing is attached to (%s)?", strings.Join(idle, ", ")))
			if err != nil || !yes {
				return err
			}
		}
		return c.askAll(cmd, idle, func(ctx context.Context, cl *local.Client, name string) error {
			err := cl.RemoveNetwork(ctx, name)
			if err == nil {
				c.printf("%s\n", name)
			}
			return err
		})
	}
	return cmd
}

// agreed asks on stderr and reads the answer; the end of the input is a no.
func (c *cli) agreed(question string) (bool, error) {
	fmt.Fprintf(c.err, "heddle: %s [y/N] ", question)
	line, _ := bufio.NewReader(c.in).ReadString('\n')
	if line == "" {
		fmt.Fprintln(c.err)
		return false, fmt.Errorf("nothing was removed: there was no answer; add --force where nobody can be asked")
	}
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes", nil
}

func (c *cli) updateCmd() *cobra.Command {
	var u overlay.ClusterUpdate
	cmd := &cobra.Command{Use: "update", Short: "Change the cluster's settings", Args: noArgs}
	repeated(cmd.Flags(), &u.AddPools, "default-addr-pool", "cidr", "pool to add to those that networks get subnets from", overlay.ParsePrefix)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(u.AddPools) == 0 {
			return usagef(cmd, "update changes nothing without --default-addr-pool")
		}
		p, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (overlay.Params, error) { return cl.UpdateCluster(ctx, u) })
		if err == nil {
			c.printf("networks get subnets from %s\n", joinPrefixes(p.Pools))
		}
		return err
	}
	return cmd
}

func joinPrefixes(all []netip.Prefix) string {
	var s []string
	for _, p := range all {
		s = append(s, p.String())
	}
	return strings.Join(s, ", ")
}
