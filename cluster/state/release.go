package state

import (
	"maps"
	"slices"

	"github.com/heddle-net/heddle/overlay"
)

func (c Release) apply(t *tables, index uint64) (ref, error) {
	var head overlay.Release
	if err := c.Release.Decode(overlay.DomainRelease, &head); err != nil {
		return ref{}, err
	}
	out := ref{Node: head.Node, Network: head.Network}
	node, ok := t.nodes.m[head.Node]
	if !ok {
		return ref{}, noNode(head.Node)
	}
	r, err := overlay.Trust{Place: t.Place}.CheckRelease(c.Release, node.ID, node.Key)
	if err != nil {
		return ref{}, err
	}
	n, ok := t.networks.m[r.Network]
	if !ok {
		return ref{}, noNetwork(r.Network)
	}
	p := t.pools[r.Network]
	left, taken := overlay.Split(p.held[node.ID], r.Grants)
	if len(taken) == 0 {
		return out, nil
	}
	next, err := t.lease(n, node, left, index)
	if err != nil {
		return ref{}, err
	}
	next.resting = p.lay(n.resting, taken, c.Now)
	t.networks.edit()[r.Network] = next
	return out, nil
}

func (c Unfence) apply(t *tables, _ uint64) (ref, error) {
	if _, out := t.removals.m[c.Node]; !out {
		return ref{}, overlay.Errorf(overlay.NotFound, "node %s was not removed", c.Node.Short())
	}
	for _, id := range slices.Sorted(maps.Keys(t.networks.m)) {
		n := t.networks.m[id]
		grants, fenced := n.fenced[c.Node]
		if !fenced {
			continue
		}
		next := *n
		next.fenced = clonedWith(n.fenced, c.Node, nil, false)
		next.resting = t.pools[id].lay(n.resting, grants, c.Now)
		t.networks.edit()[id] = &next
		t.changed(key{table: tRemoval, node: c.Node})
	}
	return ref{Node: c.Node}, nil
}

// Fence is what stands between the addresses of a removed node and their next holders.
type Fence struct {
	Node    overlay.NodeID
	Removed int64 // Unix seconds
	// Forced says that time alone lets it fall. Else all of Participants must act by the
	// removal.
	Forced       bool
	Participants []overlay.NodeID // of the networks with fenced addresses, sorted
}

// Fences are what Unfence is to lift, sorted by node.
func (v *View) Fences() []Fence {
	takesPart := map[overlay.NodeID]map[overlay.NodeID]bool{}
	for _, n := range v.networks {
		for id := range n.fenced {
			if takesPart[id] == nil {
				takesPart[id] = map[overlay.NodeID]bool{}
			}
			for node := range n.leases {
				takesPart[id][node] = true
			}
		}
	}
	var out []Fence
	for _, id := range slices.Sorted(maps.Keys(takesPart)) {
		out = append(out, Fence{id, v.members[id].Removed, v.members[id].Forced, slices.Sorted(maps.Keys(takesPart[id]))})
	}
	return out
}
