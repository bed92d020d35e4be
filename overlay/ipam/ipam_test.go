package ipam

import (
	"errors"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/overlay"
	"pgregory.net/rapid"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func run(a, b string) Range        { return Range{addr(a), addr(b)} }

func text(rs []Range) string {
	var out []string
	for _, r := range rs {
		out = append(out, r.First.String()+"-"+r.Last.String())
	}
	return strings.Join(out, " ")
}

func TestRangeLen(t *testing.T) {
	for _, tc := range []struct {
		name string
		r    Range
		want uint64
	}{
		{"one", run("10.0.0.1", "10.0.0.1"), 1},
		{"all IPv4", PrefixRange(prefix("0.0.0.0/0")), 1 << 32},
		{"across 64 bits", run("fd00::ffff:ffff:ffff:ffff", "fd00:0:0:1::"), 2},
		{"/65", PrefixRange(prefix("fd00::/65")), 1 << 63},
		{"/64", PrefixRange(prefix("fd00::/64")), math.MaxUint64},
		{"/48", PrefixRange(prefix("fd00::/48")), math.MaxUint64},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.r.Len(); got != tc.want {
				t.Errorf("%d, want %d", got, tc.want)
			}
		})
	}
	if got := PrefixRange(prefix("fd00::/48")).head(1 << 63); got.Len() != 1<<63 {
		t.Errorf("head: %v", got)
	}
	if got := run("fd00::ffff:ffff:ffff:fffe", "fd00:0:0:2::").head(4); got.Last != addr("fd00:0:0:1::1") {
		t.Errorf("head across 64 bits: %v", got)
	}
}

// TestSetIsExact compares a set with a plain list of addresses.
func TestSetIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Set
		plain := map[netip.Addr]bool{}
		base := rapid.SampledFrom([]string{"10.0.0.0", "255.255.255.224", "fd00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffe0", "::"}).Draw(t, "base")
		var all []netip.Addr
		for a := addr(base); a.IsValid() && len(all) < 32; a = a.Next() {
			all = append(all, a)
		}
		other := Range{addr("9.0.0.0"), addr("9.0.0.9")} // of another family, sometimes
		s.Add(other)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			i := rapid.IntRange(0, len(all)-1).Draw(t, "first")
			j := rapid.IntRange(i, len(all)-1).Draw(t, "last")
			add := rapid.Bool().Draw(t, "add")
			if add {
				s.Add(Range{all[i], all[j]})
			} else {
				s.Remove(Range{all[i], all[j]})
			}
			for _, a := range all[i : j+1] {
				plain[a] = add
			}
			i = rapid.IntRange(0, len(all)-1).Draw(t, "from")
			in := Range{all[i], all[len(all)-1]}
			var free []netip.Addr
			for _, a := range all[i:] {
				if !plain[a] {
					free = append(free, a)
				}
				if s.Has(a) != plain[a] {
					t.Fatalf("%s: set %v, want %v", a, s.Has(a), plain[a])
				}
			}
			if s.Free(in) != uint64(len(free)) {
				t.Fatalf("free: %d, want %d", s.Free(in), len(free))
			}
			if high, ok := s.Highest(in); ok != (len(free) > 0) || ok && high != free[len(free)-1] {
				t.Fatalf("highest: %v %v of %v", high, ok, free)
			}
			n := rapid.IntRange(0, 40).Draw(t, "n")
			var got []netip.Addr
			for _, r := range s.Lowest(in, uint64(n)) {
				for a := r.First; a.IsValid() && !r.Last.Less(a); a = a.Next() {
					got = append(got, a)
				}
			}
			if want := free[:min(n, len(free))]; !slices.Equal(got, want) {
				t.Fatalf("lowest %d: %v, want %v", n, got, want)
			}
			for k := 1; k < len(s.ranges); k++ {
				if a, b := s.ranges[k-1], s.ranges[k]; !a.Last.Less(b.First) || a.Last.Next() == b.First {
					t.Fatalf("ranges touch: %v", text(s.ranges))
				}
			}
		}
		if !s.Has(addr("9.0.0.5")) {
			t.Fatal("the other range is gone")
		}
	})
}

func TestNextSubnet(t *testing.T) {
	pools := []netip.Prefix{prefix("10.64.0.0/11"), prefix("fd12:3456:789a::/48"), prefix("192.168.0.0/23")}
	for _, tc := range []struct {
		name   string
		v4     bool
		length int
		used   []string
		avoid  []string
		want   string
	}{
		{"first", true, 24, nil, nil, "10.64.0.0/24"},
		{"IPv6", false, 64, nil, nil, "fd12:3456:789a::/64"},
		{"lowest gap", true, 24, []string{"10.64.0.0/24", "10.64.2.0/24"}, nil, "10.64.1.0/24"},
		{"a small one takes its block", true, 24, []string{"10.64.0.128/30"}, nil, "10.64.1.0/24"},
		{"a large one", true, 24, []string{"10.64.0.0/16"}, nil, "10.65.0.0/24"},
		{"what nodes route", true, 24, []string{"10.64.0.0/24"}, []string{"10.64.1.0/24", "10.64.2.7/32"}, "10.64.3.0/24"},
		{"a default route is in nobody's way", true, 24, nil, []string{"0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1"}, "10.64.0.0/24"},
		{"the next pool", true, 24, []string{"10.0.0.0/8"}, []string{"192.168.0.0/24"}, "192.168.1.0/24"},
		{"none is left", true, 24, []string{"10.0.0.0/8", "192.168.0.0/16"}, nil, ""},
		{"IPv6 behind a huge one", false, 64, []string{"fd12:3456:789a::/49"}, nil, "fd12:3456:789a:8000::/64"},
		{"IPv6 is full", false, 64, []string{"fd00::/8"}, nil, ""},
		{"the pool is too small", true, 10, nil, nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var used Set
			for _, s := range tc.used {
				used.Add(PrefixRange(prefix(s)))
			}
			var avoid []netip.Prefix
			for _, s := range tc.avoid {
				avoid = append(avoid, prefix(s))
			}
			got, ok := NextSubnet(pools, tc.v4, tc.length, &used, avoid)
			if ok != (tc.want != "") || (ok && got != prefix(tc.want)) {
				t.Errorf("%v %v, want %q", got, ok, tc.want)
			}
		})
	}
}

// TestPoolToItsEnd takes every subnet of a pool, around one in the middle.
func TestPoolToItsEnd(t *testing.T) {
	var used Set
	used.Add(PrefixRange(prefix("10.0.1.0/24")))
	n := 0
	for {
		p, ok := NextSubnet([]netip.Prefix{prefix("10.0.0.0/22")}, true, 26, &used, nil)
		if !ok {
			break
		}
		if r, over := used.overlap(PrefixRange(p)); over {
			t.Fatalf("%s overlaps %v", p, r)
		}
		used.Add(PrefixRange(p))
		n++
	}
	if n != 12 || len(used.ranges) != 1 {
		t.Errorf("%d subnets, %s", n, text(used.ranges))
	}
}

func TestPick(t *testing.T) {
	net29 := overlay.Subnet{Prefix: prefix("10.1.0.0/29"), Gateway: addr("10.1.0.1"), Aux: map[string]netip.Addr{"printer": addr("10.1.0.4")}}
	ranged := overlay.Subnet{Prefix: prefix("10.2.0.0/24"), Gateway: addr("10.2.0.1"), Range: prefix("10.2.0.128/30")}
	six := overlay.Subnet{Prefix: prefix("fd00::/64"), Gateway: addr("fd00::1")}
	for _, tc := range []struct {
		name    string
		subnets []overlay.Subnet
		n       uint64
		want    string
		free    uint64
	}{
		{"around the aux address", []overlay.Subnet{net29}, 3, "10.1.0.2-10.1.0.3 10.1.0.5-10.1.0.5", 4},
		{"to the end", []overlay.Subnet{net29}, 100, "10.1.0.2-10.1.0.3 10.1.0.5-10.1.0.6", 4},
		{"inside the range", []overlay.Subnet{ranged}, 100, "10.2.0.128-10.2.0.131", 4},
		{"the next subnet", []overlay.Subnet{net29, ranged}, 5, "10.1.0.2-10.1.0.3 10.1.0.5-10.1.0.6 10.2.0.128-10.2.0.128", 8},
		{"IPv6", []overlay.Subnet{six}, 8, "fd00::2-fd00::9", math.MaxUint64},
	} {
		t.Run(tc.name, func(t *testing.T) {
			used := &Set{}
			for _, s := range tc.subnets {
				for _, r := range Reserved(s).Ranges() {
					used.Add(r)
				}
			}
			if got := text(Pick(tc.subnets, used, tc.n)); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
			if got := Free(tc.subnets, used); got != tc.free && !(tc.free == math.MaxUint64 && got > 1<<63) {
				t.Errorf("%d free, want %d", got, tc.free)
			}
		})
	}
}

func TestGateway(t *testing.T) {
	for _, tc := range []struct{ name, prefix, aux, want string }{
		{"first", "10.0.0.0/24", "10.0.0.9", "10.0.0.1"},
		{"behind an aux address", "10.0.0.0/24", "10.0.0.1", "10.0.0.2"},
		{"IPv6", "fd00::/64", "fd00::9", "fd00::1"},
		{"inside the prefix, not the range", "10.0.0.0/30", "10.0.0.1", "10.0.0.2"},
	} {
		s := overlay.Subnet{Prefix: prefix(tc.prefix), Aux: map[string]netip.Addr{"a": addr(tc.aux)}, Range: prefix(tc.prefix)}
		if got := Gateway(s); got != addr(tc.want) {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	full := overlay.Subnet{Prefix: prefix("10.0.0.0/30"), Aux: map[string]netip.Addr{"a": addr("10.0.0.1"), "b": addr("10.0.0.2")}}
	if got := Gateway(full); got.IsValid() {
		t.Errorf("a full subnet has gateway %s", got)
	}
}

func TestGrantSize(t *testing.T) {
	for _, tc := range []struct{ free, held, want uint64 }{
		{0, 0, 1}, {1, 0, 1}, {15, 0, 1}, {16, 0, 2}, {64, 0, 8}, {1 << 40, 0, 8}, {1 << 40, 32, 8}, {1 << 40, 400, 100}, {80, 400, 10},
	} {
		if got := GrantSize(tc.free, tc.held); got != tc.want {
			t.Errorf("%d free, %d held: %d, want %d", tc.free, tc.held, got, tc.want)
		}
	}
}

var subnet = overlay.Subnet{Prefix: prefix("10.1.0.0/24"), Gateway: addr("10.1.0.1"), Range: prefix("10.1.0.0/25")}

func leased(grants ...Range) overlay.Lease {
	var l overlay.Lease
	for i, r := range grants {
		l.Grants = append(l.Grants, overlay.Grant{First: r.First, Last: r.Last, Index: uint64(i + 1)})
	}
	return l
}

func TestAllocator(t *testing.T) {
	var a Allocator
	if _, err := a.Take(subnet, netip.Addr{}); !errors.Is(err, ErrFull) {
		t.Fatalf("without a lease: %v", err)
	}
	a.SetLease(leased(run("10.1.0.2", "10.1.0.3"), run("10.1.0.4", "10.1.0.4"), run("10.1.0.200", "10.1.0.200"), run("fd00::2", "fd00::9")))
	take := func(want string) {
		t.Helper()
		if got, err := a.Take(subnet, netip.Addr{}); err != nil || got != addr(want) {
			t.Fatalf("%s %v, want %s", got, err, want)
		}
	}
	refused := func(asked string, parts ...string) {
		t.Helper()
		var ip netip.Addr
		if asked != "" {
			ip = addr(asked)
		}
		_, err := a.Take(subnet, ip)
		for _, p := range parts {
			if err == nil || !strings.Contains(err.Error(), p) {
				t.Fatalf("%v lacks %q", err, p)
			}
		}
	}
	if a.Left(subnet) != 3 {
		t.Fatalf("%d left", a.Left(subnet))
	}
	take("10.1.0.2")
	take("10.1.0.3")
	a.Free(addr("10.1.0.3"))
	a.Free(addr("10.1.0.2"))
	a.Free(addr("10.1.0.2")) // again
	a.Free(addr("10.1.0.77"))
	if a.Left(subnet) != 3 {
		t.Fatalf("%d left", a.Left(subnet))
	}
	take("10.1.0.4") // the one that was never used
	take("10.1.0.3") // then the one freed first
	refused("10.1.0.3", "in use", "10.1.0.2-10.1.0.4, 10.1.0.200")
	refused("10.1.0.5", "10.1.0.5 is not in", "10.1.0.2-10.1.0.4, 10.1.0.200")
	refused("fd00::2", "is not in")
	if got, err := a.Take(subnet, addr("10.1.0.200")); err != nil || got != addr("10.1.0.200") {
		t.Fatalf("outside the range, by name: %v", err)
	}
	a.Free(addr("10.1.0.200"))
	take("10.1.0.2")
	refused("", "all of the lease (10.1.0.2-10.1.0.4, 10.1.0.200) is in use")
	a.Free(addr("10.1.0.2"))
	a.SetLease(leased(run("10.1.0.3", "10.1.0.4"))) // the freed one is another node's
	refused("", "is in use")
	a.SetLease(leased())
	refused("10.1.0.3", "has no address of 10.1.0.0/24")
}

// TestAllocatorIsExact takes and frees at random: nothing twice, nothing outside, all usable.
func TestAllocatorIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a Allocator
		n := rapid.IntRange(1, 12).Draw(t, "size")
		last := PrefixRange(subnet.Prefix).head(uint64(n) + 2).Last
		a.SetLease(leased(Range{addr("10.1.0.2"), last}))
		held := map[netip.Addr]bool{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "take") {
				ip, err := a.Take(subnet, netip.Addr{})
				if (err != nil) != (len(held) == n) {
					t.Fatalf("%d of %d held: %v", len(held), n, err)
				}
				if err == nil && (held[ip] || ip.Less(addr("10.1.0.2")) || last.Less(ip)) {
					t.Fatalf("took %s", ip)
				}
				if err == nil {
					held[ip] = true
				}
			} else {
				for ip := range held {
					a.Free(ip)
					delete(held, ip)
					break
				}
			}
			if a.Left(subnet) != n-len(held) {
				t.Fatalf("%d left, want %d", a.Left(subnet), n-len(held))
			}
		}
	})
}
