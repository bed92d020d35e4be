package datapath

import (
	"fmt"
	"net/netip"
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
	// DelFilter removes the table of a namespace.
	DelFilter struct{ NS NS }
	// AddAllow puts the filter's Allowed into the allow-set.
	AddAllow struct{ Filter }
	// DelAllow takes them out of the allow-set.
	DelAllow struct{ Filter }
	// SetEgress makes the host forward for uplinks, and hides what they send.
	SetEgress struct{ Egress }
	// DelEgress takes that back.
	DelEgress struct{}
	// SetEntrance writes the passages of workloads, of services or of both, and ends flows that
	// lead where none of the entrance's do.
	SetEntrance struct {
		Entrance
		Workload, Service bool
	}
	// DelEntrance removes all passages of a place.
	DelEntrance struct{ NS NS }
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
	// SetLock locks a port, or locks it otherwise, in one transaction.
	SetLock struct{ Lock }
	// DelLock takes a port's lock away.
	DelLock struct{ Lock }
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
	// SetWGPeer adds or changes a WireGuard peer. One without Endpoint stays where it is.
	SetWGPeer struct{ WGPeer }
	// DelWGPeer removes a WireGuard peer, with its session.
	DelWGPeer struct{ WGPeer }
)

func (o SetFilter) Owner() Owner    { return o.Filter.Owner }
func (DelFilter) Owner() Owner      { return "" }
func (o AddAllow) Owner() Owner     { return o.Filter.Owner }
func (o DelAllow) Owner() Owner     { return o.Filter.Owner }
func (SetEgress) Owner() Owner      { return "" }
func (DelEgress) Owner() Owner      { return "" }
func (o SetEntrance) Owner() Owner  { return o.Entrance.Owner }
func (DelEntrance) Owner() Owner    { return "" }
func (o SetRoute) Owner() Owner     { return o.Route.Owner }
func (o DelRoute) Owner() Owner     { return o.Route.Owner }
func (o SetNamespace) Owner() Owner { return o.Namespace.Owner }
func (o DelNamespace) Owner() Owner { return o.Namespace.Owner }
func (o AddLink) Owner() Owner      { return o.Link.Owner }
func (o SetLink) Owner() Owner      { return o.Link.Owner }
func (o UpLink) Owner() Owner       { return o.Link.Owner }
func (o DelLink) Owner() Owner      { return o.Link.Owner }
func (o SetLock) Owner() Owner      { return o.Lock.Owner }
func (o DelLock) Owner() Owner      { return o.Lock.Owner }
func (o SetAddress) Owner() Owner   { return o.Address.Owner }
func (o DelAddress) Owner() Owner   { return o.Address.Owner }
func (o SetNeighbor) Owner() Owner  { return o.Neighbor.Owner }
func (o DelNeighbor) Owner() Owner  { return o.Neighbor.Owner }
func (o Announce) Owner() Owner     { return o.Neighbor.Owner }
func (o SetFDB) Owner() Owner       { return o.FDBEntry.Owner }
func (o DelFDB) Owner() Owner       { return o.FDBEntry.Owner }
func (o SetWGPeer) Owner() Owner    { return o.WGPeer.Owner }
func (o DelWGPeer) Owner() Owner    { return o.WGPeer.Owner }

func (o SetFilter) At() LinkKey    { return LinkKey{NS: o.NS} }
func (o DelFilter) At() LinkKey    { return LinkKey{NS: o.NS} }
func (o AddAllow) At() LinkKey     { return LinkKey{NS: o.NS} }
func (o DelAllow) At() LinkKey     { return LinkKey{NS: o.NS} }
func (SetEgress) At() LinkKey      { return LinkKey{} }
func (DelEgress) At() LinkKey      { return LinkKey{} }
func (o SetEntrance) At() LinkKey  { return LinkKey{NS: o.NS} }
func (o DelEntrance) At() LinkKey  { return LinkKey{NS: o.NS} }
func (o SetRoute) At() LinkKey     { return LinkKey{o.NS, o.Link} }
func (o DelRoute) At() LinkKey     { return LinkKey{o.NS, o.Link} }
func (o SetNamespace) At() LinkKey { return LinkKey{NS: o.NS()} }
func (o DelNamespace) At() LinkKey { return LinkKey{NS: o.NS()} }
func (o AddLink) At() LinkKey      { return o.Key() }
func (o SetLink) At() LinkKey      { return o.Key() }
func (o UpLink) At() LinkKey       { return o.Key() }
func (o DelLink) At() LinkKey      { return o.Key() }
func (o SetLock) At() LinkKey      { return o.Key() }
func (o DelLock) At() LinkKey      { return o.Key() }
func (o SetAddress) At() LinkKey   { return LinkKey{o.NS, o.Link} }
func (o DelAddress) At() LinkKey   { return LinkKey{o.NS, o.Link} }
func (o SetNeighbor) At() LinkKey  { return LinkKey{o.NS, o.Link} }
func (o DelNeighbor) At() LinkKey  { return LinkKey{o.NS, o.Link} }
func (o Announce) At() LinkKey     { return LinkKey{o.NS, o.Link} }
func (o SetFDB) At() LinkKey       { return LinkKey{o.NS, o.Link} }
func (o DelFDB) At() LinkKey       { return LinkKey{o.NS, o.Link} }
func (o SetWGPeer) At() LinkKey    { return LinkKey{o.NS, o.Link} }
func (o DelWGPeer) At() LinkKey    { return LinkKey{o.NS, o.Link} }

func (o SetFilter) String() string {
	return fmt.Sprintf("set filter of %s port %d vni %d- with %d allowed", o.NS, o.Port, o.MinVNI, len(o.Allowed))
}
func (o DelFilter) String() string    { return fmt.Sprintf("delete filter of %s", o.NS) }
func (o AddAllow) String() string     { return fmt.Sprintf("allow in %s %s", o.NS, o.Allowed) }
func (o DelAllow) String() string     { return fmt.Sprintf("disallow in %s %s", o.NS, o.Allowed) }
func (a Allow) String() string        { return fmt.Sprintf("%s vni %d", a.Source, a.VNI) }
func (o SetEgress) String() string    { return "set egress for " + o.Uplinks + "*" }
func (DelEgress) String() string      { return "delete egress" }
func (o SetEntrance) String() string  { return "set " + o.Entrance.String() }
func (o DelEntrance) String() string  { return fmt.Sprintf("delete entrance of %s", o.NS) }
func (o SetRoute) String() string     { return "set route " + o.text() }
func (o DelRoute) String() string     { return "delete route " + o.text() }
func (o SetNamespace) String() string { return "set namespace " + o.Name }
func (o DelNamespace) String() string { return "delete namespace " + o.Name }
func (o AddLink) String() string      { return "add link " + o.text() }
func (o SetLink) String() string      { return "set link " + o.text() }
func (o UpLink) String() string       { return "set up link " + o.text() }
func (o DelLink) String() string      { return "delete link " + o.text() }
func (o SetLock) String() string      { return "set lock " + o.Lock.String() }
func (o DelLock) String() string      { return "delete lock " + o.Lock.String() }
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

func (o SetWGPeer) String() string {
	if !o.Endpoint.IsValid() {
		return "set wireguard peer " + o.text()
	}
	return fmt.Sprintf("set wireguard peer %s at %s", o.text(), o.Endpoint)
}
func (o DelWGPeer) String() string { return "delete wireguard peer " + o.text() }

func (l Link) text() string {
	s := fmt.Sprintf("%s/%s %s", l.NS, l.Name, l.Kind)
	if l.Peer.Name != "" {
		s += fmt.Sprintf(" peer %s/%s", l.Peer.NS, l.Peer.Name)
	}
	return s
}

func (r Route) text() string {
	via := ""
	if r.Via.IsValid() {
		via = fmt.Sprintf(" via %s", r.Via)
	}
	return fmt.Sprintf("%s/%s %s%s metric %d", r.NS, r.Link, r.Prefix, via, r.Metric)
}

func (p WGPeer) text() string {
	s := fmt.Sprintf("%s/%s %s address %s", p.NS, p.Link, p.Key, p.Address)
	if p.Keepalive {
		s += " keepalive"
	}
	return s
}

func (f FDBEntry) text() string {
	s := fmt.Sprintf("%s/%s %s", f.NS, f.Link, f.MAC)
	if f.VTEP.IsValid() {
		s += " dst " + f.VTEP.String()
	}
	return s
}

// Runs parts operations, which stay in their order: those on forwarding and neighbour entries
// that follow each other are a run, of tens of thousands maybe, and every other operation is one
// by itself. Of what Diff makes, each of a run is on another entry, and none needs another's success.
func Runs(ops []Op) (runs [][]Op) {
	for start, i := 0, 1; start < len(ops); i++ {
		if i == len(ops) || !onEntry(ops[i-1]) || !onEntry(ops[i]) {
			runs = append(runs, ops[start:i])
			start = i
		}
	}
	return runs
}

func onEntry(op Op) bool {
	switch op := op.(type) {
	case SetNeighbor, DelNeighbor, SetFDB:
		return true
	case DelFDB:
		return op.VTEP != Damaged // what is half there must be gone before it is set
	}
	return false
}

// Apply makes s what the kernel holds after op.
func (s *State) Apply(op Op) {
	s.settled = nil
	op.apply(s)
}

func (o SetFilter) apply(s *State) {
	s.Filters[o.NS] = FilterState{Port: o.Port, MinVNI: o.MinVNI, Allowed: map[Allow]bool{}}
	AddAllow(o).apply(s)
}
func (o DelFilter) apply(s *State) { delete(s.Filters, o.NS) }
func (o AddAllow) apply(s *State) {
	for _, a := range o.Allowed {
		s.Filters[o.NS].Allowed[a] = true
	}
}

func (o DelAllow) apply(s *State) {
	for _, a := range o.Allowed {
		delete(s.Filters[o.NS].Allowed, a)
	}
}

func (o SetEgress) apply(s *State) { s.Egress = o.Egress }
func (DelEgress) apply(s *State)   { s.Egress = Egress{} }
func (o SetEntrance) apply(s *State) {
	have, want := s.Entrances[o.NS], o.State()
	if o.Workload {
		have.Workloads = want.Workloads
	}
	if o.Service {
		have.Services = want.Services
	}
	s.Entrances[o.NS] = have
	if have == (EntranceState{}) {
		delete(s.Entrances, o.NS)
	}
}
func (o DelEntrance) apply(s *State) { delete(s.Entrances, o.NS) }
func (o SetRoute) apply(s *State) {
	for k := range s.Routes {
		if k.NS == o.NS && k.Prefix == o.Prefix && k.Metric == o.Metric {
			delete(s.Routes, k)
		}
	}
	s.Routes[o.Key()] = o.Route
}
func (o DelRoute) apply(s *State)     { delete(s.Routes, o.Key()) }
func (o SetNamespace) apply(s *State) { s.Namespaces[o.Name] = o.Namespace }
func (o DelNamespace) apply(s *State) {
	delete(s.Namespaces, o.Name)
	delete(s.Filters, o.NS())
	delete(s.Entrances, o.NS())
	delete(s.Served, o.NS())
	s.dropRoutes(LinkKey{o.NS(), Nowhere}, false)
	for k := range s.Behind {
		if k.NS == o.NS() {
			delete(s.Behind, k)
		}
	}
	for k := range s.Locks {
		if k.NS == o.NS() {
			delete(s.Locks, k)
		}
	}
	for _, l := range s.Links {
		if l.NS == o.NS() || l.Kind == Veth && l.Peer.NS == o.NS() || l.Kind == VXLAN && l.VXLAN.Underlay == o.NS() {
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

func (o SetLock) apply(s *State) { s.Locks[o.Key()] = o.Lock }
func (o DelLock) apply(s *State) { delete(s.Locks, o.Key()) }

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

// apply gives the address to this peer alone: in a device it is one peer's.
func (o SetWGPeer) apply(s *State) {
	for k, p := range s.WGPeers {
		if k.NS == o.NS && k.Link == o.Link && p.Address == o.Address {
			p.Address = netip.Addr{}
			s.WGPeers[k] = p
		}
	}
	p := s.WGPeers[o.ID()]
	at := p.Endpoint
	p.WGPeer = o.WGPeer
	if o.Endpoint.IsValid() {
		at, s.Asked[o.ID()] = o.Endpoint, o.Endpoint
	}
	p.Endpoint = at
	s.WGPeers[o.ID()] = p
}

func (o DelWGPeer) apply(s *State) {
	delete(s.WGPeers, o.ID())
	delete(s.Asked, o.ID())
}

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
	for k := range s.WGPeers {
		if k.NS == l.NS && k.Link == l.Name {
			delete(s.WGPeers, k)
			delete(s.Asked, k)
		}
	}
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
