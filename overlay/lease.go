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
