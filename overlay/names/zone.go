package names

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/services"
)

// Zone is what is known of one network.
type Zone struct {
	overlay.Network
	Partial  bool
	claims   []*overlay.Claim
	own      []Endpoint
	services []*services.Service
	byName   map[string]*services.Service // in lower case
	byVIP    map[netip.Addr]*services.Service
	names    *index[string] // in lower case
	addrs    *index[[16]byte]
}

// next is the zone after z, which may be nil.
func (z *Zone) next(self overlay.NodeID, n Network, own []Endpoint) *Zone {
	if z == nil {
		z = &Zone{names: &index[string]{}, addrs: &index[[16]byte]{}}
	}
	next := &Zone{Network: n.Network, Partial: n.Partial, claims: n.Claims, own: own, services: n.Services, byName: z.byName, byVIP: z.byVIP}
	if !slices.Equal(z.services, n.Services) {
		next.byName, next.byVIP = map[string]*services.Service{}, map[netip.Addr]*services.Service{}
		for _, s := range n.Services {
			next.byName[strings.ToLower(s.Name)] = s
			for _, ip := range s.VIPs {
				next.byVIP[ip] = s
			}
		}
	}
	c := change{from: z}
	differences(z.claims, n.Claims, compareClaims, func(old, now *overlay.Claim) {
		if old != nil && old.Record.Owner != self && named(&old.Record) {
			c.remove(&old.Record)
		}
		if now != nil && now.Record.Owner != self && named(&now.Record) {
			c.add(&now.Record)
		}
	})
	if !slices.EqualFunc(z.own, own, Endpoint.equal) {
		for _, o := range z.own {
			c.remove(o.record(self))
		}
		for _, o := range own {
			c.add(o.record(self))
		}
	}
	next.names, next.addrs = c.done()
	return next
}

// change is what becomes of a zone's indexes.
type change struct {
	from  *Zone
	names *edit[string] // nil while nothing changes
	addrs *edit[[16]byte]
}

func (c *change) add(r *overlay.Record)    { c.do(r, (*edit[string]).add, (*edit[[16]byte]).add) }
func (c *change) remove(r *overlay.Record) { c.do(r, (*edit[string]).remove, (*edit[[16]byte]).remove) }

func (c *change) do(r *overlay.Record, name func(*edit[string], string, uint32, *overlay.Record), addr func(*edit[[16]byte], [16]byte, uint32, *overlay.Record)) {
	if c.names == nil {
		c.names, c.addrs = c.from.names.edit(), c.from.addrs.edit()
	}
	workload := strings.ToLower(r.Workload)
	if workload != "" {
		name(c.names, workload, hashOf(workload), r)
	}
	for i, alias := range r.Names {
		if alias = strings.ToLower(alias); alias != workload && alias != "" && !slices.ContainsFunc(r.Names[:i], func(s string) bool { return strings.EqualFold(s, alias) }) {
			name(c.names, alias, hashOf(alias), r)
		}
	}
	for _, ip := range r.IPs {
		key := ip.As16()
		addr(c.addrs, key, hashOf(key[:]), r)
	}
}

func (c *change) done() (*index[string], *index[[16]byte]) {
	if c.names == nil {
		return c.from.names, c.from.addrs
	}
	return c.names.now, c.addrs.now
}

// called are the records with a name, in lower case.
func (z *Zone) called(name string) iter.Seq[*overlay.Record] { return z.names.find(name, hashOf(name)) }

// at are those with an address.
func (z *Zone) at(ip netip.Addr) iter.Seq[*overlay.Record] {
	key := ip.As16()
	return z.addrs.find(key, hashOf(key[:]))
}

func compareClaims(a, b *overlay.Claim) int {
	return cmp.Or(cmp.Compare(a.Record.Endpoint, b.Record.Endpoint), cmp.Compare(a.Record.Owner, b.Record.Owner))
}

// differences tells what differs between two sorted lists: what is in one alone, beside nil, and
// what has another value in each.
func differences[T any](old, now []*T, compare func(a, b *T) int, tell func(old, now *T)) {
	for len(old) > 0 || len(now) > 0 {
		order := 0
		switch {
		case len(now) == 0:
			order = -1
		case len(old) == 0:
			order = 1
		case old[0] != now[0]:
			order = compare(old[0], now[0])
		}
		switch {
		case order < 0:
			tell(old[0], nil)
			old = old[1:]
		case order > 0:
			tell(nil, now[0])
			now = now[1:]
		default:
			if old[0] != now[0] {
				tell(old[0], now[0])
			}
			old, now = old[1:], now[1:]
		}
	}
}

// named says whether what a record tells of has names: not when it leaves.
func named(r *overlay.Record) bool {
	state, _ := overlay.SplitHealth(r.Health)
	return state != overlay.HealthLeaving && !r.Deleted
}

func (e Endpoint) record(self overlay.NodeID) *overlay.Record {
	return &overlay.Record{Endpoint: e.ID, Owner: self, Workload: e.Workload, IPs: e.IPs, Names: e.Aliases}
}

func (e Endpoint) equal(o Endpoint) bool {
	return e.ID == o.ID && e.Workload == o.Workload && slices.Equal(e.IPs, o.IPs) && slices.Equal(e.Aliases, o.Aliases)
}
