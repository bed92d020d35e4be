package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

func nodeKey(r overlay.NodeRow) (id, name string) { return string(r.ID), r.Name }

func (c *cli) nodeCmd() *cobra.Command {
	var services serviceFilter
	ls := list[overlay.NodeRow]{
		short: "List the cluster's nodes; * is this one",
		id:    func(r overlay.NodeRow) string { return string(r.ID) },
		columns: []column[overlay.NodeRow]{
			{"ID", func(r overlay.NodeRow, id func(string) string) string {
				if r.Self {
					return id(string(r.ID)) + " *"
				}
				return id(string(r.ID))
			}},
			text("NAME", func(r overlay.NodeRow) string { return r.Name }),
			text("ADDR", func(r overlay.NodeRow) string { return r.Addr }),
			text("ROLE", func(r overlay.NodeRow) string { return string(r.Role) }),
			text("STATUS", func(r overlay.NodeRow) string { return r.Status }),
			text("AVAILABILITY", func(r overlay.NodeRow) string { return string(r.Availability) }),
			text("MANAGER STATUS", func(r overlay.NodeRow) string { return r.ManagerStatus }),
			text("VERSION", func(r overlay.NodeRow) string { return r.Version }),
		},
		filters: map[string]matcher[overlay.NodeRow]{
			"id":   prefix(func(r overlay.NodeRow) string { return string(r.ID) }),
			"name": part(func(r overlay.NodeRow) string { return r.Name }),
			"node": named(nodeKey),
			"service": func(r overlay.NodeRow, v string) bool {
				return services.anyBackend(v, func(b overlay.BackendRow) bool { return b.NodeID == r.ID })
			},
		},
		before: map[string]func(context.Context, *local.Client) error{"service": services.load},
	}
	lsCmd := ls.command(c, func(ctx context.Context, cl *local.Client) ([]overlay.NodeRow, error) { return cl.Nodes(ctx) })
	inspect := inspectCmd(c, "NODE", "Show nodes as JSON", func(ctx context.Context, cl *local.Client, ref string) ([]overlay.NodeRow, error) {
		all, err := cl.Nodes(ctx)
		if err != nil {
			return nil, err
		}
		return one(overlay.Find("node", ref, all, nodeKey))
	})
	staleable(lsCmd, inspect)
	return c.group("node", "Manage the nodes of the cluster", lsCmd, inspect,
		c.nodeRole("promote", "Make managers of workers", overlay.Manager),
		c.nodeRole("demote", "Make workers of managers", overlay.Worker),
		c.nodeUpdate(), c.nodeRm())
}

func (c *cli) nodeRole(name, short string, role overlay.Role) *cobra.Command {
	cmd := &cobra.Command{Use: name + " NODE...", Short: short, Args: someArgs("NODE")}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.askAll(cmd, args, func(ctx context.Context, cl *local.Client, ref string) error {
			row, err := cl.UpdateNode(ctx, ref, overlay.NodeUpdate{Role: role})
			if err == nil {
				c.printf("%s is a %s\n", row.Name, row.Role)
			}
			return err
		})
	}
	return cmd
}

func (c *cli) nodeUpdate() *cobra.Command {
	var u overlay.NodeUpdate
	cmd := &cobra.Command{
		Use: "update NODE", Short: "Change what a node is given to do", Args: oneArg("NODE"),
		Long: "Change what a node is given to do. pause: nothing can be attached. drain: its endpoints\n" +
			"leave names and service addresses too. Neither touches endpoints that run.",
	}
	parsed(cmd.Flags(), &u.Availability, "availability", "active|pause|drain", "what the node is given", parseAvailability)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if u == (overlay.NodeUpdate{}) {
			return usagef(cmd, "node update changes nothing without --availability")
		}
		row, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (overlay.NodeRow, error) {
			return cl.UpdateNode(ctx, args[0], u)
		})
		if err == nil {
			c.printf("%s has availability %s\n", row.Name, row.Availability)
		}
		return err
	}
	return cmd
}

func (c *cli) nodeRm() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NODE...", Aliases: []string{"remove"}, Short: "Remove nodes for good", Args: someArgs("NODE"),
		Long: "Remove nodes for good: each is refused from then on, and its addresses are given to\n" +
			"others. A node that is up leaves by `heddle leave` on it, or is removed with --force.",
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove a node that is up, or that not all others know to be removed")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.askAll(cmd, args, func(ctx context.Context, cl *local.Client, ref string) error {
			err := cl.RemoveNode(ctx, ref, force)
			if err == nil {
				c.printf("%s\n", ref)
			}
			return err
		})
	}
	return cmd
}
