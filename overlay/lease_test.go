package overlay

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// TestSplit compares Split, address by address, with what it stands for.
func TestSplit(t *testing.T) {
	at := func(v4 bool, i int) netip.Addr {
		if v4 {
			return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		}
		return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i)})
	}
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string, most int) (out []Grant) {
			for range rapid.IntRange(0, most).Draw(t, name) {
				v4, first := rapid.Bool().Draw(t, "v4"), rapid.IntRange(0, 30).Draw(t, "first")
				last := rapid.IntRange(first, 31).Draw(t, "last")
				out = append(out, Grant{at(v4, first), at(v4, last), uint64(rapid.IntRange(1, 2).Draw(t, "index"))})
			}
			return out
		}
		grants, runs := draw("grants", 4), draw("runs", 4)
		left, taken := Split(grants, runs)
		count := func(gs []Grant, a netip.Addr, index uint64) (n int) {
			for _, g := range gs {
				if g.Has(a) && g.Index == index {
					n++
				}
			}
			return n
		}
		for _, v4 := range []bool{true, false} {
			for i := range 32 {
				for _, index := range []uint64{1, 2} {
					a := at(v4, i)
					had, meant := count(grants, a, index), count(runs, a, index) > 0
					l, k := count(left, a, index), count(taken, a, index)
					if (meant && (l != 0 || k != had)) || (!meant && (l != had || k != 0)) {
						t.Fatalf("%s of index %d: %d left and %d taken of %d, released %v", a, index, l, k, had, meant)
					}
				}
			}
		}
	})
}

func TestCheckRelease(t *testing.T) {
	tr := trusting(t)
	with := func(f func(*Release)) Release { r := release(); f(&r); return r }
	for _, tc := range []struct {
		name string
		s    Signed
		kind Kind
	}{
		{"signed by another node", signed(t, DomainRelease, "b", release()), Denied},
		{"signed as something else", signed(t, DomainLease, "a", release()), Denied},
		{"of another epoch", signed(t, DomainRelease, "a", with(func(r *Release) { r.Epoch++ })), Denied},
		{"of another node", signed(t, DomainRelease, "a", with(func(r *Release) { r.Node = nodeB })), Denied},
		{"a run that ends before it begins", signed(t, DomainRelease, "a", with(func(r *Release) {
			r.Grants = []Grant{{r.Grants[0].Last.Next(), r.Grants[0].First, 1}}
		})), Invalid},
		{"of a later form", signed(t, DomainRelease, "a", with(func(r *Release) { r.V = 9 })), Unread},
	} {
		if _, err := tr.CheckRelease(tc.s, nodeA, pub32("a")); KindOf(err) != tc.kind {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.kind)
		}
	}
}
