package table

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/overlay"
)

// network is what is held of one network. Which claims stand is kept, not worked out anew: a
// change looks at the claims to its own addresses alone, however many others there are.
type network struct {
	owners map[overlay.NodeID]*owner
	at     map[netip.Addr][]*overlay.Claim // the claims to an address, nearly always one; the first has the latest right
	live   []*overlay.Claim                // those that stand, sorted
}

func newNetwork() *network {
	return &network{owners: map[overlay.NodeID]*owner{}, at: map[netip.Addr][]*overlay.Claim{}}
}

// reset begins a life of the owner's table: nothing of an earlier one counts any more.
func (n *network) reset(o *owner, incarnation uint64) {
	for _, c := range o.claims {
		n.replace(c, nil)
	}
	*o = owner{mark: overlay.Version{Incarnation: incarnation}, ahead: map[uint64]bool{}, claims: map[overlay.EndpointID]*overlay.Claim{}}
}

// replace takes a claim away and puts the owner's next word on the endpoint in its place; either
// may be nil.
func (n *network) replace(old, next *overlay.Claim) {
	if old != nil {
		n.set(old, false)
		for _, ip := range old.Record.IPs {
			n.leave(ip, old)
		}
	}
	if next != nil {
		for _, ip := range next.Record.IPs {
			n.enter(ip, next)
		}
		n.judge(next)
	}
}

// enter adds a claim to an address.
func (n *network) enter(ip netip.Addr, c *overlay.Claim) {
	all := append(n.at[ip], c)
	n.at[ip] = all
	if last := len(all) - 1; last > 0 && c.Beats(*all[0], ip) {
		all[0], all[last] = all[last], all[0]
		n.judge(all[last])
	}
}

// leave takes a claim to an address away.
func (n *network) leave(ip netip.Addr, c *overlay.Claim) {
	all := n.at[ip]
	i := slices.Index(all, c)
	all = slices.Delete(all, i, i+1)
	if len(all) == 0 {
		delete(n.at, ip)
		return
	}
	n.at[ip] = all
	if i > 0 {
		return
	}
	for i, rival := range all {
		if rival.Beats(*all[0], ip) {
			all[0], all[i] = rival, all[0]
		}
	}
	n.judge(all[0])
}

// judge settles whether a claim stands: each of its addresses must be its own.
func (n *network) judge(c *overlay.Claim) {
	lost := func(ip netip.Addr) bool { return n.at[ip][0] != c }
	n.set(c, !c.Record.Deleted && !slices.ContainsFunc(c.Record.IPs, lost))
}

// set notes whether a claim stands.
func (n *network) set(c *overlay.Claim, stands bool) {
	i, stood := slices.BinarySearchFunc(n.live, c, func(x, y *overlay.Claim) int {
		return cmp.Or(cmp.Compare(x.Record.Endpoint, y.Record.Endpoint), cmp.Compare(x.Record.Owner, y.Record.Owner))
	})
	switch {
	case stands && !stood:
		n.live = slices.Insert(n.live, i, c)
	case !stands && stood:
		n.live = slices.Delete(n.live, i, i+1)
	}
}
