package overlay

import (
	"crypto/ed25519"
	"net/netip"
)

// Lease gives addresses of one network to one node. The managers sign it; it never expires.
type Lease struct {
	V int `json:"v"`
	Place
	Network NetworkID         `json:"network"`
	Node    NodeID            `json:"node"`
	Key     ed25519.PublicKey `json:"nodeKey"`
	Index   uint64            `json:"index"` // Raft index of its last change; a higher one replaces a lower
	Grants  []Grant           `json:"grants"`
}

// Grant is a run of addresses of one family, both ends included, and the Raft index at
// which they were granted to the node.
type Grant struct {
	First netip.Addr `json:"first"`
	Last  netip.Addr `json:"last"`
	Index uint64     `json:"index"`
}

func (g Grant) Has(a netip.Addr) bool {
	return g.First.BitLen() == a.BitLen() && g.First.Compare(a) <= 0 && a.Compare(g.Last) <= 0
}

// Granted is the Raft index at which the address was granted to the lease's node.
func (l Lease) Granted(a netip.Addr) (index uint64, ok bool) {
	for _, g := range l.Grants {
		if g.Has(a) {
			return g.Index, true
		}
	}
	return 0, false
}

// Release gives addresses of a lease back to the managers, by consent of the node that holds
// it. The node has barred them on its disk before it signed this: none will be used again
// under these grants.
type Release struct {
	V int `json:"v"`
	Place
	Network NetworkID `json:"network"`
	Node    NodeID    `json:"node"`
	Grants  []Grant   `json:"grants"` // runs within grants of the lease, each with that grant's index
}

// Split parts grants into what runs leave of them and what they take. A run takes addresses
// of grants with its own index alone: an address that was granted again later is not meant.
func Split(grants, runs []Grant) (left, taken []Grant) {
	for _, g := range grants {
		rest := []Grant{g}
		for _, r := range runs {
			var next []Grant
			for _, g := range rest {
				keep, cut := g.cut(r)
				next, taken = append(next, keep...), append(taken, cut...)
			}
			rest = next
		}
		left = append(left, rest...)
	}
	return left, taken
}

// cut parts one grant by one run.
func (g Grant) cut(r Grant) (keep, cut []Grant) {
	if r.Index != g.Index || r.First.BitLen() != g.First.BitLen() || r.Last.Less(g.First) || g.Last.Less(r.First) {
		return []Grant{g}, nil
	}
	c := g
	if g.First.Less(r.First) {
		c.First = r.First
		keep = append(keep, Grant{g.First, r.First.Prev(), g.Index})
	}
	if r.Last.Less(g.Last) {
		c.Last = r.Last
		keep = append(keep, Grant{r.Last.Next(), g.Last, g.Index})
	}
	return keep, []Grant{c}
}

// ReleaseRequest is how managers ask a node to give up addresses of its lease that idle: those
// named, and Want more of each family. It gives what it can.
type ReleaseRequest struct {
	Network NetworkID    `json:"network"`
	Addrs   []netip.Addr `json:"addrs,omitempty"`
	Want    int          `json:"want,omitempty"`
}

// ReleaseReply is the answer: the node's signed Release, if it gives anything, and the
// workloads that use addresses which were named.
type ReleaseReply struct {
	Release *Signed               `json:"release,omitempty"`
	InUse   map[netip.Addr]string `json:"inUse,omitempty"`
}
