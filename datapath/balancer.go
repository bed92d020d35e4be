package datapath

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Balancer balances what programs in a namespace send to service addresses: there, before it
// leaves. Key: NS.
type Balancer struct {
	NS   NS
	VIPs []*VIP // sorted by service, no address twice
}

// VIP is a service's address, or one of each family. It is never changed: what is the same pointer
// in two Balancers or Configs is the same, so that to compare them costs little.
type VIP struct {
	Service string // its ID
	Addrs   []netip.Addr
	Ports   []VIPPort
}

// VIPPort is a port of a VIP. A new connection, or UDP flow, goes to one of the Backends of its own
// family, each as likely as another; without any it is refused at once, as is what is for a port that
// is none. Flows go on while their backend is among Backends or Kept; others end.
type VIPPort struct {
	Proto    string // "tcp" or "udp"
	Port     uint16
	Backends []netip.AddrPort // sorted
	Kept     []netip.AddrPort // sorted
}

// Front is where a VIP takes connections.
type Front struct {
	Addr  netip.Addr
	Proto string
	Port  uint16
}

// VIPChange is what has become of a VIP. Was is nil where it is new, and Now where it is gone.
type VIPChange struct{ Was, Now *VIP }

// ErrOtherGeneration says that the rules of a namespace are not of the generation that a change was
// for: others have changed some.
var ErrOtherGeneration = errors.New("others have changed rules meanwhile")

// Traffic is how many new connections and UDP flows a balancer has led to a backend of a service, since
// the backend has its place in the rules: a change of the service's backends may begin to count anew.
type Traffic struct {
	Service string
	Backend netip.Addr
	Flows   uint64
}

// Standing is what is there of a Balancer.
type Standing struct {
	Generation uint32 // of all rules in the namespace: it changes with any of them
	There      bool   // there is something of heddle's
	Sound      bool   // what all VIPs share is there; without it all is to be made anew
	VIPs       []*VIP // sorted; of those that are not wanted so, where they lead, and an ID of their own if no wanted one has their address
}

// Has says whether an address is the VIP's.
func (v *VIP) Has(a netip.Addr) bool { return v != nil && slices.Contains(v.Addrs, a) }

// Addresses are the VIP's; none of nil.
func (v *VIP) Addresses() []netip.Addr {
	if v == nil {
		return nil
	}
	return v.Addrs
}

// Fronts are the VIP's addresses with its ports; none of nil.
func (v *VIP) Fronts() (out []Front) {
	if v == nil {
		return nil
	}
	for _, a := range v.Addrs {
		for _, p := range v.Ports {
			out = append(out, Front{a, p.Proto, p.Port})
		}
	}
	return out
}

// At is the port of a front; ok is false where the VIP has no such.
func (v *VIP) At(f Front) (p VIPPort, ok bool) {
	if !v.Has(f.Addr) {
		return p, false
	}
	for _, p := range v.Ports {
		if p.Proto == f.Proto && p.Port == f.Port {
			return p, true
		}
	}
	return p, false
}

// Behind are the backends of a front, which are of its family.
func (p VIPPort) Behind(f Front) (out []netip.AddrPort) {
	for _, b := range p.Backends {
		if b.Addr().Is4() == f.Addr.Is4() {
			out = append(out, b)
		}
	}
	return out
}

// Equal says whether two VIPs lead to the same.
func (v *VIP) Equal(o *VIP) bool {
	return v.Service == o.Service && slices.Equal(v.Addrs, o.Addrs) && slices.EqualFunc(v.Ports, o.Ports, func(a, b VIPPort) bool {
		return a.Proto == b.Proto && a.Port == b.Port && slices.Equal(a.Backends, b.Backends) && slices.Equal(a.Kept, b.Kept)
	})
}

// Keeps says whether a flow to a backend goes on.
func (p VIPPort) Keeps(b netip.AddrPort) bool {
	return slices.Contains(p.Backends, b) || slices.Contains(p.Kept, b)
}

// Ends says whether flows may have to end because of the change: those to a backend that was used
// or kept, and isn't now.
func (c VIPChange) Ends() bool {
	for _, f := range c.Was.Fronts() {
		was, _ := c.Was.At(f)
		now, _ := c.Now.At(f)
		for _, b := range slices.Concat(was.Backends, was.Kept) {
			if b.Addr().Is4() == f.Addr.Is4() && !now.Keeps(b) {
				return true
			}
		}
	}
	return false
}

// ChangedVIPs is what has changed between two lists of VIPs: first those that are gone, then those that
// lead elsewhere, then the new ones. One with other addresses is gone and new: its addresses may have
// been another's.
func ChangedVIPs(was, now []*VIP) []VIPChange {
	for len(was) > 0 && len(now) > 0 && was[0] == now[0] {
		was, now = was[1:], now[1:]
	}
	for len(was) > 0 && len(now) > 0 && was[len(was)-1] == now[len(now)-1] {
		was, now = was[:len(was)-1], now[:len(now)-1]
	}
	if len(was) == 0 && len(now) == 0 {
		return nil
	}
	before := make(map[string]*VIP, len(was))
	for _, v := range was {
		before[v.Service] = v
	}
	var gone, changed, fresh []VIPChange
	for _, v := range now {
		switch b := before[v.Service]; {
		case b == v:
			delete(before, v.Service)
		case b != nil && slices.Equal(b.Addrs, v.Addrs):
			changed = append(changed, VIPChange{b, v})
			delete(before, v.Service)
		default:
			fresh = append(fresh, VIPChange{Now: v})
		}
	}
	for _, v := range was {
		if before[v.Service] == v {
			gone = append(gone, VIPChange{Was: v})
		}
	}
	return slices.Concat(gone, changed, fresh)
}

// WithChanges are the VIPs after the changes, sorted.
func WithChanges(vips []*VIP, changes []VIPChange) []*VIP {
	is := make(map[string]*VIP, len(vips))
	for _, v := range vips {
		is[v.Service] = v
	}
	for _, c := range changes {
		if c.Now == nil {
			delete(is, c.Was.Service)
		} else {
			is[c.Now.Service] = c.Now
		}
	}
	return slices.SortedFunc(maps.Values(is), func(a, b *VIP) int { return strings.Compare(a.Service, b.Service) })
}
