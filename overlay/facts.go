package overlay

import (
	"maps"
	"slices"
)

// Facts are what the managers have agreed on, as one node may see it, at one revision:
// every node row and removal, and the rows and leases of the networks in which this node
// has a lease. A Facts value is never changed after it was published; Delta.Apply makes a
// new one.
type Facts struct {
	V        int    `json:"v"`
	Revision uint64 `json:"revision"` // Raft index of the newest change in it
	Place
	// Level is the cluster's feature level. Managers that said nothing of it have the first, and
	// facts without it may lack what their reader did not know: they are fetched anew, whole.
	Level int `json:"level,omitempty"`
	// Reads is the feature level of the build that took them in, which has left out what it did not
	// know. Managers say nothing of it, nor did builds before the fourth level.
	Reads      int                             `json:"reads,omitempty"`
	Params     Params                          `json:"params"`
	CA         []byte                          `json:"ca"` // the CA's certificate, DER
	CAKey      []byte                          `json:"caKey"`
	Ring       []RingKey                       `json:"ring"`
	GossipKeys [][]byte                        `json:"gossipKeys"` // AES-256; the first encrypts, all decrypt
	Nodes      map[NodeID]Node                 `json:"nodes"`
	Removals   map[NodeID]Signed               `json:"removals"`
	Networks   map[NetworkID]Network           `json:"networks"`
	Leases     map[NetworkID]map[NodeID]Signed `json:"leases"`
	// Services are those of the networks above, and those that are published on every node.
	Services map[ServiceID]Service `json:"services,omitempty"`
}

// Delta is the difference between two Facts. Rows replace rows of the same key; Gone lists
// take rows away, a network before rows of it come.
type Delta struct {
	V          int               `json:"v"`
	Revision   uint64            `json:"revision"`
	Full       *Facts            `json:"full,omitempty"` // the whole state instead of a difference
	Level      int               `json:"level,omitempty"`
	Params     *Params           `json:"params,omitempty"`
	Ring       []RingKey         `json:"ring,omitempty"`
	GossipKeys [][]byte          `json:"gossipKeys,omitempty"`
	Nodes      []Node            `json:"nodes,omitempty"`
	Removals   map[NodeID]Signed `json:"removals,omitempty"`
	Networks   []Network         `json:"networks,omitempty"`
	Leases     []LeaseRow        `json:"leases,omitempty"`
	Services   []Service         `json:"services,omitempty"`
	GoneServs  []ServiceID       `json:"goneServices,omitempty"`
	GoneNodes  []NodeID          `json:"goneNodes,omitempty"`
	GoneNets   []NetworkID       `json:"goneNetworks,omitempty"` // with all their leases
	GoneLeases []LeaseRow        `json:"goneLeases,omitempty"`   // Signed is empty
}

// LeaseRow is a signed lease with the key it is stored under.
type LeaseRow struct {
	Network NetworkID `json:"network"`
	Node    NodeID    `json:"node"`
	Lease   Signed    `json:"lease,omitzero"`
}

// Apply makes the Facts that follow f. Applying a delta twice is harmless.
func (d Delta) Apply(f *Facts) *Facts {
	if d.Full != nil {
		return d.Full
	}
	n := *f
	n.Revision = d.Revision
	if d.Ring != nil {
		n.Ring = d.Ring
	}
	if d.GossipKeys != nil {
		n.GossipKeys = d.GossipKeys
	}
	if d.Level != 0 {
		n.Level = d.Level
	}
	if d.Params != nil {
		n.Params = *d.Params
	}
	if len(d.Nodes)+len(d.GoneNodes) > 0 {
		n.Nodes = cloned(f.Nodes)
		for _, row := range d.Nodes {
			n.Nodes[row.ID] = row
		}
		for _, id := range d.GoneNodes {
			delete(n.Nodes, id)
		}
	}
	if len(d.Removals) > 0 {
		n.Removals = cloned(f.Removals)
		maps.Copy(n.Removals, d.Removals)
	}
	if len(d.Networks)+len(d.GoneNets) > 0 {
		n.Networks = cloned(f.Networks)
		for _, id := range d.GoneNets {
			delete(n.Networks, id)
		}
		for _, row := range d.Networks {
			n.Networks[row.ID] = row
		}
	}
	if len(d.Leases)+len(d.GoneLeases)+len(d.GoneNets) > 0 {
		n.Leases = d.leases(f.Leases)
	}
	if len(d.Services)+len(d.GoneServs) > 0 {
		n.Services = cloned(f.Services)
		for _, row := range d.Services {
			n.Services[row.ID] = row
		}
		for _, id := range d.GoneServs {
			delete(n.Services, id)
		}
	}
	return &n
}

// leases is the leases after the delta. A network without a lease has no entry.
func (d Delta) leases(old map[NetworkID]map[NodeID]Signed) map[NetworkID]map[NodeID]Signed {
	all := cloned(old)
	for _, id := range d.GoneNets {
		delete(all, id)
	}
	mine := map[NetworkID]bool{} // cloned already
	of := func(id NetworkID) map[NodeID]Signed {
		if !mine[id] {
			all[id], mine[id] = cloned(all[id]), true
		}
		return all[id]
	}
	for _, row := range d.Leases {
		of(row.Network)[row.Node] = row.Lease
	}
	for _, row := range d.GoneLeases {
		delete(of(row.Network), row.Node)
	}
	for id := range mine {
		if len(all[id]) == 0 {
			delete(all, id)
		}
	}
	return all
}

func cloned[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return maps.Clone(m)
}

// Trust is what the facts let this node check.
func (f *Facts) Trust() Trust {
	t := Trust{Place: f.Place, CA: f.CAKey, Ring: f.Ring, Removed: make(map[NodeID]bool, len(f.Removals))}
	for id := range f.Removals {
		t.Removed[id] = true
	}
	return t
}

// Removed says whether a node is out of the cluster.
func (f *Facts) Removed(id NodeID) bool {
	_, out := f.Removals[id]
	return out
}

// Participants are the nodes with a lease in the network, sorted.
func (f *Facts) Participants(id NetworkID) []NodeID {
	return slices.Sorted(maps.Keys(f.Leases[id]))
}

// Managers are the nodes with the manager role, sorted by ID.
func (f *Facts) Managers() []Node {
	var out []Node
	for _, id := range slices.Sorted(maps.Keys(f.Nodes)) {
		if f.Nodes[id].Role == Manager {
			out = append(out, f.Nodes[id])
		}
	}
	return out
}
