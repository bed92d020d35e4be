// Package names holds a node's names: who has which address in the networks of its workloads, as
// each workload may see it.
//
// It is pure. A Table is never changed; Next makes the one after it, and costs in proportion to what
// is new.
package names

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/services"
)

// Domain is what all names are below, where they are written in full.
const Domain = "heddle.internal"

// Input is what a node knows when it answers.
type Input struct {
	Self     overlay.NodeID
	Networks []Network
	Own      []Endpoint
	Out      map[overlay.NodeID]bool // nodes whose endpoints have no names: taken for dead, or draining
}

// Network is what a node knows of one network.
type Network struct {
	overlay.Network
	Claims   []*overlay.Claim    // live ones, sorted by endpoint and owner; this node's own do not count
	Services []*services.Service // judged
	Partial  bool                // others may have said more than is known yet
}

// Endpoint is one of this node's own endpoints.
type Endpoint struct {
	ID        overlay.EndpointID
	Network   overlay.NetworkID
	Workload  string
	IPs       []netip.Addr
	Aliases   []string
	Named     bool // it has names; else it may ask alone
	Namespace datapath.NS
	Make      string // the name under /run/netns of a namespace that heddle has made for it; "" where it was given one
	Host      bool   // the host itself is the workload
	Priority  int    // as in plan.Endpoint
}

// Table is what is known at one moment.
type Table struct {
	self   overlay.NodeID
	zones  map[overlay.NetworkID]*Zone
	own    []Endpoint
	askers map[source]*Asker
	out    map[overlay.NodeID]bool
}

// source is where questions come from.
type source struct {
	network overlay.NetworkID
	ip      netip.Addr
}

// Next is the table after t, which may be nil.
func (t *Table) Next(in Input) *Table {
	if t == nil {
		t = &Table{}
	}
	next := &Table{self: in.Self, zones: make(map[overlay.NetworkID]*Zone, len(in.Networks)), own: in.Own, out: in.Out}
	byNetwork := map[overlay.NetworkID][]Endpoint{}
	for _, e := range in.Own {
		if e.Named {
			byNetwork[e.Network] = append(byNetwork[e.Network], e)
		}
	}
	for _, n := range in.Networks {
		own := byNetwork[n.ID]
		slices.SortFunc(own, func(a, b Endpoint) int { return cmp.Compare(a.ID, b.ID) })
		next.zones[n.ID] = t.zones[n.ID].next(in.Self, n, own)
	}
	next.ask()
	return next
}

// ask finds out who may ask: each namespace of a workload, from its addresses.
func (t *Table) ask() {
	byPlace := map[datapath.NS][]Endpoint{}
	for _, e := range t.own {
		if t.zones[e.Network] != nil {
			byPlace[e.Namespace] = append(byPlace[e.Namespace], e)
		}
	}
	t.askers = make(map[source]*Asker, 2*len(t.own))
	for ns, all := range byPlace {
		rank := func(e Endpoint) overlay.RouteRank {
			return overlay.RouteRank{Priority: e.Priority, Network: t.zones[e.Network].Name, Endpoint: e.ID}
		}
		slices.SortFunc(all, func(a, b Endpoint) int { return rank(a).Compare(rank(b)) })
		a := &Asker{Namespace: ns, Host: all[0].Host, Make: all[0].Make, table: t}
		for _, e := range all {
			if z := t.zones[e.Network]; !slices.Contains(a.zones, z) {
				a.zones = append(a.zones, z)
			}
			for _, ip := range e.IPs {
				t.askers[source{e.Network, ip}] = a
			}
		}
	}
}

// Asker is who asks in a network from an address, or nil for a stranger. The table may be nil.
func (t *Table) Asker(network overlay.NetworkID, ip netip.Addr) *Asker {
	if t == nil {
		return nil
	}
	return t.askers[source{network, ip}]
}

// Askers are all that may ask, each once.
func (t *Table) Askers() []*Asker {
	seen := map[*Asker]bool{}
	var all []*Asker
	for _, a := range t.askers {
		if !seen[a] {
			seen[a] = true
			all = append(all, a)
		}
	}
	return all
}

// In asks as one that is in a network alone, from the host; nil where this node does not have it.
func (t *Table) In(network overlay.NetworkID) *Asker {
	if t == nil || t.zones[network] == nil {
		return nil
	}
	return &Asker{Host: true, zones: []*Zone{t.zones[network]}, table: t}
}

// Zones are the networks in which is asked, by ID.
func (t *Table) Zones() map[overlay.NetworkID]*Zone {
	if t == nil {
		return nil
	}
	return t.zones
}
