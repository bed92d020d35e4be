package gossip

import (
	"net/netip"
	"testing"

	"github.com/heddle-net/heddle/overlay"
)

// An address stays with its first holder, until that one leaves it; two nodes may swap theirs.
func TestPlaces(t *testing.T) {
	ip := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, n}) }
	p := newPlaces()
	at := map[overlay.NodeID]netip.Addr{}
	move := func(id overlay.NodeID, to netip.Addr) { p.move(id, at[id], to); at[id] = to }
	holder := func(why string, a netip.Addr, want overlay.NodeID) {
		t.Helper()
		for id, claimed := range at {
			if claimed == a && p.holds(id, a) != (id == want) {
				t.Errorf("%s: %s is node %.1s's: %v", why, a, id, p.holds(id, a))
			}
		}
	}
	move(nodeA, ip(1))
	move(nodeB, ip(2))
	move(nodeB, ip(1))
	holder("b takes what a has", ip(1), nodeA)
	move(nodeA, ip(3))
	holder("a has gone elsewhere", ip(1), nodeB)
	move(nodeA, ip(1))
	move(nodeB, ip(3))
	holder("swapped", ip(1), nodeA)
	holder("swapped", ip(3), nodeB)
	move(nodeA, netip.Addr{})
	move(nodeB, ip(1))
	holder("a was removed", ip(1), nodeB)
	if !p.holds(nodeA, netip.Addr{}) {
		t.Error("no address at all is no conflict")
	}
	if len(p.claims) != 1 {
		t.Errorf("left: %v", p.claims)
	}
}
