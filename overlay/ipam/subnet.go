package ipam

import (
	"math"
	"net/netip"

	"github.com/heddle-net/heddle/overlay"
)

// NextSubnet is the lowest prefix of the length in the first pool of the family that has one
// which shares no address with used or avoid. A pool smaller than the length has none.
// Default routes in avoid are ignored, whole or in halves: everything lies in them.
func NextSubnet(pools []netip.Prefix, v4 bool, length int, used *Set, avoid []netip.Prefix) (netip.Prefix, bool) {
	for _, pool := range pools {
		if pool.Addr().Is4() != v4 || pool.Bits() > length {
			continue
		}
		c := netip.PrefixFrom(pool.Masked().Addr(), length)
		for c.IsValid() && pool.Contains(c.Addr()) {
			last, taken := taken(c, used, avoid)
			if !taken {
				return c, true
			}
			c = following(last, length)
		}
	}
	return netip.Prefix{}, false
}

// taken is the end of something that is in the candidate's way.
func taken(c netip.Prefix, used *Set, avoid []netip.Prefix) (netip.Addr, bool) {
	if r, ok := used.overlap(PrefixRange(c)); ok {
		return r.Last, true
	}
	for _, p := range avoid {
		if p.Bits() > 1 && p.Overlaps(c) {
			return overlay.LastAddr(p), true
		}
	}
	return netip.Addr{}, false
}

// following is the first prefix of the length that lies wholly behind the address; it is not
// valid where there is none.
func following(a netip.Addr, length int) netip.Prefix {
	p, err := a.Prefix(length)
	if err != nil {
		return netip.Prefix{}
	}
	if next := overlay.LastAddr(p).Next(); next.IsValid() {
		return netip.PrefixFrom(next, length)
	}
	return netip.Prefix{}
}

// Gateway is the lowest usable address of the subnet that is none of its aux addresses.
func Gateway(s overlay.Subnet) netip.Addr {
	s.Gateway, s.Range = netip.Addr{}, netip.Prefix{}
	for _, r := range Reserved(s).Lowest(PrefixRange(s.Prefix), 1) {
		return r.First
	}
	return netip.Addr{}
}

// Reserved are the addresses of the subnet that are never granted: the first (the network,
// or the subnet-router anycast address of RFC 4291), the IPv4 broadcast address, the gateway
// and the aux addresses.
func Reserved(s overlay.Subnet) *Set {
	set := &Set{}
	all := PrefixRange(s.Prefix)
	set.Add(Range{all.First, all.First})
	if all.Last.Is4() {
		set.Add(Range{all.Last, all.Last})
	}
	if s.Gateway.IsValid() {
		set.Add(Range{s.Gateway, s.Gateway})
	}
	for _, a := range s.Aux {
		set.Add(Range{a, a})
	}
	return set
}

// Leasable is the part of the subnet that leases come from.
func Leasable(s overlay.Subnet) Range {
	if s.Range.IsValid() {
		return PrefixRange(s.Range)
	}
	return PrefixRange(s.Prefix)
}

// GrantSize is how many addresses of a family a node gets at a time: an eighth of what is
// free, at least 1, at most 8 or a quarter of what it holds. The last lets a node with very
// many endpoints keep a short list of grants.
func GrantSize(free, held uint64) uint64 {
	return max(1, min(free/8, max(8, held/4)))
}

// Pick is the n lowest addresses of the subnets, all of one family, that are not in used, in
// runs and in the order of the subnets. used holds what is reserved.
func Pick(subnets []overlay.Subnet, used *Set, n uint64) []Range {
	var out []Range
	for _, s := range subnets {
		for _, r := range used.Lowest(Leasable(s), n) {
			out = append(out, r)
			n -= r.Len()
		}
	}
	return out
}

// Free counts the addresses that Pick could give; math.MaxUint64 stands for more.
func Free(subnets []overlay.Subnet, used *Set) uint64 {
	var n uint64
	for _, s := range subnets {
		f := used.Free(Leasable(s))
		if n += f; n < f {
			return math.MaxUint64
		}
	}
	return n
}
