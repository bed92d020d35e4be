package datapath

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Diff is what has to be done to a kernel that holds have, so that it holds want. Order:
// the host's filter, namespaces, the filters in them, links (WireGuard devices, bridges, VXLAN
// devices, veths; all down), locks, addresses, WireGuard peers, neighbours, forwarding entries,
// links up, routes, entrances, announcements of addresses that changed hands; then removals,
// those of allow-sets last. A removal comes earlier only where what replaces it needs
// its name. A VXLAN device is thus never up without its port flags and the allow-set, nor an
// endpoint's port without its lock.
func Diff(have *State, want *Config) []Op {
	d := differ{
		have: have, want: want,
		links:   make(map[LinkKey]*Link, len(want.Links)),
		added:   map[LinkKey]bool{},
		moved:   map[LinkKey]bool{},
		renewed: map[LinkKey]bool{},
		flushed: map[LinkKey]bool{},
		deleted: map[LinkKey]bool{},
	}
	d.ending = unwanted(have.Namespaces, want.Namespaces, func(n Namespace) string { return n.Name }, strings.Compare)
	d.addFilters(false)
	if want.Egress != (Egress{}) && have.Egress != want.Egress {
		d.do(SetEgress{want.Egress})
	}
	d.addNamespaces()
	d.addFilters(true)
	d.addLinks()
	d.addLocks()
	d.addAddresses()
	d.addWGPeers()
	d.narrow()
	d.addEntries()
	d.upLinks()
	d.addRoutes()
	d.addEntrances()
	for _, n := range d.changed {
		d.do(Announce{n})
	}
	d.delEntrances()
	d.delRows()
	d.delLinks()
	d.delLocks()
	if want.Egress == (Egress{}) && have.Egress != (Egress{}) {
		d.do(DelEgress{})
	}
	d.delFilters()
	return d.ops
}

type differ struct {
	have    *State
	want    *Config
	ops     []Op
	links   map[LinkKey]*Link // wanted
	added   map[LinkKey]bool  // links made by ops, whose rows are gone or never were
	moved   map[LinkKey]bool  // ports that change their bridge: their forwarding entries are gone
	renewed map[LinkKey]bool  // links that change their MAC: their neighbours are gone
	deleted map[LinkKey]bool  // links deleted by ops, and far ends that go with them
	flushed map[LinkKey]bool  // links that lose their last IPv4 address: their IPv4 neighbours are gone
	ending  []Namespace       // to be removed

	changed      []Neighbor // entries of which workloads may remember another MAC
	oldAddresses []Address  // to be removed at the end

	fdb       entries[FDBKey, FDBEntry]
	neighbors entries[NeighborKey, Neighbor]
}

func (d *differ) do(op Op) { d.ops = append(d.ops, op) }

// addFilters writes the host's filter, or those of namespaces that heddle made.
func (d *differ) addFilters(inner bool) {
	for _, want := range d.want.Filters {
		if (want.NS != NS{}) != inner {
			continue
		}
		have := d.have.Filters[want.NS]
		if have.Port != want.Port || have.MinVNI != want.MinVNI {
			d.do(SetFilter{want})
			continue
		}
		add := want
		add.Allowed = nil
		for _, a := range want.Allowed {
			if !have.Allowed[a] {
				add.Allowed = append(add.Allowed, a)
			}
		}
		if len(add.Allowed) > 0 {
			d.do(AddAllow{add})
		}
	}
}

func (d *differ) delFilters() {
	wanted, ending := map[NS]bool{}, d.endingNS()
	for _, want := range d.want.Filters {
		wanted[want.NS] = true
		have := d.have.Filters[want.NS]
		if have.Port != want.Port || have.MinVNI != want.MinVNI || len(have.Allowed) == 0 {
			continue // made anew by addFilters
		}
		if !want.Partial {
			d.disallow(have, want)
		}
	}
	for _, ns := range slices.SortedFunc(maps.Keys(d.have.Filters), compareNS) {
		if !wanted[ns] && !ending[ns] {
			d.do(DelFilter{ns})
		}
	}
}

// disallow takes those out of an allow-set that are not wanted.
func (d *differ) disallow(have FilterState, want Filter) {
	keep := make(map[Allow]bool, len(want.Allowed))
	for _, a := range want.Allowed {
		keep[a] = true
	}
	want.Allowed = nil
	for a := range have.Allowed {
		if !keep[a] {
			want.Allowed = append(want.Allowed, a)
		}
	}
	if len(want.Allowed) > 0 {
		slices.SortFunc(want.Allowed, func(a, b Allow) int { return cmp.Or(cmp.Compare(a.VNI, b.VNI), a.Source.Compare(b.Source)) })
		d.do(DelAllow{want})
	}
}

func (d *differ) addNamespaces() {
	for _, n := range d.want.Namespaces {
		n.Partial = false // it is of what is wanted, and of nothing that the kernel holds
		if d.have.Namespaces[n.Name] != n {
			d.do(SetNamespace{n})
		}
	}
}

var kindOrder = []Kind{WireGuard, Bridge, VXLAN, Veth}

func (d *differ) addLinks() {
	for i := range d.want.Links {
		l := &d.want.Links[i]
		d.links[l.Key()] = l
	}
	var add, set []*Link
	for _, kind := range kindOrder {
		for i := range d.want.Links {
			want := &d.want.Links[i]
			if want.Kind != kind {
				continue
			}
			have, ok := d.have.Links[want.Key()]
			switch {
			case !ok:
				add = append(add, want)
			case mustReplace(&have.Link, want):
				d.deleteLink(have.Link)
				add = append(add, want)
			default:
				if have.Master != "" && d.deleted[LinkKey{have.NS, have.Master}] {
					have.Master = ""
				}
				if have.Link != *want {
					set = append(set, want)
					d.moved[want.Key()] = have.Master != want.Master
					d.renewed[want.Key()] = have.MAC != want.MAC
				}
			}
		}
	}
	d.freeNames(add)
	for _, l := range add {
		d.do(AddLink{*l})
		d.added[l.Key()] = true
	}
	for _, l := range set {
		d.do(SetLink{*l})
	}
}

// mustReplace says whether the difference is in what can't change in a link.
func mustReplace(have, want *Link) bool {
	h, w := have.VXLAN, want.VXLAN
	if h.Local.Is4() == w.Local.Is4() { // an address changes in place, its family doesn't
		h.Local = w.Local
	}
	return have.Kind != want.Kind || h != w || have.Peer.Key() != want.Peer.Key()
}

func (d *differ) deleteLink(l Link) {
	d.do(DelLink{l})
	d.deleted[l.Key()] = true
	if l.Kind == Veth && l.Peer.Name != "" {
		d.deleted[l.Peer.Key()] = true
	}
}

// freeNames deletes unwanted links that hold what a link to be made needs: the name of its
// far end, or its VNI.
func (d *differ) freeNames(add []*Link) {
	if len(add) == 0 {
		return
	}
	type vni struct {
		port uint16
		vni  uint32
	}
	names, vnis := map[LinkKey]bool{}, map[vni]bool{}
	for _, l := range add {
		names[l.Key()] = true
		switch l.Kind {
		case Veth:
			names[l.Peer.Key()] = true
		case VXLAN:
			vnis[vni{l.VXLAN.Port, l.VXLAN.VNI}] = true
		}
	}
	var del []Link
	for k, l := range d.have.Links {
		if d.links[k] == nil && (names[k] || l.Kind == Veth && names[l.Peer.Key()] || l.Kind == VXLAN && vnis[vni{l.VXLAN.Port, l.VXLAN.VNI}]) {
			del = append(del, l.Link)
		}
	}
	sortBy(del, Link.Key, compareLinks)
	for _, l := range del {
		d.deleteLink(l)
	}
}

// fresh says whether a link that is there later is without rows before the ops of its own.
func (d *differ) fresh(l LinkKey) bool { return d.added[l] || d.deleted[l] }

// addAddresses adds addresses, after those removals that can't wait.
func (d *differ) addAddresses() {
	d.delAddresses()
	for _, a := range d.want.Addresses {
		if _, ok := d.have.Addresses[a.Key()]; !ok || d.fresh(LinkKey{a.NS, a.Link}) {
			d.do(SetAddress{a})
		}
	}
}

// delAddresses sorts unwanted addresses of links that stay. Two kinds go at once: an IPv6
// address that is wanted with another prefix length, since it can stand on a link once;
// and all IPv4 addresses of a link that keeps none, since with the last one the kernel
// flushes the link's IPv4 neighbours.
func (d *differ) delAddresses() {
	old := unwanted(d.have.Addresses, d.want.Addresses, Address.Key, compareAddresses)
	if len(old) == 0 {
		return
	}
	type place struct {
		link LinkKey
		ip   netip.Addr // zero: any IPv4 address
	}
	wanted := map[place]bool{}
	for _, a := range d.want.Addresses {
		link := LinkKey{a.NS, a.Link}
		wanted[place{link, a.Prefix.Addr()}] = true
		wanted[place{link: link}] = wanted[place{link: link}] || a.Prefix.Addr().Is4()
	}
	stays := d.staying()
	for _, a := range old {
		link := LinkKey{a.NS, a.Link}
		switch {
		case !stays(a.NS, a.Link):
		case a.Prefix.Addr().Is4() && !wanted[place{link: link}]:
			d.flushed[link] = true
			d.do(DelAddress{a})
		case a.Prefix.Addr().Is6() && wanted[place{link, a.Prefix.Addr()}]:
			d.do(DelAddress{a})
		default:
			d.oldAddresses = append(d.oldAddresses, a)
		}
	}
}

// addWGPeers adds and changes WireGuard peers. A peer is written where it is to be looked for when
// that is news, or when nobody answers where it was last heard.
func (d *differ) addWGPeers() {
	for _, p := range d.want.WGPeers {
		have, ok := d.have.WGPeers[p.ID()]
		asked, known := d.have.Asked[p.ID()]
		switch {
		case !ok || d.fresh(LinkKey{p.NS, p.Link}):
		case p.Endpoint.IsValid() && have.Endpoint != p.Endpoint && (!have.Live || known && asked != p.Endpoint):
		case have.Address != p.Address || have.Keepalive != p.Keepalive:
			p.Endpoint = netip.AddrPort{}
		default:
			continue
		}
		d.do(SetWGPeer{p})
	}
}

// oldWGPeers are those that are not wanted.
func (d *differ) oldWGPeers() []WGPeer {
	have := make(map[WGPeerKey]WGPeer, len(d.have.WGPeers))
	for k, p := range d.have.WGPeers {
		have[k] = p.WGPeer
	}
	return unwanted(have, d.want.WGPeers, WGPeer.ID, compareWGPeers)
}

func (d *differ) upLinks() {
	for _, kind := range kindOrder {
		for i := range d.want.Links {
			l := &d.want.Links[i]
			if l.Kind == kind && (d.added[l.Key()] || !d.have.Links[l.Key()].Up) {
				d.do(UpLink{*l})
			}
		}
	}
}

// addRoutes adds routes: the kernel takes them for a link that is up, and drops those of one
// that was set down.
func (d *differ) addRoutes() {
	down := map[LinkKey]bool{}
	for _, l := range d.have.Links {
		if !l.Up {
			down[l.Key()], down[l.Peer.Key()] = true, true
		}
	}
	for _, r := range d.want.Routes {
		link := LinkKey{r.NS, r.Link}
		have, ok := d.have.Routes[r.Key()]
		if !ok || have.Via != r.Via || d.fresh(link) || down[link] || r.Prefix.Addr().Is4() && d.flushed[link] {
			d.do(SetRoute{r})
		}
	}
}

// delRows removes entries and addresses of links that stay; the others go with their link.
func (d *differ) delRows() {
	for _, a := range d.oldAddresses {
		d.do(DelAddress{a})
	}
	peers := d.oldWGPeers()
	routes := unwanted(d.have.Routes, d.want.Routes, Route.Key, compareRoutes)
	if len(routes) == 0 && len(peers) == 0 && !d.moreEntries() {
		return
	}
	stays := d.staying()
	type place struct {
		ns     NS
		prefix netip.Prefix
		metric int
	}
	taken := map[place]bool{}
	for _, r := range d.want.Routes {
		taken[place{r.NS, r.Prefix, r.Metric}] = true
	}
	for _, r := range routes {
		if stays(r.NS, r.Link) && !(r.Prefix.Addr().Is4() && d.flushed[LinkKey{r.NS, r.Link}]) && !taken[place{r.NS, r.Prefix, r.Metric}] {
			d.do(DelRoute{r})
		}
	}
	for _, p := range peers {
		if stays(p.NS, p.Link) {
			d.do(DelWGPeer{p})
		}
	}
	d.delEntries(stays)
}

// staying says which links, near or far ends, were there before and are there afterwards.
func (d *differ) staying() func(ns NS, link string) bool {
	gone := map[LinkKey]bool{}
	for k, l := range d.have.Links {
		if d.links[k] == nil {
			gone[k] = true
			if l.Kind == Veth {
				gone[l.Peer.Key()] = true
			}
		}
	}
	ending := d.endingNS()
	return func(ns NS, link string) bool {
		k := LinkKey{ns, link}
		return !d.fresh(k) && !gone[k] && !ending[ns]
	}
}

func (d *differ) endingNS() map[NS]bool {
	ending := make(map[NS]bool, len(d.ending))
	for _, n := range d.ending {
		ending[n.NS()] = true
	}
	return ending
}

func (d *differ) delLinks() {
	ending := d.endingNS()
	var del []Link
	for k, l := range d.have.Links {
		// The links of a namespace end with it, some time after its name. A far end that others
		// see must be gone when the operation returns.
		if d.links[k] == nil && !d.deleted[k] && (!ending[k.NS] || l.Kind == Veth && l.Peer.Name != "" && !ending[l.Peer.NS]) {
			del = append(del, l.Link)
		}
	}
	sortBy(del, Link.Key, compareLinks)
	for _, kind := range []bool{true, false} { // ports before their bridges
		for _, l := range del {
			if (l.Kind != Bridge) == kind {
				d.deleteLink(l)
			}
		}
	}
	for _, n := range d.ending {
		d.do(DelNamespace{n})
	}
}

// unwanted are the rows that are there and not wanted, sorted. When every row is wanted,
// which is the usual case, it makes nothing.
func unwanted[K comparable, R any](have map[K]R, want []R, key func(R) K, compare func(a, b K) int) []R {
	found := 0
	for _, w := range want {
		if _, ok := have[key(w)]; ok {
			found++
		}
	}
	if found == len(have) {
		return nil
	}
	keep := make(map[K]bool, len(want))
	for _, w := range want {
		keep[key(w)] = true
	}
	var out []R
	for k, r := range have {
		if !keep[k] {
			out = append(out, r)
		}
	}
	sortBy(out, key, compare)
	return out
}

func sortBy[K, R any](rows []R, key func(R) K, compare func(a, b K) int) {
	slices.SortFunc(rows, func(a, b R) int { return compare(key(a), key(b)) })
}

func compareNS(a, b NS) int {
	return cmp.Or(strings.Compare(a.Path, b.Path), cmp.Compare(a.Inode, b.Inode))
}

func compareLinks(a, b LinkKey) int {
	return cmp.Or(compareNS(a.NS, b.NS), strings.Compare(a.Name, b.Name))
}

func compareFDB(a, b FDBKey) int {
	return cmp.Or(compareLinks(LinkKey{a.NS, a.Link}, LinkKey{b.NS, b.Link}), slices.Compare(a.MAC[:], b.MAC[:]))
}

func compareNeighbors(a, b NeighborKey) int {
	return cmp.Or(compareLinks(LinkKey{a.NS, a.Link}, LinkKey{b.NS, b.Link}), a.IP.Compare(b.IP))
}

func compareRoutes(a, b RouteKey) int {
	return cmp.Or(compareLinks(LinkKey{a.NS, a.Link}, LinkKey{b.NS, b.Link}), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), cmp.Compare(a.Metric, b.Metric))
}

func compareWGPeers(a, b WGPeerKey) int {
	return cmp.Or(compareLinks(LinkKey{a.NS, a.Link}, LinkKey{b.NS, b.Link}), slices.Compare(a.Key[:], b.Key[:]))
}

func compareAddresses(a, b AddressKey) int {
	return cmp.Or(compareLinks(LinkKey{a.NS, a.Link}, LinkKey{b.NS, b.Link}), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
}
