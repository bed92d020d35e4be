package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

func (c *cli) networkCmd() *cobra.Command {
	type row = overlay.NetworkRow
	var services serviceFilter
	ls := list[row]{
		short: "List networks",
		id:    func(r row) string { return string(r.ID) },
		columns: []column[row]{
			idColumn("ID", func(r row) string { return string(r.ID) }),
			text("NAME", func(r row) string { return r.Name }),
			text("DRIVER", func(r row) string { return r.Driver }),
			text("SCOPE", func(r row) string { return r.Scope }),
			text("VNI", func(r row) string {
				if r.VNI == 0 { // of a driver that has none
					return "-"
				}
				return strconv.FormatUint(uint64(r.VNI), 10)
			}),
			text("SUBNETS", func(r row) string { return cmp.Or(strings.Join(subnets(r), ", "), "-") }),
			text("IN USE", inUse),
		},
		filters: map[string]matcher[row]{
			"id":      prefix(func(r row) string { return string(r.ID) }),
			"name":    part(func(r row) string { return r.Name }),
			"network": named(func(r row) (id, name string) { return string(r.ID), r.Name }),
			"driver":  exact(func(r row) string { return r.Driver }),
			"scope":   exact(func(r row) string { return r.Scope }),
			"label":   labelled(func(r row) map[string]string { return r.Labels }),
			"service": func(r row, v string) bool {
				return services.any(v, func(s overlay.ServiceRow) bool { return s.NetworkID == r.ID })
			},
			"node": func(r row, v string) bool {
				return slices.ContainsFunc(r.Participants, func(p overlay.ParticipantRow) bool {
					return named(func(p overlay.ParticipantRow) (id, name string) { return string(p.Node), p.Name })(p, v)
				})
			},
		},
		before: map[string]func(context.Context, *local.Client) error{"service": services.load},
	}
	lsCmd := ls.command(c, func(ctx context.Context, cl *local.Client) ([]row, error) { return cl.Networks(ctx) })
	inspect := inspectCmd(c, "NETWORK", "Show networks as JSON", func(ctx context.Context, cl *local.Client, ref string) ([]row, error) {
		return one(cl.Network(ctx, ref))
	})
	staleable(lsCmd, inspect)
	return c.group("network", "Manage networks", c.networkCreate(), lsCmd, inspect, c.networkUpdate(), c.networkConnect(), c.networkDisconnect(), c.networkRm(), c.networkPrune())
}

func subnets(r overlay.NetworkRow) (s []string) {
	for _, cfg := range r.IPAM.Config {
		s = append(s, cfg.Subnet.String())
	}
	return s
}

// inUse shows how many addresses of the network's first family are in use, of how many.
func inUse(r overlay.NetworkRow) string {
	if len(r.IPAM.Config) == 0 {
		return "-"
	}
	var used, all uint64
	for _, cfg := range r.IPAM.Config {
		if cfg.Subnet.Addr().BitLen() == r.IPAM.Config[0].Subnet.Addr().BitLen() {
			used += cfg.InUse
			all = max(all, all+cfg.Addresses) // more than fits is more than anybody counts
		}
	}
	if all > 1<<32 {
		return strconv.FormatUint(used, 10)
	}
	return fmt.Sprintf("%d of %d", used, all)
}

func (c *cli) networkRm() *cobra.Command {
	cmd := &cobra.Command{Use: "rm NETWORK...", Aliases: []string{"remove"}, Short: "Remove networks that nothing is attached to", Args: someArgs("NETWORK")}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.askAll(cmd, args, func(ctx context.Context, cl *local.Client, ref string) error {
			err := cl.RemoveNetwork(ctx, ref)
			if err == nil {
				c.printf("%s\n", ref)
			}
			return err
		})
	}
	return cmd
}
