package table

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/overlay"
)

const (
	a   = overlay.NodeID("aa000000000000000000000000000000")
	b   = overlay.NodeID("bb000000000000000000000000000000")
	net = overlay.NetworkID("11000000000000000000000000000000")
)

func claim(owner overlay.NodeID, incarnation, number uint64, endpoint int, ip string, granted uint64) overlay.Claim {
	r := overlay.Record{
		Owner: owner, Network: net, Incarnation: incarnation, Number: number,
		Endpoint: overlay.EndpointID(fmt.Sprintf("%.1s%031d", owner, endpoint)), Deleted: ip == "",
	}
	if ip != "" {
		r.IPs = []netip.Addr{netip.MustParseAddr(ip)}
	}
	return overlay.Claim{Record: r, Granted: []uint64{granted}}
}

// history is what one owner says, in order: endpoints come, change and go.
func history(t *rapid.T, owner overlay.NodeID, granted uint64) []overlay.Claim {
	var out []overlay.Claim
	for i := range rapid.IntRange(0, 12).Draw(t, "changes of "+string(owner[:1])) {
		ip := ""
		if rapid.Bool().Draw(t, "stands") {
			ip = fmt.Sprintf("10.0.0.%d", rapid.IntRange(1, 4).Draw(t, "ip"))
		}
		out = append(out, claim(owner, 1, uint64(i+1), rapid.IntRange(0, 3).Draw(t, "endpoint"), ip, granted))
	}
	return out
}

func names(cs []*overlay.Claim) (s []string) {
	for _, c := range cs {
		s = append(s, fmt.Sprintf("%s %d %v", c.Record.Endpoint, c.Record.Number, c.Record.IPs))
	}
	return s
}

// What is held changes nothing when it comes again.
func TestHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := append(history(t, a, 1), claim(a, 2, 1, 9, "10.0.0.5", 3))
		some := New()
		for _, c := range all {
			if rapid.Bool().Draw(t, "comes") {
				some.Merge(c)
				if r := c.Record; !some.Holds(net, a, r.Endpoint, r.Version()) {
					t.Fatalf("%s %d was merged and is not held", r.Endpoint, r.Number)
				}
			}
		}
		for _, c := range all {
			r := c.Record
			if !some.Holds(net, a, r.Endpoint, r.Version()) {
				continue
			}
			before := some.Digest(net)
			if some.Merge(c) || cmp.Diff(before, some.Digest(net)) != "" {
				t.Fatalf("%s %d was held, and changed something", r.Endpoint, r.Number)
			}
		}
	})
}

// Any order, any duplication and any loss of pushes, then one exchange with somebody who has
// everything: all replicas hold the same.
func TestReplicasConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := append(history(t, a, 1), history(t, b, 2)...)
		whole := New()
		for _, c := range all {
			whole.Merge(c)
		}
		replica := New()
		for range rapid.IntRange(0, 2*len(all)).Draw(t, "pushes") {
			replica.Merge(all[rapid.IntRange(0, len(all)-1).Draw(t, "push")])
		}
		for _, batch := range whole.Missing(net, replica.Digest(net)) {
			replica.MergeBatch(net, batch)
		}
		if d := cmp.Diff(names(whole.Live(net)), names(replica.Live(net))); d != "" {
			t.Fatalf("live endpoints differ:\n%s", d)
		}
		if d := cmp.Diff(whole.Digest(net), replica.Digest(net)); d != "" {
			t.Fatalf("digests differ:\n%s", d)
		}
		if more := whole.Missing(net, replica.Digest(net)); len(more) > 0 {
			t.Fatalf("after an exchange something is still missing: %v", more)
		}
	})
}

// standing works out from all claims which of them stand.
func standing(tb *Table) (out []*overlay.Claim) {
	best := map[netip.Addr]*overlay.Claim{}
	var all []*overlay.Claim
	for _, o := range tb.owners(net) {
		for _, c := range o.claims {
			all = append(all, c)
			for _, ip := range c.Record.IPs {
				if rival, ok := best[ip]; !ok || c.Beats(*rival, ip) {
					best[ip] = c
				}
			}
		}
	}
	for _, c := range all {
		if !c.Record.Deleted && !slices.ContainsFunc(c.Record.IPs, func(ip netip.Addr) bool { return best[ip] != c }) {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(x, y *overlay.Claim) int {
		return strings.Compare(string(x.Record.Endpoint), string(y.Record.Endpoint))
	})
	return out
}

// What stands is kept right by each change, whatever it is.
func TestLiveIsWhatStands(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := append(history(t, a, 1), history(t, b, 2)...)
		for i := range all { // two addresses, so that a claim can lose by one of them
			if r := &all[i].Record; !r.Deleted {
				r.IPs = append(r.IPs, netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(5, 8).Draw(t, "second ip"))}))
				all[i].Granted = append(all[i].Granted, all[i].Granted[0])
			} else if rapid.Bool().Draw(t, "floor") {
				r.Floor = uint64(rapid.IntRange(0, int(r.Number)-1).Draw(t, "up to"))
			}
		}
		all = append(all, claim(a, 2, 1, 1, "10.0.0.1", 1), claim(b, 2, 1, 1, "10.0.0.1", 2))
		tb := New()
		for range rapid.IntRange(0, 2*len(all)).Draw(t, "changes") {
			switch rapid.IntRange(0, 20).Draw(t, "kind") {
			case 0:
				tb.DropOwner(a)
			case 1:
				tb.MergeBatch(net, Batch{Owner: b, UpTo: overlay.Version{Incarnation: 3}})
			default:
				tb.Merge(all[rapid.IntRange(0, len(all)-1).Draw(t, "claim")])
			}
			if d := cmp.Diff(names(standing(tb)), names(tb.Live(net))); d != "" {
				t.Fatalf("what is kept is not what stands:\n%s", d)
			}
		}
	})
}

// An owner that claims one address for thousands of endpoints costs no more than others.
func TestManyClaimsToOneAddress(t *testing.T) {
	tb := New()
	const many = 5000
	for i := range many {
		tb.Merge(claim(a, 1, uint64(i+1), i, "10.0.0.1", 1))
		if live := tb.Live(net); len(live) != 1 || live[0].Record.Number != uint64(i+1) {
			t.Fatalf("after claim %d stand %v", i+1, names(live))
		}
	}
	tb.Merge(claim(a, 1, many+1, many-1, "", 1))
	if live := tb.Live(net); len(live) != 1 || live[0].Record.Number != many-1 {
		t.Errorf("without the last stand %v", names(live))
	}
}

// The mark says what is held without a gap: a lost push is asked for again.
func TestTheMarkSkipsNoGap(t *testing.T) {
	tb := New()
	for _, n := range []uint64{1, 3, 4} {
		tb.Merge(claim(a, 1, n, int(n), "10.0.0.1", 1))
	}
	if m := tb.Mark(net, a); m.Number != 1 {
		t.Fatalf("with 1, 3 and 4 held the mark is %d, want 1", m.Number)
	}
	tb.Merge(claim(a, 1, 2, 2, "10.0.0.2", 1))
	if m := tb.Mark(net, a); m.Number != 4 {
		t.Errorf("with 1 to 4 held the mark is %d", m.Number)
	}
}

// A batch may lack numbers that later ones superseded; the mark passes them.
func TestABatchFillsGaps(t *testing.T) {
	tb := New()
	tb.MergeBatch(net, Batch{Owner: a, UpTo: overlay.Version{Incarnation: 1, Number: 9}, Claims: []overlay.Claim{claim(a, 1, 9, 1, "10.0.0.1", 1)}})
	if m := tb.Mark(net, a); m.Number != 9 {
		t.Errorf("the mark is %d, want 9", m.Number)
	}
}

func TestAnOwnerThatLostItsDisk(t *testing.T) {
	tb := New()
	tb.Merge(claim(a, 1, 1, 1, "10.0.0.1", 1))
	tb.Merge(claim(a, 2, 1, 2, "10.0.0.2", 1))
	if got := names(tb.Live(net)); len(got) != 1 || !strings.Contains(got[0], "10.0.0.2") {
		t.Errorf("live are %v, want the new life's alone", got)
	}
	if tb.Merge(claim(a, 1, 5, 1, "10.0.0.1", 1)) {
		t.Errorf("a record of a former life was taken in")
	}
}

// Two owners claim one address: the later grant wins, in every order of arrival.
func TestTheLaterGrantWins(t *testing.T) {
	older, newer := claim(a, 1, 7, 1, "10.0.0.1", 5), claim(b, 1, 1, 1, "10.0.0.1", 6)
	for _, order := range [][]overlay.Claim{{older, newer}, {newer, older}, {newer, older, newer}} {
		tb := New()
		for _, c := range order {
			tb.Merge(c)
		}
		if live := tb.Live(net); len(live) != 1 || live[0].Record.Owner != b {
			t.Errorf("live: %v", names(live))
		}
	}
}

func TestRemoval(t *testing.T) {
	tb := New()
	tb.Merge(claim(a, 1, 1, 1, "10.0.0.1", 1))
	tb.Merge(claim(b, 1, 1, 1, "10.0.0.2", 1))
	if !tb.DropOwner(a) || tb.DropOwner(a) {
		t.Errorf("a removed owner is dropped once")
	}
	tb.Merge(claim(b, 1, 2, 1, "", 0))
	if live := tb.Live(net); len(live) > 0 {
		t.Errorf("live: %v", names(live))
	}
	tb.DropNetwork(net)
	if slices.Contains(tb.Networks(), net) {
		t.Errorf("a dropped network is still there")
	}
}

// Granted to A, released, granted to B, and other addresses to A: in every order of arrival,
// with and without A's tombstone, the address ends at B.
func TestAnAddressEndsWhereItWasGrantedLast(t *testing.T) {
	said := []overlay.Claim{
		claim(a, 1, 1, 1, "10.0.0.1", 5),
		claim(a, 1, 2, 1, "", 0),          // detached, and released after it
		claim(b, 1, 1, 1, "10.0.0.1", 9),  // granted anew
		claim(a, 1, 3, 2, "10.0.0.2", 12), // another grant to A, later
		claim(a, 2, 1, 3, "10.0.0.3", 12), // and a later life of A's table
	}
	for _, tombstone := range []bool{true, false} {
		var permute func(left, order []overlay.Claim)
		permute = func(left, order []overlay.Claim) {
			if len(left) == 0 {
				table := New()
				for _, c := range order {
					table.Merge(c)
				}
				var at []string
				for _, c := range table.Live(net) {
					if c.Record.IPs[0] == netip.MustParseAddr("10.0.0.1") {
						at = append(at, string(c.Record.Owner[:1]))
					}
				}
				if !slices.Equal(at, []string{"b"}) {
					t.Fatalf("after %v it is at %v", order, at)
				}
			}
			for i, c := range left {
				permute(slices.Concat(left[:i], left[i+1:]), append(slices.Clip(order), c))
			}
		}
		said := said
		if !tombstone {
			said = slices.Delete(slices.Clone(said), 1, 2)
		}
		permute(said, nil)
	}
}
