package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

func (c *cli) statusCmd() *cobra.Command {
	var f format
	cmd := &cobra.Command{Use: "status", Short: "Show this node as it sees itself and the others; needs no manager", Args: noArgs}
	parsed(cmd.Flags(), &f, "format", "json|TEMPLATE", "print JSON, or by a Go template", parseFormat)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (overlay.Status, error) { return cl.Status(ctx) })
		switch {
		case err != nil:
			return err
		case f.json:
			return printJSON(c.out, s)
		case f.tmpl != nil:
			return printRows(cmd, f, []overlay.Status{s})
		}
		return c.printStatus(s)
	}
	return cmd
}

// printStatus prints what is there: a heading and a table for each.
func (c *cli) printStatus(s overlay.Status) error {
	if !s.Member && s.Cluster != "" {
		c.printf("%s was removed from cluster %s\n", s.Name, shorten(s.Cluster))
		c.problems(s)
		return nil
	}
	if !s.Member {
		c.printf("%s is in no cluster; `heddle init` makes one, `heddle join` brings it into one\n", s.Name)
		c.problems(s)
		return section(c, "endpoints of this node", endpointRows(s.Endpoints), endpointColumns...)
	}
	c.printf("node       %s (%s), %s, %s\n", s.Name, s.Node.Short(), s.Role, s.Addr)
	c.printf("data path  %s\n", s.DataPath)
	c.printf("cluster    %s, revision %d, %s\n", shorten(s.Cluster), s.Revision, following(s.Managers))
	c.printf("here       networks: %d, endpoints: %d, heddle %s\n", s.Networks, len(s.Endpoints), s.Version)
	c.problems(s)
	return errors.Join(
		section(c, "ports", s.Ports,
			text("PORT", func(p overlay.PortStatus) string { return strconv.Itoa(int(p.Port)) + "/" + p.Proto }),
			text("USE", func(p overlay.PortStatus) string { return p.Use })),
		section(c, "managers", s.Managers,
			text("NAME", func(m overlay.ManagerStatus) string { return m.Name }),
			text("ADDRESS", func(m overlay.ManagerStatus) string { return m.Addr }),
			text("STATE", managerState)),
		section(c, "peers", s.Peers,
			text("NAME", func(p overlay.PeerStatus) string { return p.Name }),
			text("ID", func(p overlay.PeerStatus) string { return p.Node.Short() }),
			text("ADDRESS", func(p overlay.PeerStatus) string { return p.Addr }),
			text("STATE", func(p overlay.PeerStatus) string {
				if p.Suspended.IsZero() {
					return p.State
				}
				return p.State + ", suspended " + c.since(p.Suspended)
			}),
			text("LAST PROBE", func(p overlay.PeerStatus) string { return c.since(p.LastProbe) }),
			text("RTT", func(p overlay.PeerStatus) string { return rtt(p.RTT) })),
		section(c, "endpoints of this node", endpointRows(s.Endpoints), endpointColumns...),
		section(c, "counters", slices.Sorted(maps.Keys(s.Counters)),
			text("WHAT", func(k string) string { return k }),
			text("COUNT", func(k string) string { return strconv.FormatUint(s.Counters[k], 10) })))
}

func (c *cli) problems(s overlay.Status) {
	for i, p := range s.Problems {
		if i == 0 {
			c.printf("\nproblems\n")
		}
		c.printf("  %s\n", p)
	}
}

// section prints a titled table, or nothing where there are no rows.
func section[T any](c *cli, title string, rows []T, columns ...column[T]) error {
	if len(rows) == 0 {
		return nil
	}
	c.printf("\n%s\n", title)
	return printTable(c.out, rows, columns, shorten)
}

// following says where this node has its facts from.
func following(managers []overlay.ManagerStatus) string {
	for _, m := range managers {
		if m.Following {
			return fmt.Sprintf("follows %s (%s)", m.Name, m.Addr)
		}
	}
	return "no manager answers: what is attached goes on, and so do attach and detach inside the leases"
}

func managerState(m overlay.ManagerStatus) string {
	var s []string
	if m.Leader {
		s = append(s, "leader")
	}
	if m.Following {
		s = append(s, "followed")
	}
	if m.Error != "" {
		s = append(s, m.Error)
	}
	if len(s) == 0 {
		return "-"
	}
	return strings.Join(s, ", ")
}

func rtt(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return d.Round(10 * time.Microsecond).String()
}
