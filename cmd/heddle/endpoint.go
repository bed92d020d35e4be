package main

import (
	"context"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

var endpointColumns = []column[overlay.Endpoint]{
	idColumn("ID", func(e overlay.Endpoint) string { return string(e.ID) }),
	text("NAME", func(e overlay.Endpoint) string { return e.Name }),
	text("NODE", func(e overlay.Endpoint) string { return e.NodeName }),
	text("NETWORK", func(e overlay.Endpoint) string { return e.NetworkName }),
	text("IPV4", func(e overlay.Endpoint) string { return address(e.IPv4) }),
	text("IPV6", func(e overlay.Endpoint) string { return address(e.IPv6) }),
	text("MAC", func(e overlay.Endpoint) string { return e.MAC.String() }),
	text("STATE", func(e overlay.Endpoint) string { return string(e.State) }),
}

func address(p netip.Prefix) string {
	if !p.IsValid() {
		return "-"
	}
	return p.String()
}

func (c *cli) endpointCmd() *cobra.Command {
	type row = overlay.Endpoint
	ls := list[row]{
		short:   "List endpoints: what is attached where",
		id:      func(r row) string { return string(r.ID) },
		columns: endpointColumns,
		filters: map[string]matcher[row]{
			"id":      prefix(func(r row) string { return string(r.ID) }),
			"name":    part(func(r row) string { return r.Name }),
			"label":   labelled(func(r row) map[string]string { return r.Labels }),
			"network": named(func(r row) (id, name string) { return string(r.NetworkID), r.NetworkName }),
			"node":    named(func(r row) (id, name string) { return string(r.Node), r.NodeName }),
			"service": exact(func(r row) string { return r.Service }),
		},
	}
	var localOnly bool
	lsCmd := ls.command(c, func(ctx context.Context, cl *local.Client) ([]row, error) { return cl.Endpoints(ctx, localOnly) })
	lsCmd.Flags().BoolVar(&localOnly, "local", false, "this node's own endpoints alone, as it knows them; needs no manager")
	return c.group("endpoint", "Show what is attached",
		lsCmd, inspectCmd(c, "ENDPOINT", "Show endpoints as JSON: by ID, NAME or NODE/NAME", findEndpoints))
}

// findEndpoints are all endpoints of a workload, by NAME or NODE/NAME, or the one with the ID.
func findEndpoints(ctx context.Context, cl *local.Client, ref string) ([]overlay.Endpoint, error) {
	all, err := cl.Endpoints(ctx, false)
	if err != nil {
		return nil, err
	}
	var hits []overlay.Endpoint
	for _, e := range all {
		if e.Name == ref || e.NodeName+"/"+e.Name == ref {
			hits = append(hits, e)
		}
	}
	if len(hits) > 0 {
		return hits, nil
	}
	return one(overlay.Find("endpoint", strings.TrimSpace(ref), all, func(e overlay.Endpoint) (id, name string) { return string(e.ID), e.Name }))
}
