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

func (c *cli) serviceCmd() *cobra.Command {
	type row = serviceRow
	key := func(r row) (id, name string) { return string(r.ID), r.Name }
	ls := list[row]{
		short: "List services: BACKENDS are those that get new connections, of all",
		id:    func(r row) string { return string(r.ID) },
		columns: []column[row]{
			idColumn("ID", func(r row) string { return string(r.ID) }),
			text("NAME", func(r row) string { return r.Name }),
			text("NETWORK", func(r row) string { return r.Network }),
			text("MODE", func(r row) string { return string(r.Mode) }),
			text("VIP", func(r row) string { return listed(r.VIPs) }),
			text("PORTS", func(r row) string { return listed(r.Ports) }),
			text("BACKENDS", usedBackends),
			text("PUBLISHED", func(r row) string { return listed(r.Publish) }),
		},
		filters: map[string]matcher[row]{
			"id":      prefix(func(r row) string { return string(r.ID) }),
			"name":    part(func(r row) string { return r.Name }),
			"label":   labelled(func(r row) map[string]string { return r.Labels }),
			"network": named(func(r row) (id, name string) { return string(r.NetworkID), r.Network }),
			"service": named(key),
			"node": func(r row, v string) bool {
				return slices.ContainsFunc(r.Backends, func(b overlay.BackendRow) bool { return named(backendNode)(b, v) })
			},
		},
	}
	lsCmd := ls.command(c, func(ctx context.Context, cl *local.Client) ([]row, error) {
		all, err := cl.Services(ctx)
		rows := make([]row, len(all))
		for i, s := range all {
			rows[i] = newServiceRow(s)
		}
		return rows, err
	})
	inspect := inspectCmd(c, "SERVICE", "Show services as JSON, with what is behind them: by ID, NAME or NETWORK/NAME", func(ctx context.Context, cl *local.Client, ref string) ([]row, error) {
		s, err := cl.Service(ctx, ref)
		return one(newServiceRow(s), err)
	})
	inspect.Args = serviceRefs(inspect.Args)
	ps := c.servicePs()
	staleable(lsCmd, inspect, ps)
	return c.group("service", "Manage services: names and addresses that stand for several workloads",
		c.serviceCreate(), lsCmd, inspect, ps, c.serviceUpdate(), c.serviceRm())
}

// serviceFilter finds what has to do with a service, in other things' lists.
type serviceFilter struct{ all []overlay.ServiceRow }

// load is what the filter needs before it is used.
func (f *serviceFilter) load(ctx context.Context, cl *local.Client) (err error) {
	f.all, err = cl.Services(ctx)
	return err
}

// any says whether a service of this name, or whose ID begins so, has to do with it.
func (f *serviceFilter) any(v string, has func(overlay.ServiceRow) bool) bool {
	return slices.ContainsFunc(f.all, func(s overlay.ServiceRow) bool {
		return named(func(s overlay.ServiceRow) (id, name string) { return string(s.ID), s.Name })(s, v) && has(s)
	})
}

// anyBackend is any for what is behind the service.
func (f *serviceFilter) anyBackend(v string, is func(overlay.BackendRow) bool) bool {
	return f.any(v, func(s overlay.ServiceRow) bool { return slices.ContainsFunc(s.Backends, is) })
}

// serviceRefs checks each argument's form too: what a path can't hold would name something else.
func serviceRefs(count cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := count(cmd, args); err != nil {
			return err
		}
		for _, ref := range args {
			network, name, qualified := strings.Cut(ref, "/")
			if !qualified {
				network, name = "", ref
			} else if err := overlay.ValidateName("network", network); err != nil {
				return usage(cmd, err)
			}
			if err := overlay.ValidateName("service", name); err != nil {
				return usage(cmd, err)
			}
		}
		return nil
	}
}

func usedBackends(r serviceRow) string {
	used := 0
	for _, b := range r.Backends {
		if b.Used {
			used++
		}
	}
	return fmt.Sprintf("%d/%d", used, len(r.Backends))
}

func backendNode(b overlay.BackendRow) (id, name string) { return string(b.NodeID), b.Node }

// servicePs lists what is behind a service, and why it is in use or not.
func (c *cli) servicePs() *cobra.Command {
	type row = overlay.BackendRow
	ls := list[row]{
		short: "List what is behind a service, and why it gets connections or not",
		id:    func(r row) string { return string(r.Endpoint) },
		columns: []column[row]{
			text("WORKLOAD", func(r row) string { return r.Workload }),
			text("NODE", func(r row) string { return r.Node }),
			text("ADDRESS", func(r row) string { return listed(r.IPs) }),
			text("STATE", backendState),
			text("SINCE", func(r row) string {
				if r.Since.IsZero() {
					return "-"
				}
				return c.since(r.Since)
			}),
			text("DETAIL", func(r row) string { return cmp.Or(r.Detail, "-") }),
			text("CONNECTIONS", func(r row) string { return strconv.FormatUint(r.Connections, 10) }),
		},
		filters: map[string]matcher[row]{
			"id":   prefix(func(r row) string { return string(r.Endpoint) }),
			"name": part(func(r row) string { return r.Workload }),
			"node": named(backendNode),
		},
	}
	cmd := ls.verb(c, func(ctx context.Context, cl *local.Client, args []string) ([]row, error) {
		s, err := cl.Service(ctx, args[0])
		return s.Backends, err
	})
	cmd.Use, cmd.Args = "ps SERVICE", serviceRefs(oneArg("SERVICE"))
	cmd.Long = "List what is behind a service, and why it gets connections or not: used, starting (its\n" +
		"probes have not succeeded yet), unhealthy (they fail), leaving (it is being detached), draining\n" +
		"(its node is) or suspended (its node does not answer; used all the same when all others are out).\n" +
		"CONNECTIONS is how many connections and UDP flows the workloads that are on the node that answers\n" +
		"have begun to it by the service's addresses, since the rules for it were written there last."
	return cmd
}

func backendState(r overlay.BackendRow) string {
	switch {
	case r.Out == "":
		return "used"
	case r.Used: // the last resort
		return r.Out + ", used"
	}
	return r.Out
}

func (c *cli) serviceRm() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm SERVICE...", Aliases: []string{"remove"}, Short: "Remove services; what is behind them stays attached", Args: serviceRefs(someArgs("SERVICE")),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.askAll(cmd, args, func(ctx context.Context, cl *local.Client, ref string) error {
			err := cl.RemoveService(ctx, ref)
			if err == nil {
				c.printf("%s\n", ref)
			}
			return err
		})
	}
	return cmd
}
