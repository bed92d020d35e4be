package datapath

import (
	"fmt"
)

// Op is one operation on the kernel. Every Op may be repeated: what is there already is
// replaced, and what is gone already is no error, except where AddLink meets a stranger.
type Op interface {
	Owner() Owner // for whom; "" is the node as a whole
	At() LinkKey  // the link it works on; without a name, the namespace
	String() string
	apply(*State)
}

// The operations. Those named Set add or replace.
type (
	// SetFilter makes the table, with the whole allow-set, in one transaction.
	SetFilter struct{ Filter }
	// DelFilter removes the table.
	DelFilter struct{}
	// AddAllow puts elements into the allow-set.
	AddAllow struct{ Allowed []Allow }
	// DelAllow takes elements out of the allow-set.
	DelAllow struct{ Allowed []Allow }
	// SetEgress makes the host forward for uplinks, and hides what they send.
	SetEgress struct{ Egress }
	// DelEgress takes that back.
	DelEgress struct{}
	// SetNamespace makes the namespace, or repairs its settings.
	SetNamespace struct{ Namespace }
	// DelNamespace removes the namespace with all that is in it.
	DelNamespace struct{ Namespace }
	// AddLink makes a link, down.
	AddLink struct{ Link }
	// SetLink writes what can change in a link: MAC, MTU, master, port flags, mark.
	SetLink struct{ Link }
	// UpLink sets a link up, with its far end, and returns when frames pass.
	UpLink struct{ Link }
	// DelLink removes a link with its far end and all that is written on both.
	DelLink struct{ Link }
	// SetAddress adds an address.
	SetAddress struct{ Address }
	// DelAddress removes an address.
	DelAddress struct{ Address }
	// SetNeighbor adds or replaces a neighbour entry.
	SetNeighbor struct{ Neighbor }
	// DelNeighbor removes a neighbour entry.
	DelNeighbor struct{ Neighbor }
	// Announce tells the workloads at the entry's bridge which MAC is behind its address now:
	// by gratuitous ARP (RFC 5227, section 3) or unsolicited neighbour advertisement (RFC 4861,
	// section 7.2.6).
	Announce struct{ Neighbor }
	// SetFDB adds or replaces a forwarding entry.
	SetFDB struct{ FDBEntry }
	// DelFDB removes a forwarding entry.
	DelFDB struct{ FDBEntry }
	// SetRoute adds or replaces a route.
	SetRoute struct{ Route }
	// DelRoute removes a route.
	DelRoute struct{ Route }
)

func (SetFilter) Owner() Owner      { return "" }
func (DelFilter) Owner() Owner      { return "" }
func (AddAllow) Owner() Owner       { return "" }
func (DelAllow) Owner() Owner       { return "" }
func (SetEgress) Owner() Owner      { return "" }
func (DelEgress) Owner() Owner      { return "" }
func (o SetRoute) Owner() Owner     { return o.Route.Owner }
func (o DelRoute) Owner() Owner     { return o.Route.Owner }
func (o SetNamespace) Owner() Owner { return o.Namespace.Owner }
func (o DelNamespace) Owner() Owner { return o.Namespace.Owner }
func (o AddLink) Owner() Owner      { return o.Link.Owner }
func (o SetLink) Owner() Owner      { return o.Link.Owner }
func (o UpLink) Owner() Owner       { return o.Link.Owner }
func (o DelLink) Owner() Owner      { return o.Link.Owner }
func (o SetAddress) Owner() Owner   { return o.Address.Owner }
func (o DelAddress) Owner() Owner   { return o.Address.Owner }
func (o SetNeighbor) Owner() Owner  { return o.Neighbor.Owner }
func (o DelNeighbor) Owner() Owner  { return o.Neighbor.Owner }
func (o Announce) Owner() Owner     { return o.Neighbor.Owner }
func (o SetFDB) Owner() Owner       { return o.FDBEntry.Owner }
func (o DelFDB) Owner() Owner       { return o.FDBEntry.Owner }

func (SetFilter) At() LinkKey      { return LinkKey{} }
func (DelFilter) At() LinkKey      { return LinkKey{} }
func (AddAllow) At() LinkKey       { return LinkKey{} }
func (DelAllow) At() LinkKey       { return LinkKey{} }
func (SetEgress) At() LinkKey      { return LinkKey{} }
func (DelEgress) At() LinkKey      { return LinkKey{} }
func (o SetRoute) At() LinkKey     { return LinkKey{o.NS, o.Link} }
func (o DelRoute) At() LinkKey     { return LinkKey{o.NS, o.Link} }
func (o SetNamespace) At() LinkKey { return LinkKey{NS: o.NS()} }
func (o DelNamespace) At() LinkKey { return LinkKey{NS: o.NS()} }
func (o AddLink) At() LinkKey      { return o.Key() }
func (o SetLink) At() LinkKey      { return o.Key() }
func (o UpLink) At() LinkKey       { return o.Key() }
func (o DelLink) At() LinkKey      { return o.Key() }
func (o SetAddress) At() LinkKey   { return LinkKey{o.NS, o.Link} }
func (o DelAddress) At() LinkKey   { return LinkKey{o.NS, o.Link} }
func (o SetNeighbor) At() LinkKey  { return LinkKey{o.NS, o.Link} }
func (o DelNeighbor) At() LinkKey  { return LinkKey{o.NS, o.Link} }
func (o Announce) At() LinkKey     { return LinkKey{o.NS, o.Link} }
func (o SetFDB) At() LinkKey       { return LinkKey{o.NS, o.Link} }
func (o DelFDB) At() LinkKey       { return LinkKey{o.NS, o.Link} }

func (o SetFilter) String() string {
	return fmt.Sprintf("set filter port %d vni %d- with %d allowed", o.Port, o.MinVNI, len(o.Allowed))
}
func (DelFilter) String() string      { return "delete filter" }
func (o AddAllow) String() string     { return "allow " + fmt.Sprint(o.Allowed) }
func (o DelAllow) String() string     { return "disallow " + fmt.Sprint(o.Allowed) }
func (a Allow) String() string        { return fmt.Sprintf("%s vni %d", a.Source, a.VNI) }
func (o SetEgress) String() string    { return "set egress for " + o.Uplinks + "*" }
func (DelEgress) String() string      { return "delete egress" }
func (o SetRoute) String() string     { return "set route " + o.text() }
func (o DelRoute) String() string     { return "delete route " + o.text() }
func (o SetNamespace) String() string { return "set namespace " + o.Name }
func (o DelNamespace) String() string { return "delete namespace " + o.Name }
func (o AddLink) String() string      { return "add link " + o.text() }
func (o SetLink) String() string      { return "set link " + o.text() }
func (o UpLink) String() string       { return "set up link " + o.text() }
func (o DelLink) String() string      { return "delete link " + o.text() }
func (o SetAddress) String() string {
	return fmt.Sprintf("set address %s/%s %s", o.NS, o.Link, o.Prefix)
}

func (o DelAddress) String() string {
	return fmt.Sprintf("delete address %s/%s %s", o.NS, o.Link, o.Prefix)
}

func (o SetNeighbor) String() string {
	return fmt.Sprintf("set neighbor %s/%s %s %s", o.NS, o.Link, o.IP, o.MAC)
}

func (o DelNeighbor) String() string {
	return fmt.Sprintf("delete neighbor %s/%s %s", o.NS, o.Link, o.IP)
}

func (o Announce) String() string {
	return fmt.Sprintf("announce %s/%s %s %s", o.NS, o.Link, o.IP, o.MAC)
}
func (o SetFDB) String() string { return "set fdb " + o.text() }
func (o DelFDB) String() string { return "delete fdb " + o.text() }

func (l Link) text() string {
	s := fmt.Sprintf("%s/%s %s", l.NS, l.Name, l.Kind)
	if l.Peer.Name != "" {
		s += fmt.Sprintf(" peer %s/%s", l.Peer.NS, l.Peer.Name)
	}
	return s
}

func (r Route) text() string {
	return fmt.Sprintf("%s/%s %s via %s metric %d", r.NS, r.Link, r.Prefix, r.Via, r.Metric)
}

func (f FDBEntry) text() string {
	s := fmt.Sprintf("%s/%s %s", f.NS, f.Link, f.MAC)
	if f.VTEP.IsValid() {
		s += " dst " + f.VTEP.String()
	}
	return s
}

// Apply makes s what the kernel holds after op.
func (s *State) Apply(op Op) { op.apply(s) }

func (o SetFilter) apply(s *State) {
	s.Filter = FilterState{Port: o.Port, MinVNI: o.MinVNI, Allowed: map[Allow]bool{}}
	AddAllow{o.Allowed}.apply(s)
}
func (DelFilter) apply(s *State) { s.Filter = FilterState{Allowed: map[Allow]bool{}} }
func (o AddAllow) apply(s *State) {
	for _, a := range o.Allowed {
		s.Filter.Allowed[a] = true
	}
}

func (o DelAllow) apply(s *State) {
	for _, a := range o.Allowed {
		delete(s.Filter.Allowed, a)
	}
}

func (o SetEgress) apply(s *State)    { s.Egress = o.Egress }
func (DelEgress) apply(s *State)      { s.Egress = Egress{} }
func (o SetRoute) apply(s *State)     { s.Routes[o.Key()] = o.Route }
func (o DelRoute) apply(s *State)     { delete(s.Routes, o.Key()) }
func (o SetNamespace) apply(s *State) { s.Namespaces[o.Name] = o.Namespace }
func (o DelNamespace) apply(s *State) {
	delete(s.Namespaces, o.Name)
	for k := range s.Behind {
		if k.NS == o.NS() {
			delete(s.Behind, k)
		}
	}
	for _, l := range s.Links {
		if l.NS == o.NS() || l.Kind == Veth && l.Peer.NS == o.NS() {
			DelLink{l.Link}.apply(s)
		}
	}
}

func (o AddLink) apply(s *State) { s.Links[o.Key()] = LinkState{Link: o.Link} }
func (o SetLink) apply(s *State) {
	have := s.Links[o.Key()]
	if have.Master != o.Master {
		s.dropFDB(o.Key(), true)
	}
	if have.MAC != o.MAC {
		s.dropNeighbors(o.Key(), false)
	}
	have.Link = o.Link
	s.Links[o.Key()] = have
}
func (o UpLink) apply(s *State) { s.Links[o.Key()] = LinkState{Link: o.Link, Up: true} }
func (o DelLink) apply(s *State) {
	have, ok := s.Links[o.Key()]
	delete(s.Links, o.Key())
	s.dropRows(o.Key())
	if !ok {
		return
	}
	switch have.Kind {
	case Veth:
		s.dropRows(have.Peer.Key())
	case Bridge:
		for k, l := range s.Links {
			if l.NS == o.NS && l.Master == o.Name {
				s.dropFDB(k, true)
				l.Master, l.Port = "", PortFlags{}
				s.Links[k] = l
			}
		}
	}
}

func (o SetAddress) apply(s *State) { s.Addresses[o.Key()] = o.Address }
func (o DelAddress) apply(s *State) {
	if _, ok := s.Addresses[o.Key()]; !ok || o.Prefix.Addr().Is6() {
		delete(s.Addresses, o.Key())
		return
	}
	delete(s.Addresses, o.Key())
	for k := range s.Addresses {
		if k.NS == o.NS && k.Link == o.Link && k.Prefix.Addr().Is4() {
			return
		}
	}
	s.dropNeighbors(LinkKey{o.NS, o.Link}, true)
	s.dropRoutes(LinkKey{o.NS, o.Link}, true)
}

func (o SetNeighbor) apply(s *State) {
	s.Neighbors[o.Key()] = o.Neighbor
	s.Behind[o.Key()] = o.MAC
}
func (Announce) apply(*State)        {}
func (o DelNeighbor) apply(s *State) { delete(s.Neighbors, o.Key()) }
func (o SetFDB) apply(s *State)      { s.FDB[o.Key()] = o.FDBEntry }
func (o DelFDB) apply(s *State)      { delete(s.FDB, o.Key()) }

// dropRows forgets what vanishes with a link.
func (s *State) dropRows(l LinkKey) {
	for k := range s.Addresses {
		if k.NS == l.NS && k.Link == l.Name {
			delete(s.Addresses, k)
		}
	}
	s.dropNeighbors(l, false)
	s.dropRoutes(l, false)
	s.dropFDB(l, false)
}

// dropRoutes forgets what the kernel flushes when a link goes, or, IPv4 alone, when its last
// IPv4 address goes.
func (s *State) dropRoutes(l LinkKey, only4 bool) {
	for k := range s.Routes {
		if k.NS == l.NS && k.Link == l.Name && (!only4 || k.Prefix.Addr().Is4()) {
			delete(s.Routes, k)
		}
	}
}

// dropNeighbors forgets what the kernel flushes when a link's MAC changes, or, IPv4 alone,
// when its last IPv4 address goes.
func (s *State) dropNeighbors(l LinkKey, only4 bool) {
	for k := range s.Neighbors {
		if k.NS == l.NS && k.Link == l.Name && (!only4 || k.IP.Is4()) {
			delete(s.Neighbors, k)
		}
	}
}

// dropFDB forgets the entries on a port. A port that left its bridge keeps the half of
// them that stands in a VXLAN device.
func (s *State) dropFDB(l LinkKey, left bool) {
	for k, f := range s.FDB {
		switch {
		case k.NS != l.NS || k.Link != l.Name:
		case left && f.VTEP.IsValid():
			f.VTEP = Damaged
			s.FDB[k] = f
		default:
			delete(s.FDB, k)
		}
	}
}
