package gossip

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/overlay"
)

// places says which node each data-path address belongs to. One that two nodes claim stays with
// the first: who can send from an address that is another's already could take its traffic.
type places struct {
	claims map[netip.Addr][]overlay.NodeID // in the order in which they came
}

func newPlaces() places { return places{map[netip.Addr][]overlay.NodeID{}} }

// move notes that a node, which claimed one address, now claims another; either may be invalid.
func (p places) move(id overlay.NodeID, from, to netip.Addr) {
	if from == to {
		return
	}
	if rest := slices.DeleteFunc(p.claims[from], func(o overlay.NodeID) bool { return o == id }); len(rest) > 0 {
		p.claims[from] = rest
	} else {
		delete(p.claims, from)
	}
	if to.IsValid() {
		p.claims[to] = append(p.claims[to], id)
	}
}

// holds says whether an address that the node claims is its own.
func (p places) holds(id overlay.NodeID, a netip.Addr) bool {
	return !a.IsValid() || p.claims[a][0] == id
}

// Conflicts has a line for each data-path address that several nodes claim.
func (n *Node) Conflicts() (lines []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for a, ids := range n.places.claims {
		for _, late := range ids[1:] {
			first, second := n.nodes[ids[0]].record.Name, n.nodes[late].record.Name
			lines = append(lines, fmt.Sprintf("nodes %s and %s both say that they are at %s; %s had it first and keeps it; give %s another address, or remove %s with `heddle node rm %s` if it is gone for good: until then the workloads of %s are out of reach", first, second, a, first, second, first, first, second))
		}
	}
	slices.Sort(lines)
	return lines
}

// effective is a node's record, without an address that belongs to another; what this node says
// of itself always counts here. The caller holds mu.
func (n *Node) effective(h heard) overlay.NodeRecord {
	r := h.record
	if r.Node != n.Self && !n.places.holds(r.Node, r.DataPath()) {
		r.DataPath4, r.DataPath6 = netip.Addr{}, netip.Addr{}
	}
	return r
}
