package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// Read is everything that the kernel holds of heddle's. It changes nothing.
func (k *Kernel) Read(ctx context.Context, want *datapath.Config) (*datapath.State, error) {
	r := reader{k: k, s: datapath.NewState(), want: indexWant(want), stray: map[datapath.LinkKey]link{}}
	defer k.Release()
	k.reap()
	if err := k.findNamespaces(); err != nil {
		return nil, err
	}
	for name, h := range k.own {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := r.readOwn(name, h); err != nil {
			return nil, fmt.Errorf("read namespace %s: %w", name, err)
		}
	}
	h, err := k.hostHandle()
	if err != nil {
		return nil, err
	}
	if err := r.readNS(datapath.NS{}, h, false); err != nil {
		return nil, fmt.Errorf("read the host's namespace: %w", err)
	}
	if err := r.readFilters(want.Filters); err != nil {
		return nil, err
	}
	if r.s.Egress, err = k.readEgress(want.Egress); err != nil {
		return nil, fmt.Errorf("read egress: %w", err)
	}
	if err := r.readEntrances(); err != nil {
		return nil, err
	}
	r.claimFarEnds()
	r.nameOwners()
	return r.s, nil
}

// readFilters reads the host's filter, and those of namespaces where one is wanted.
func (r *reader) readFilters(want []datapath.Filter) error {
	places := map[datapath.NS]bool{{}: true}
	for _, f := range want {
		if name, own := ownName(f.NS); own && r.k.own[name] != nil {
			places[f.NS] = true
		}
	}
	for ns := range places {
		f, there, err := r.k.readFilter(ns)
		if err != nil {
			return fmt.Errorf("read filter of %s: %w", ns, err)
		}
		if there {
			r.s.Filters[ns] = f
		}
	}
	return nil
}

// readEntrances reads the host's entrance, and those of overlays' namespaces.
func (r *reader) readEntrances() error {
	read := func(ns datapath.NS, h *handle) error {
		if err := h.nft(&r.k.low.own); err != nil {
			return err
		}
		is, err := h.readEntrance()
		switch {
		case datapath.FaultOf(err) == datapath.Unsupported: // whoever wants it learns of it
		case err != nil:
			return fmt.Errorf("read the entrance of %s: %w", ns, err)
		case is != datapath.EntranceState{}:
			r.s.Entrances[ns] = is
		}
		return nil
	}
	for name, h := range r.k.own {
		ns := datapath.Namespace{Name: name}.NS()
		if _, wanted := r.want.namespaces[name]; wanted && !r.want.near[ns] {
			continue // a workload's
		}
		if err := read(ns, h); err != nil {
			return err
		}
	}
	return read(datapath.NS{}, r.k.host)
}

// claimFarEnds finds the near ends of interfaces that stand where a wanted one is missing,
// so that they are deleted before it is made.
func (r *reader) claimFarEnds() {
	if len(r.stray) == 0 {
		return
	}
	for key, want := range r.want.links {
		if want.Kind != datapath.Veth || r.s.Links[key].Peer.Name != "" {
			continue
		}
		h, err := r.k.in(want.Peer.NS)
		if err != nil {
			continue // making it tells why
		}
		far, err := h.byName(want.Peer.Name)
		if err != nil || !far.ours() {
			continue
		}
		for stray, near := range r.stray {
			if far.index == near.peer && far.peer == near.index {
				row := r.s.Links[stray]
				row.Peer = datapath.Peer{NS: want.Peer.NS, Name: want.Peer.Name, MAC: far.mac, MTU: far.mtu, Owner: far.owner()}
				r.s.Links[stray] = row
			}
		}
	}
}

// nameOwners gives rows without a mark of their own the owner of their link.
func (r *reader) nameOwners() {
	owner := make(map[datapath.LinkKey]datapath.Owner, 2*len(r.s.Links))
	for _, n := range r.s.Namespaces {
		owner[datapath.LinkKey{NS: n.NS(), Name: datapath.Nowhere}] = n.Owner
	}
	for k, l := range r.s.Links {
		owner[k] = l.Owner
		owner[l.Peer.Key()] = l.Peer.Owner
	}
	for k, a := range r.s.Addresses {
		a.Owner = owner[datapath.LinkKey{NS: a.NS, Name: a.Link}]
		r.s.Addresses[k] = a
	}
	for k, l := range r.s.Locks {
		l.Owner = owner[k]
		r.s.Locks[k] = l
	}
	for k, n := range r.s.Neighbors {
		n.Owner = owner[datapath.LinkKey{NS: n.NS, Name: n.Link}]
		r.s.Neighbors[k] = n
	}
	for k, row := range r.s.Routes {
		row.Owner = owner[datapath.LinkKey{NS: row.NS, Name: row.Link}]
		r.s.Routes[k] = row
	}
	for k, f := range r.s.FDB {
		f.Owner = owner[datapath.LinkKey{NS: f.NS, Name: f.Link}]
		r.s.FDB[k] = f
	}
}

// wanted is the wanted state by key.
type wanted struct {
	links      map[datapath.LinkKey]*datapath.Link
	locks      map[datapath.LinkKey]*datapath.Lock
	peers      map[datapath.LinkKey]bool
	near       map[datapath.NS]bool // namespaces with a wanted link: nothing else belongs there
	namespaces map[string]datapath.Namespace
	addresses  map[datapath.AddressKey]bool
	neighbors  map[datapath.NeighborKey]bool
	resolved   map[datapath.LinkKey]bool // links with neighbours
}

func indexWant(c *datapath.Config) wanted {
	w := wanted{
		links: map[datapath.LinkKey]*datapath.Link{}, locks: map[datapath.LinkKey]*datapath.Lock{}, peers: map[datapath.LinkKey]bool{}, near: map[datapath.NS]bool{},
		namespaces: map[string]datapath.Namespace{}, addresses: map[datapath.AddressKey]bool{}, neighbors: map[datapath.NeighborKey]bool{},
		resolved: map[datapath.LinkKey]bool{},
	}
	for _, n := range c.Namespaces {
		w.namespaces[n.Name] = n
	}
	for i := range c.Links {
		l := &c.Links[i]
		w.links[l.Key()] = l
		w.near[l.NS] = true
		if l.Kind == datapath.Veth {
			w.peers[l.Peer.Key()] = true
		}
	}
	for i := range c.Locks {
		w.locks[c.Locks[i].Key()] = &c.Locks[i]
	}
	for _, a := range c.Addresses {
		w.addresses[a.Key()] = true
	}
	for _, n := range c.Neighbors {
		w.neighbors[n.Key()], w.resolved[datapath.LinkKey{NS: n.NS, Name: n.Link}] = true, true
	}
	return w
}

type reader struct {
	k    *Kernel
	s    *datapath.State
	want wanted

	stray map[datapath.LinkKey]link // veths of which nothing is wanted, or another far end
}

func (r *reader) readOwn(name string, h *handle) error {
	lo, err := h.byName("lo")
	if err != nil {
		return err
	}
	n, err := r.k.namespace(h, name, lo, r.want.namespaces[name])
	if err != nil {
		return err
	}
	r.s.Namespaces[name] = n
	ns := n.NS()
	if _, wanted := r.want.namespaces[name]; wanted && !r.want.near[ns] {
		return nil // a workload's: its interfaces are read as far ends
	}
	return r.readNS(ns, h, true)
}

// fallbackDevices are made by the kernel in every namespace and can't be deleted.
var fallbackDevices = map[string]bool{
	"tunl0": true, "gre0": true, "gretap0": true, "erspan0": true, "sit0": true,
	"ip6tnl0": true, "ip6gre0": true, "ip_vti0": true, "ip6_vti0": true,
}

// readNS reads one namespace, where all is heddle's or only what is marked.
func (r *reader) readNS(ns datapath.NS, h *handle, whole bool) error {
	links, err := h.links()
	if err != nil {
		return err
	}
	byIndex := map[int32]link{}
	bridges := false
	for _, l := range links {
		key := datapath.LinkKey{NS: ns, Name: l.name}
		switch {
		case l.kind == "" || fallbackDevices[l.name] || r.want.peers[key]:
			continue
		case !whole && !l.ours():
			continue
		}
		byIndex[l.index] = l
		bridges = bridges || l.kind == string(datapath.Bridge)
	}
	names := map[int32]string{}
	for i, l := range byIndex {
		names[i] = l.name
		if err := r.addLink(ns, h, l, byIndex); err != nil {
			return err
		}
	}
	if len(names) == 0 {
		return nil
	}
	if err := r.readAddresses(ns, h, names, whole); err != nil {
		return err
	}
	if err := r.readNeighbors(ns, h, names, whole); err != nil {
		return err
	}
	if whole {
		if err := r.readLocks(ns, h); err != nil {
			return err
		}
	}
	if err := r.readRoutes(ns, h, names); err != nil {
		return err
	}
	if !bridges {
		return nil
	}
	return r.readFDB(ns, h, byIndex)
}

func (r *reader) addLink(ns datapath.NS, h *handle, l link, byIndex map[int32]link) error {
	row := datapath.LinkState{Up: l.up, Link: datapath.Link{
		NS: ns, Name: l.name, Owner: l.owner(), Kind: datapath.Kind(l.kind), MAC: l.mac, MTU: l.mtu,
		Master: byIndex[l.master].name, VXLAN: l.vxlan,
	}}
	if l.master != 0 {
		row.Port = l.port
	}
	switch row.Kind {
	case datapath.VXLAN:
		if err := r.findUnderlay(h, l, &row.Link); err != nil {
			return err
		}
	case datapath.WireGuard:
		if err := r.readWireGuard(h, &row); err != nil {
			return err
		}
	case datapath.Veth:
		if want := r.want.links[row.Key()]; want != nil && want.Kind == datapath.Veth {
			if err := r.readFarEnd(&row, want.Peer, l); err != nil {
				return err
			}
		}
		if row.Peer.Name == "" {
			r.stray[row.Key()] = l
		}
	}
	r.s.Links[row.Key()] = row
	return nil
}

// elsewhere is the underlay of a VXLAN device that is none of those that may be wanted.
var elsewhere = datapath.NS{Path: "elsewhere"}

// findUnderlay fills in which namespace a VXLAN device has as its underlay.
func (r *reader) findUnderlay(h *handle, l link, row *datapath.Link) error {
	row.VXLAN.Underlay = elsewhere
	if !l.abroad {
		return nil
	}
	candidates := []datapath.NS{{}}
	if want := r.want.links[row.Key()]; want != nil && want.VXLAN.Underlay != (datapath.NS{}) {
		candidates = []datapath.NS{want.VXLAN.Underlay, {}}
	}
	for _, ns := range candidates {
		there, err := r.k.in(ns)
		if err != nil {
			continue // the underlay is gone
		}
		id, ok, err := h.idOf(there)
		if err != nil {
			return err
		}
		if ok && id == l.netnsID {
			row.VXLAN.Underlay = ns
			return nil
		}
	}
	return nil
}

// readFarEnd fills in the peer where the wanted one is this link's far end.
func (r *reader) readFarEnd(row *datapath.LinkState, want datapath.Peer, near link) error {
	h, err := r.k.in(want.NS)
	if datapath.FaultOf(err) != "" || errors.Is(err, unix.ENOENT) {
		return nil // making it again tells why, or makes the namespace first
	}
	if err != nil {
		return err
	}
	far, err := h.byName(want.Name)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	proven := far.ours() || far.mac == want.MAC
	if far.kind != string(datapath.Veth) || far.index != near.peer || far.peer != near.index || !proven {
		return nil
	}
	row.Peer = datapath.Peer{NS: want.NS, Name: want.Name, MAC: far.mac, MTU: far.mtu, Owner: far.owner()}
	row.Up = row.Up && far.up
	names := map[int32]string{far.index: far.name}
	if err := r.readAddresses(want.NS, h, names, false); err != nil {
		return err
	}
	if r.want.resolved[want.Key()] {
		if err := r.readNeighbors(want.NS, h, names, false); err != nil {
			return err
		}
	}
	return r.readRoutes(want.NS, h, names)
}

// readAddresses reads the addresses of the named links: all of them, or those that are
// wanted or that heddle has added.
func (r *reader) readAddresses(ns datapath.NS, h *handle, names map[int32]string, all bool) error {
	var rows []datapath.Address
	err := h.dump(request(unix.RTM_GETADDR, 0, ifaddr(unix.AF_UNSPEC, 0, 0)), func() { rows = rows[:0] }, func(b []byte) {
		row, ok := parseAddr(b)
		name := names[row.index]
		if !ok || name == "" {
			return
		}
		a := datapath.Address{NS: ns, Link: name, Prefix: row.prefix}
		if all || row.proto == protoHeddle || r.want.addresses[a.Key()] {
			rows = append(rows, a)
		}
	})
	for _, a := range rows {
		r.s.Addresses[a.Key()] = a
	}
	return err
}

// readNeighbors reads permanent entries: all of them, or the wanted.
func (r *reader) readNeighbors(ns datapath.NS, h *handle, names map[int32]string, all bool) error {
	var rows []datapath.Neighbor
	err := h.dump(request(unix.RTM_GETNEIGH, 0, ndmsg(unix.AF_UNSPEC, 0, 0, 0)), func() { rows = rows[:0] }, func(b []byte) {
		n, index, state, ok := parseNeighbor(b)
		if n.NS, n.Link = ns, names[index]; !ok || n.Link == "" || state&unix.NUD_PERMANENT == 0 {
			return
		}
		if all || r.want.neighbors[n.Key()] {
			rows = append(rows, n)
		}
	})
	for _, n := range rows {
		r.s.Neighbors[n.Key()], r.s.Behind[n.Key()] = n, n.MAC
	}
	return err
}

// halves are the two places of a remote forwarding entry.
type halves struct {
	master bool
	self   int // how many destinations
	vtep   netip.Addr
}

// readFDB reads static bridge entries and those of VXLAN devices, and joins their halves.
func (r *reader) readFDB(ns datapath.NS, h *handle, links map[int32]link) error {
	found := map[datapath.FDBKey]halves{}
	err := h.dump(request(unix.RTM_GETNEIGH, 0, ndmsg(unix.AF_BRIDGE, 0, 0, 0)), func() { clear(found) }, func(b []byte) {
		row, ok := parseFDB(b)
		l, known := links[row.index]
		if !ok || !known {
			return
		}
		key := datapath.FDBKey{NS: ns, Link: l.name, MAC: row.mac}
		e := found[key]
		switch {
		case row.self && l.kind == string(datapath.VXLAN):
			e.self++
			e.vtep = row.vtep
		case row.static:
			e.master = true
		default:
			return // the bridge's own addresses, and what the kernel needs
		}
		found[key] = e
	})
	for key, e := range found {
		f := datapath.FDBEntry{NS: ns, Link: key.Link, MAC: key.MAC}
		switch {
		case e.self == 1 && e.master:
			f.VTEP = e.vtep
		case e.self > 0 || r.s.Links[datapath.LinkKey{NS: ns, Name: key.Link}].Kind == datapath.VXLAN:
			f.VTEP = datapath.Damaged
		}
		r.s.FDB[key] = f
	}
	return err
}
