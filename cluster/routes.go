package cluster

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/cluster/state"
	"github.com/heddle-net/heddle/overlay"
)

// maxAvoid bounds the routes that a command carries. Nodes mostly have the same ones.
const maxAvoid = 1024

// avoid are the routes of all nodes that lie in the cluster's pools: no subnet is chosen there.
func (m *Manager) avoid(v *state.View) []netip.Prefix {
	var out []netip.Prefix
	for id := range v.Nodes {
		r, _ := m.Observer.Record(id)
		for _, p := range r.Routes {
			if slices.ContainsFunc(v.Params.Pools, p.Overlaps) && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() }) // the widest matter most
	return out[:min(len(out), maxAvoid)]
}

// hides is a line for each route of a node that a subnet hides from the workloads of a network.
func (m *Manager) hides(v *state.View, subnets []overlay.Subnet) (notes []string) {
	byRoute := map[[2]netip.Prefix][]string{}
	for _, id := range slices.Sorted(maps.Keys(v.Nodes)) {
		r, _ := m.Observer.Record(id)
		for _, s := range subnets {
			for _, p := range r.Routes {
				if s.Prefix.IsValid() && p.Overlaps(s.Prefix) {
					byRoute[[2]netip.Prefix{s.Prefix, p}] = append(byRoute[[2]netip.Prefix{s.Prefix, p}], v.Nodes[id].Name)
				}
			}
		}
	}
	for k, nodes := range byRoute {
		slices.Sort(nodes)
		who := "node " + nodes[0]
		if len(nodes) > 1 {
			who += fmt.Sprintf(" and %d others", len(nodes)-1)
		}
		part := ""
		if k[1].Bits() < k[0].Bits() {
			part = "part of "
		}
		notes = append(notes, fmt.Sprintf("subnet %s hides %s%s, which %s routes: workloads of this network can't reach that; choose another subnet if they should", k[0], part, k[1], who))
	}
	slices.Sort(notes)
	return notes
}
