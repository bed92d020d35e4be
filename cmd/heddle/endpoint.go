package main

import (
	"cmp"
	"context"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

// endpointRow is an endpoint under the names that its JSON has, so that templates use them too.
type endpointRow struct {
	ID        overlay.EndpointID
	Name      string
	Node      string
	NodeID    overlay.NodeID
	Network   string
	NetworkID overlay.NetworkID
	IPv4      string // with the prefix length, or "" without one
	IPv6      string
	MAC       overlay.MAC
	State     overlay.EndpointState
	Health    string            `json:",omitempty"` // "" where nobody probes it; the cause behind a colon
	Interface string            `json:",omitempty"`
	Namespace string            `json:",omitempty"`
	Publish   []publishRow      `json:",omitempty"` // on its own node alone
	Aliases   []string          `json:",omitempty"`
	Service   string            `json:",omitempty"`
	Labels    map[string]string `json:",omitempty"`
}

func endpointRows(all []overlay.Endpoint) []endpointRow {
	rows := make([]endpointRow, len(all))
	for i, e := range all {
		rows[i] = endpointRow{
			ID: e.ID, Name: e.Name, Node: e.NodeName, NodeID: e.Node, Network: e.NetworkName, NetworkID: e.NetworkID,
			IPv4: address(e.IPv4), IPv6: address(e.IPv6), MAC: e.MAC, State: e.State, Interface: e.Interface, Namespace: e.Namespace,
			Aliases: e.Aliases, Service: e.Service, Labels: e.Labels, Health: e.Health,
			Publish: publishRows(e.Publish),
		}
	}
	return rows
}

func address(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

var endpointColumns = []column[endpointRow]{
	idColumn("ID", func(e endpointRow) string { return string(e.ID) }),
	text("NAME", func(e endpointRow) string { return e.Name }),
	text("NODE", func(e endpointRow) string { return e.Node }),
	text("NETWORK", func(e endpointRow) string { return e.Network }),
	text("IPV4", func(e endpointRow) string { return cmp.Or(e.IPv4, "-") }),
	text("IPV6", func(e endpointRow) string { return cmp.Or(e.IPv6, "-") }),
	text("MAC", func(e endpointRow) string {
		if e.MAC.IsZero() { // it has no interface of heddle's
			return "-"
		}
		return e.MAC.String()
	}),
	text("STATE", func(e endpointRow) string { return string(e.State) }),
	text("HEALTH", func(e endpointRow) string {
		state, _ := overlay.SplitHealth(e.Health)
		return cmp.Or(state, "-")
	}),
	text("PUBLISHED", func(e endpointRow) string { return listed(e.Publish) }),
}

func (c *cli) endpointCmd() *cobra.Command {
	type row = endpointRow
	var services serviceFilter
	var localOnly bool
	ls := list[row]{
		short:   "List endpoints: what is attached where",
		id:      func(r row) string { return string(r.ID) },
		columns: endpointColumns,
		filters: map[string]matcher[row]{
			"id":      prefix(func(r row) string { return string(r.ID) }),
			"name":    part(func(r row) string { return r.Name }),
			"label":   labelled(func(r row) map[string]string { return r.Labels }),
			"network": named(func(r row) (id, name string) { return string(r.NetworkID), r.Network }),
			"node":    named(func(r row) (id, name string) { return string(r.NodeID), r.Node }),
			"service": func(r row, v string) bool {
				return r.Service == v || services.anyBackend(v, func(b overlay.BackendRow) bool { return b.Endpoint == r.ID })
			},
		},
		before: map[string]func(context.Context, *local.Client) error{"service": func(ctx context.Context, cl *local.Client) error {
			if localOnly { // no manager is asked: what belongs to it by labels is not known
				return nil
			}
			return services.load(ctx, cl)
		}},
	}
	lsCmd := ls.command(c, func(ctx context.Context, cl *local.Client) ([]row, error) {
		all, err := cl.Endpoints(ctx, localOnly)
		return endpointRows(all), err
	})
	lsCmd.Flags().BoolVar(&localOnly, "local", false, "this node's own endpoints alone, as it knows them; needs no manager")
	inspect := inspectCmd(c, "ENDPOINT", "Show endpoints as JSON: by ID, NAME or NODE/NAME", findEndpoints)
	staleable(lsCmd, inspect)
	return c.group("endpoint", "Show what is attached", lsCmd, inspect)
}

// findEndpoints are all endpoints of a workload, by NAME or NODE/NAME, or the one with the ID.
func findEndpoints(ctx context.Context, cl *local.Client, ref string) ([]endpointRow, error) {
	all, err := cl.Endpoints(ctx, false)
	if err != nil {
		return nil, err
	}
	rows := endpointRows(all)
	named := slices.DeleteFunc(slices.Clone(rows), func(e endpointRow) bool { return e.Name != ref && e.Node+"/"+e.Name != ref })
	if len(named) > 0 {
		return named, nil
	}
	return one(overlay.Find("endpoint", ref, rows, func(e endpointRow) (id, name string) { return string(e.ID), e.Name }))
}
