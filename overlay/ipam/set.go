package ipam

import (
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/overlay"
)

// Range is a run of addresses of one family, both ends included.
type Range struct{ First, Last netip.Addr }

// PrefixRange is the run of a prefix's addresses.
func PrefixRange(p netip.Prefix) Range {
	return Range{p.Masked().Addr(), overlay.LastAddr(p)}
}

// Len is the number of addresses, or math.MaxUint64 where there are more.
func (r Range) Len() uint64 {
	a, b := r.First.As16(), r.Last.As16()
	lo, borrow := bits.Sub64(binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(a[8:]), 0)
	hi, _ := bits.Sub64(binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(a[:8]), borrow)
	if hi > 0 || lo == math.MaxUint64 {
		return math.MaxUint64
	}
	return lo + 1
}

// head is the run of the first n addresses of the range; n is at least 1.
func (r Range) head(n uint64) Range {
	if n >= r.Len() {
		return r
	}
	b := r.First.As16()
	lo, carry := bits.Add64(binary.BigEndian.Uint64(b[8:]), n-1, 0)
	binary.BigEndian.PutUint64(b[8:], lo)
	binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])+carry)
	last := netip.AddrFrom16(b)
	if r.First.Is4() {
		last = last.Unmap()
	}
	return Range{r.First, last}
}

func (r Range) overlaps(o Range) bool {
	return r.First.BitLen() == o.First.BitLen() && r.First.Compare(o.Last) <= 0 && o.First.Compare(r.Last) <= 0
}

// Set is a set of addresses of both families. The zero value is empty. It is not safe for
// concurrent use.
type Set struct {
	ranges []Range // sorted; they neither overlap nor touch
}

// Clone is a copy that changes apart from the set.
func (s *Set) Clone() *Set { return &Set{slices.Clone(s.ranges)} }

// after is the index of the first range that ends at a or later.
func (s *Set) after(a netip.Addr) int {
	i, _ := slices.BinarySearchFunc(s.ranges, a, func(r Range, a netip.Addr) int { return r.Last.Compare(a) })
	return i
}

// Has says whether the address is in the set.
func (s *Set) Has(a netip.Addr) bool {
	_, ok := s.overlap(Range{a, a})
	return ok
}

// overlap is the lowest range of the set that shares an address with r.
func (s *Set) overlap(r Range) (Range, bool) {
	if i := s.after(r.First); i < len(s.ranges) && s.ranges[i].overlaps(r) {
		return s.ranges[i], true
	}
	return Range{}, false
}

// Add puts a range in.
func (s *Set) Add(r Range) {
	from := r.First
	if p := from.Prev(); p.IsValid() {
		from = p // a range that ends right before r grows
	}
	i := s.after(from)
	j := i
	for ; j < len(s.ranges); j++ {
		o := s.ranges[j]
		if !o.overlaps(r) && o.Last.Next() != r.First && r.Last.Next() != o.First {
			break
		}
		if o.First.Less(r.First) {
			r.First = o.First
		}
		if r.Last.Less(o.Last) {
			r.Last = o.Last
		}
	}
	s.ranges = slices.Replace(s.ranges, i, j, r)
}

// Remove takes a range out.
func (s *Set) Remove(r Range) {
	i := s.after(r.First)
	j := i
	var rest []Range
	for ; j < len(s.ranges) && s.ranges[j].overlaps(r); j++ {
		if o := s.ranges[j]; o.First.Less(r.First) {
			rest = append(rest, Range{o.First, r.First.Prev()})
		}
		if o := s.ranges[j]; r.Last.Less(o.Last) {
			rest = append(rest, Range{r.Last.Next(), o.Last})
		}
	}
	s.ranges = slices.Replace(s.ranges, i, j, rest...)
}

// gaps calls f with each run of addresses of in that is not in the set, lowest first, until
// f returns false.
func (s *Set) gaps(in Range, f func(Range) bool) {
	for i := s.after(in.First); ; i++ {
		if i == len(s.ranges) || !s.ranges[i].overlaps(in) {
			f(in)
			return
		}
		o := s.ranges[i]
		if in.First.Less(o.First) && !f(Range{in.First, o.First.Prev()}) {
			return
		}
		if !o.Last.Less(in.Last) {
			return
		}
		in.First = o.Last.Next()
	}
}

// Free counts the addresses of in that are not in the set; math.MaxUint64 stands for more.
func (s *Set) Free(in Range) uint64 {
	var n uint64
	s.gaps(in, func(r Range) bool {
		sum, carry := bits.Add64(n, r.Len(), 0)
		if n = sum; carry > 0 {
			n = math.MaxUint64
		}
		return n < math.MaxUint64
	})
	return n
}

// Lowest is the n lowest addresses of in that are not in the set, in runs; fewer where there
// are fewer.
func (s *Set) Lowest(in Range, n uint64) []Range {
	var out []Range
	if n == 0 {
		return nil
	}
	s.gaps(in, func(r Range) bool {
		r = r.head(n)
		out = append(out, r)
		n -= r.Len()
		return n > 0
	})
	return out
}

// Highest is the highest address of in that is not in the set.
func (s *Set) Highest(in Range) (netip.Addr, bool) {
	a := in.Last
	if r, taken := s.overlap(Range{a, a}); taken {
		a = r.First.Prev()
	}
	return a, a.IsValid() && !a.Less(in.First)
}

// Ranges is the set as sorted runs that neither overlap nor touch. Nobody may change them.
func (s *Set) Ranges() []Range { return s.ranges }
