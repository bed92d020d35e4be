package datapath

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// Diff is what has to be done to a kernel that holds have, so that it holds want. Order:
// the filter and additions to the allow-set, namespaces, links (bridges, VXLAN devices,
// veths; all down), addresses, neighbours, forwarding entries, links up, routes, announcements of
// addresses that changed hands; then removals,
// those of the allow-set last. A removal comes earlier only where what replaces it needs
// its name. A VXLAN device is thus never up without its port flags and the allow-set.
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
	d.addFilter()
	if want.Egress != (Egress{}) && have.Egress != want.Egress {
		d.do(SetEgress{want.Egress})
	}
	d.addNamespaces()
	d.addLinks()
	d.addAddresses()
	d.addEntries()
	d.upLinks()
	d.addRoutes()
	for _, n := range d.changed {
		d.do(Announce{n})
	}
	d.delRows()
	d.delLinks()
	if want.Egress == (Egress{}) && have.Egress != (Egress{}) {
		d.do(DelEgress{})
	}
	d.delFilter()
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

	changed        []Neighbor // entries with another MAC than workloads may remember
	oldAddresses   []Address  // to be removed at the end
	fdb, neighbors int        // how many rows there are that are wanted
}

func (d *differ) do(op Op) { d.ops = append(d.ops, op) }

func (d *differ) addFilter() {
	have, want := &d.have.Filter, &d.want.Filter
	if want.Port == 0 {
		return
	}
	if have.Port != want.Port || have.MinVNI != want.MinVNI {
		d.do(SetFilter{*want})
		return
	}
	var add []Allow
	for _, a := range want.Allowed {
		if !have.Allowed[a] {
			add = append(add, a)
		}
	}
	if len(add) > 0 {
		d.do(AddAllow{add})
	}
}

func (d *differ) delFilter() {
	have, want := &d.have.Filter, &d.want.Filter
	if want.Port == 0 {
		if have.Port != 0 || len(have.Allowed) > 0 {
			d.do(DelFilter{})
		}
		return
	}
	if have.Port != want.Port || have.MinVNI != want.MinVNI || len(have.Allowed) == 0 {
		return // made anew by addFilter
	}
	if want.Partial {
		return
	}
	keep := make(map[Allow]bool, len(want.Allowed))
	for _, a := range want.Allowed {
		keep[a] = true
	}
	var del []Allow
	for a := range have.Allowed {
		if !keep[a] {
			del = append(del, a)
		}
	}
	if len(del) > 0 {
		slices.SortFunc(del, func(a, b Allow) int { return cmp.Or(cmp.Compare(a.VNI, b.VNI), a.Source.Compare(b.Source)) })
		d.do(DelAllow{del})
	}
}

func (d *differ) addNamespaces() {
	for _, n := range d.want.Namespaces {
		if d.have.Namespaces[n.Name] != n {
			d.do(SetNamespace{n})
		}
	}
}

var kindOrder = []Kind{Bridge, VXLAN, Veth}

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

// addEntries also counts the wanted entries that are there, so that unwanted ones are
// looked for only where there are more.
func (d *differ) addEntries() {
	for _, n := range d.want.Neighbors {
		have, ok := d.have.Neighbors[n.Key()]
		if !ok || have.MAC != n.MAC || d.neighborGone(n) {
			d.do(SetNeighbor{n})
			if mac, known := d.have.Behind[n.Key()]; known && mac != n.MAC {
				d.changed = append(d.changed, n)
			}
		}
		if ok {
			d.neighbors++
		}
	}
	for _, f := range d.want.FDB {
		have, ok := d.have.FDB[f.Key()]
		link := LinkKey{f.NS, f.Link}
		switch {
		case !ok, d.fresh(link), d.moved[link]:
			d.do(SetFDB{f})
		case have.VTEP == f.VTEP:
		case have.VTEP == Damaged:
			d.do(DelFDB{have})
			d.do(SetFDB{f})
		default:
			d.do(SetFDB{f})
		}
		if ok {
			d.fdb++
		}
	}
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

// neighborGone says whether an entry that was there went with something else.
func (d *differ) neighborGone(n Neighbor) bool {
	link := LinkKey{n.NS, n.Link}
	return d.fresh(link) || d.renewed[link] || n.IP.Is4() && d.flushed[link]
}

// delRows removes entries and addresses of links that stay; the others go with their link.
func (d *differ) delRows() {
	for _, a := range d.oldAddresses {
		d.do(DelAddress{a})
	}
	routes := unwanted(d.have.Routes, d.want.Routes, Route.Key, compareRoutes)
	if len(routes) == 0 && d.fdb == len(d.have.FDB) && d.neighbors == len(d.have.Neighbors) {
		return
	}
	stays, partial := d.staying(), map[NS]bool{}
	for _, r := range routes {
		if stays(r.NS, r.Link) && !(r.Prefix.Addr().Is4() && d.flushed[LinkKey{r.NS, r.Link}]) {
			d.do(DelRoute{r})
		}
	}
	for _, n := range d.want.Namespaces {
		partial[n.NS()] = n.Partial
	}
	for _, f := range unwanted(d.have.FDB, d.want.FDB, FDBEntry.Key, compareFDB) {
		if stays(f.NS, f.Link) && !partial[f.NS] {
			d.do(DelFDB{f})
		}
	}
	for _, n := range unwanted(d.have.Neighbors, d.want.Neighbors, Neighbor.Key, compareNeighbors) {
		if stays(n.NS, n.Link) && !partial[n.NS] && !d.neighborGone(n) {
			d.do(DelNeighbor{n})
		}
	}
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

func compareAddresses(a, b AddressKey) int {
	return cmp.Or(compareLinks(LinkKey{a.NS, a.Link}, LinkKey{b.NS, b.Link}), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
}
