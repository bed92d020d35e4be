package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/heddle-net/heddle/overlay"
)

var (
	// ErrFull is in the chain of the error for a lease without a free address.
	ErrFull = errors.New("no address is left in this node's lease")
	// ErrNotLeased is in the chain of the error for an address outside the lease.
	ErrNotLeased = errors.New("the address is not in this node's lease")
)

// Allocator gives the addresses of a node's lease to endpoints. The zero value has no lease.
// It is not safe for concurrent use.
type Allocator struct {
	lease overlay.Lease
	taken map[netip.Addr]bool
	ever  Set                   // addresses that were taken at some time
	freed map[netip.Addr]uint64 // those of them that are free, in the order of their freeing
	clock uint64
}

// SetLease replaces the lease. What was taken from the one before stays taken.
func (a *Allocator) SetLease(l overlay.Lease) { a.lease = l }

// Take takes an address of the subnet: the one asked for, which may lie outside the subnet's
// range for leases, or the lowest that was never taken, or else the one that was freed
// longest ago. Its errors have ErrFull or ErrNotLeased in their chain, or the kind Exists.
func (a *Allocator) Take(s overlay.Subnet, asked netip.Addr) (netip.Addr, error) {
	if asked.IsValid() {
		if _, ok := a.lease.Granted(asked); !ok || !s.Prefix.Contains(asked) {
			return netip.Addr{}, overlay.Errorf(overlay.NotFound, "%w: %s is not in %s", ErrNotLeased, asked, a.ranges(s))
		}
		if a.taken[asked] {
			return netip.Addr{}, overlay.Errorf(overlay.Exists, "address %s is in use on this node; take another of %s, or detach who has it", asked, a.ranges(s))
		}
		a.Mark(asked)
		return asked, nil
	}
	in := Leasable(s)
	for _, g := range a.lease.Grants {
		if r := (Range{g.First, g.Last}); r.overlaps(in) {
			for _, r := range a.ever.Lowest(clip(r, in), 1) {
				a.Mark(r.First)
				return r.First, nil
			}
		}
	}
	var best netip.Addr
	for ip, at := range a.freed {
		if _, ok := a.lease.Granted(ip); ok && in.overlaps(Range{ip, ip}) && (!best.IsValid() || at < a.freed[best]) {
			best = ip
		}
	}
	if !best.IsValid() {
		return netip.Addr{}, overlay.Errorf(overlay.Exhausted, "%w: all of %s is in use", ErrFull, a.ranges(s))
	}
	a.Mark(best)
	return best, nil
}

// Mark says that an address is taken: for endpoints that stood before a restart.
func (a *Allocator) Mark(ip netip.Addr) {
	if a.taken == nil {
		a.taken, a.freed = map[netip.Addr]bool{}, map[netip.Addr]uint64{}
	}
	a.taken[ip] = true
	a.ever.Add(Range{ip, ip})
	delete(a.freed, ip)
}

// Free gives an address back. Freeing one that is free does nothing.
func (a *Allocator) Free(ip netip.Addr) {
	if !a.taken[ip] {
		return
	}
	delete(a.taken, ip)
	a.clock++
	a.freed[ip] = a.clock
}

// Left counts what Take can still give of the subnet without being asked for an address.
func (a *Allocator) Left(s overlay.Subnet) int {
	in, n := Leasable(s), uint64(0)
	for _, g := range a.lease.Grants {
		if r := (Range{g.First, g.Last}); r.overlaps(in) {
			n += a.ever.Free(clip(r, in))
		}
	}
	for ip := range a.freed {
		if _, ok := a.lease.Granted(ip); ok && in.overlaps(Range{ip, ip}) {
			n++
		}
	}
	return int(min(n, 1<<30))
}

// clip is the part of r that lies in the other range, which it overlaps.
func clip(r, in Range) Range {
	if r.First.Less(in.First) {
		r.First = in.First
	}
	if in.Last.Less(r.Last) {
		r.Last = in.Last
	}
	return r
}

// ranges names the lease's part of a subnet, for messages.
func (a *Allocator) ranges(s overlay.Subnet) string {
	var set Set // joins runs that were granted at different times
	for _, g := range a.lease.Grants {
		if s.Prefix.Contains(g.First) {
			set.Add(Range{g.First, g.Last})
		}
	}
	var out []string
	for _, r := range set.ranges {
		if r.First == r.Last {
			out = append(out, r.First.String())
		} else {
			out = append(out, fmt.Sprintf("%s-%s", r.First, r.Last))
		}
	}
	switch {
	case len(out) == 0:
		return "the lease, which has no address of " + s.Prefix.String()
	case len(out) > 8:
		out = append(out[:8], "…")
	}
	return "the lease (" + strings.Join(out, ", ") + ")"
}
