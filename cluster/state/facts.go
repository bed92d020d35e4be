package state

import (
	"cmp"
	"crypto/ed25519"
	"maps"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/overlay"
)

// FactsFor is what a node may see: a manager everything, another member all nodes, the networks
// in which it has a lease with their services, and the services that are published on every node
// with their networks' rows, and who is no member the removals, so that it can see its own.
func (s *State) FactsFor(node overlay.NodeID) *overlay.Facts {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.t
	f := &overlay.Facts{
		V: 1, Revision: t.revision, Place: t.Place, Level: t.level, Params: t.Params, CA: t.CA, Ring: t.Ring,
		Nodes: map[overlay.NodeID]overlay.Node{}, Removals: t.removals.share(),
		Networks: map[overlay.NetworkID]overlay.Network{}, Leases: map[overlay.NetworkID]map[overlay.NodeID]overlay.Signed{},
	}
	if t.CAKey != nil {
		f.CAKey = t.CAKey.Public().(ed25519.PublicKey)
	}
	row, member := t.nodes.m[node]
	if !member {
		return f
	}
	f.GossipKeys, f.Nodes = t.GossipKeys, t.nodes.share()
	put := func(id overlay.NetworkID) {
		n := t.networks.m[id]
		f.Networks[id] = n.def
		if len(n.leases) > 0 {
			f.Leases[id] = n.leases
		}
	}
	if row.Role == overlay.Manager {
		for id := range t.networks.m {
			put(id)
		}
	} else {
		for id := range t.leased[node] {
			put(id)
		}
	}
	t.putServices(f)
	return f
}

// putServices gives facts the services of their networks, and those that are on every node.
func (t *tables) putServices(f *overlay.Facts) {
	put := func(id overlay.ServiceID) {
		if f.Services == nil {
			f.Services = map[overlay.ServiceID]overlay.Service{}
		}
		f.Services[id] = *t.services.m[id]
	}
	for id := range f.Networks {
		for s := range t.pools[id].services {
			put(s)
		}
	}
	for id := range t.ingress {
		f.Networks[id] = t.networks.m[id].def
		for s := range t.pools[id].services {
			if t.services.m[s].Ingress() {
				put(s)
			}
		}
	}
}

// Since is the difference between what the node could see at a revision and what it may see
// at this one. At or above this revision it is empty. False means that the state can't tell:
// send FactsFor in Delta.Full.
func (s *State) Since(rev uint64, node overlay.NodeID) (overlay.Delta, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.t
	d := overlay.Delta{V: 1, Revision: max(rev, t.revision)}
	if rev >= t.revision {
		return d, true
	}
	changes, ok := s.journal.since(rev)
	row, member := t.nodes.m[node]
	if !ok || !member || changes[key{table: tRole, node: node}] {
		return overlay.Delta{}, false
	}
	w := &watcher{t, node, row.Role == overlay.Manager, changes, &d, map[overlay.ServiceID]bool{}}
	for k := range changes {
		w.row(k)
	}
	w.sort()
	return d, true
}

// watcher makes the difference for one node.
type watcher struct {
	t       *tables
	node    overlay.NodeID
	all     bool // it sees every network
	changes map[key]bool
	d       *overlay.Delta
	told    map[overlay.ServiceID]bool // services that are in d
}

func (w *watcher) row(k key) {
	switch t := w.t; k.table {
	case tNode:
		if row, ok := t.nodes.m[k.node]; ok {
			w.d.Nodes = append(w.d.Nodes, row)
		} else {
			w.d.GoneNodes = append(w.d.GoneNodes, k.node)
		}
	case tRemoval:
		if w.d.Removals == nil {
			w.d.Removals = map[overlay.NodeID]overlay.Signed{}
		}
		w.d.Removals[k.node] = t.removals.m[k.node]
	case tKeys:
		w.d.Ring, w.d.GossipKeys = t.Ring, t.GossipKeys
	case tParams:
		p := t.Params
		w.d.Params = &p
	case tLevel:
		w.d.Level = t.level
	case tNetwork:
		w.network(k.network)
	case tIngress:
		if !w.takesPart(k.network) && !w.changes[key{table: tNetwork, network: k.network}] {
			w.network(k.network)
		}
	case tLease:
		w.lease(k)
	case tService:
		w.service(k.service, k.network)
	}
}

// takesPart says whether the node sees all of a network.
func (w *watcher) takesPart(id overlay.NetworkID) bool { return w.all || w.t.leased[w.node][id] }

// network is a network whose row changed, or who sees it by its services.
func (w *watcher) network(id overlay.NetworkID) {
	if n, ok := w.t.networks.m[id]; ok && (w.takesPart(id) || w.t.ingress[id] > 0) {
		w.d.Networks = append(w.d.Networks, n.def)
	} else if w.all || w.changes[key{table: tIngress, network: id}] {
		w.d.GoneNets = append(w.d.GoneNets, id)
	}
}

// service is a service that is, or was, in a network.
func (w *watcher) service(id overlay.ServiceID, network overlay.NetworkID) {
	if w.told[id] {
		return
	}
	s, there := w.t.services.m[id]
	switch {
	case there && (w.takesPart(s.Network) || s.Ingress()):
		w.d.Services = append(w.d.Services, *s)
	case w.takesPart(network), w.changes[key{table: tLease, node: w.node, network: network}], w.changes[key{table: tUnpublished, service: id}]:
		w.d.GoneServs = append(w.d.GoneServs, id)
	default: // it never knew of it
		return
	}
	w.told[id] = true
}

// services are all services of a network that the node enters or is not in any more.
func (w *watcher) services(id overlay.NetworkID) {
	if p, there := w.t.pools[id]; there {
		for s := range p.services {
			w.service(s, id)
		}
	}
}

// lease is a changed lease. The node's own says whether it sees the network at all.
func (w *watcher) lease(k key) {
	n, there := w.t.networks.m[k.network]
	if w.all {
		if there {
			w.one(n, k)
		}
		return
	}
	if !there || !w.t.leased[w.node][k.network] {
		if k.node == w.node {
			w.d.GoneNets = append(w.d.GoneNets, k.network)
			w.services(k.network)
		}
		return
	}
	entered := w.changes[key{table: tEntered, node: w.node, network: k.network}]
	if entered && k.node == w.node {
		w.d.Networks = append(w.d.Networks, n.def)
		for node, lease := range n.leases {
			w.d.Leases = append(w.d.Leases, overlay.LeaseRow{Network: k.network, Node: node, Lease: lease})
		}
		w.services(k.network)
		return
	}
	if _, is := n.leases[k.node]; !entered || !is { // what there is came with the entrance
		w.one(n, k)
	}
}

func (w *watcher) one(n *network, k key) {
	row := overlay.LeaseRow{Network: k.network, Node: k.node}
	if lease, ok := n.leases[k.node]; ok {
		row.Lease = lease
		w.d.Leases = append(w.d.Leases, row)
	} else {
		w.d.GoneLeases = append(w.d.GoneLeases, row)
	}
}

// sort puts the rows in an order of their own, so that one difference has one form.
func (w *watcher) sort() {
	d := w.d
	slices.SortFunc(d.Nodes, func(a, b overlay.Node) int { return strings.Compare(string(a.ID), string(b.ID)) })
	slices.SortFunc(d.Networks, func(a, b overlay.Network) int { return strings.Compare(string(a.ID), string(b.ID)) })
	lease := func(a, b overlay.LeaseRow) int {
		return cmp.Or(strings.Compare(string(a.Network), string(b.Network)), strings.Compare(string(a.Node), string(b.Node)))
	}
	slices.SortFunc(d.Leases, lease)
	slices.SortFunc(d.GoneLeases, lease)
	slices.Sort(d.GoneNodes)
	slices.Sort(d.GoneNets)
	d.GoneNets = slices.Compact(d.GoneNets)
	slices.SortFunc(d.Services, func(a, b overlay.Service) int { return strings.Compare(string(a.ID), string(b.ID)) })
	slices.Sort(d.GoneServs)
}

// clonedWith is the map with one more row, or without it when put is false.
func clonedWith[K comparable, V any](m map[K]V, k K, v V, put bool) map[K]V {
	out := make(map[K]V, len(m)+1)
	maps.Copy(out, m)
	if put {
		out[k] = v
	} else {
		delete(out, k)
	}
	return out
}
