package kernel

import (
	"context"
	"encoding/binary"
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
	if r.s.Filter, err = k.readFilter(); err != nil {
		return nil, fmt.Errorf("read filter: %w", err)
	}
	if r.s.Egress, err = k.readEgress(want.Egress); err != nil {
		return nil, fmt.Errorf("read egress: %w", err)
	}
	r.claimFarEnds()
	r.nameOwners()
	return r.s, nil
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
	for k, l := range r.s.Links {
		owner[k] = l.Owner
		owner[l.Peer.Key()] = l.Peer.Owner
	}
	for k, a := range r.s.Addresses {
		a.Owner = owner[datapath.LinkKey{NS: a.NS, Name: a.Link}]
		r.s.Addresses[k] = a
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
	peers      map[datapath.LinkKey]bool
	near       map[datapath.NS]bool // namespaces with a wanted link: nothing else belongs there
	namespaces map[string]bool
	uplinks    map[string]string // by namespace
	addresses  map[datapath.AddressKey]bool
	neighbors  map[datapath.NeighborKey]bool
}

func indexWant(c *datapath.Config) wanted {
	w := wanted{
		links: map[datapath.LinkKey]*datapath.Link{}, peers: map[datapath.LinkKey]bool{}, near: map[datapath.NS]bool{},
		namespaces: map[string]bool{}, uplinks: map[string]string{}, addresses: map[datapath.AddressKey]bool{}, neighbors: map[datapath.NeighborKey]bool{},
	}
	for _, n := range c.Namespaces {
		w.namespaces[n.Name], w.uplinks[n.Name] = true, n.Uplink
	}
	for i := range c.Links {
		l := &c.Links[i]
		w.links[l.Key()] = l
		w.near[l.NS] = true
		if l.Kind == datapath.Veth {
			w.peers[l.Peer.Key()] = true
		}
	}
	for _, a := range c.Addresses {
		w.addresses[a.Key()] = true
	}
	for _, n := range c.Neighbors {
		w.neighbors[n.Key()] = true
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
	n, err := r.k.namespace(h, name, lo, r.want.uplinks[name])
	if err != nil {
		return err
	}
	r.s.Namespaces[name] = n
	ns := n.NS()
	whole := r.want.near[ns] || !r.want.namespaces[name]
	if !whole {
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
		if err := r.addLink(ns, l, byIndex); err != nil {
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
	if err := r.readRoutes(ns, h, names); err != nil {
		return err
	}
	if !bridges {
		return nil
	}
	return r.readFDB(ns, h, byIndex)
}

func (r *reader) addLink(ns datapath.NS, l link, byIndex map[int32]link) error {
	row := datapath.LinkState{Up: l.up, Link: datapath.Link{
		NS: ns, Name: l.name, Owner: l.owner(), Kind: datapath.Kind(l.kind), MAC: l.mac, MTU: l.mtu,
		Master: byIndex[l.master].name, VXLAN: l.vxlan,
	}}
	if l.master != 0 {
		row.Port = l.port
	}
	if row.Kind == datapath.Veth {
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

// readFarEnd fills in the peer where the wanted one is this link's far end.
func (r *reader) readFarEnd(row *datapath.LinkState, want datapath.Peer, near link) error {
	h, err := r.k.in(want.NS)
	if datapath.FaultOf(err) != "" {
		return nil // making it again tells why
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
	return r.readRoutes(want.NS, h, names)
}

// readAddresses reads the addresses of the named links: all of them, or those that are
// wanted or that heddle has added.
func (r *reader) readAddresses(ns datapath.NS, h *handle, names map[int32]string, all bool) error {
	var rows []datapath.Address
	err := h.dump(request(unix.RTM_GETADDR, 0, ifaddr(unix.AF_UNSPEC, 0, 0)), func() { rows = rows[:0] }, func(b []byte) {
		if len(b) < unix.SizeofIfAddrmsg {
			return
		}
		name, ok := names[int32(u32(b[4:]))]
		if !ok {
			return
		}
		var ip netip.Addr
		var proto uint8
		for t, v := range attributes(b[unix.SizeofIfAddrmsg:]) {
			switch {
			case t == unix.IFA_LOCAL, t == unix.IFA_ADDRESS && !ip.IsValid():
				ip, _ = netip.AddrFromSlice(v)
			case t == ifaProto:
				proto = on(v)
			}
		}
		a := datapath.Address{NS: ns, Link: name, Prefix: netip.PrefixFrom(ip, int(b[1]))}
		if all || proto == protoHeddle || r.want.addresses[a.Key()] {
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
		if len(b) < unix.SizeofNdMsg || u16(b[8:])&unix.NUD_PERMANENT == 0 || b[0] == unix.AF_BRIDGE {
			return
		}
		name, ok := names[int32(u32(b[4:]))]
		if !ok {
			return
		}
		n := datapath.Neighbor{NS: ns, Link: name}
		for t, v := range attributes(b[unix.SizeofNdMsg:]) {
			switch t {
			case unix.NDA_DST:
				n.IP, _ = netip.AddrFromSlice(v)
			case unix.NDA_LLADDR:
				copy(n.MAC[:], v)
			}
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
		if len(b) < unix.SizeofNdMsg || b[0] != unix.AF_BRIDGE {
			return
		}
		l, ok := links[int32(u32(b[4:]))]
		if !ok {
			return
		}
		state, self := u16(b[8:]), b[10]&unix.NTF_SELF != 0
		key := datapath.FDBKey{NS: ns, Link: l.name}
		var dst netip.Addr
		for t, v := range attributes(b[unix.SizeofNdMsg:]) {
			switch t {
			case unix.NDA_LLADDR:
				copy(key.MAC[:], v)
			case unix.NDA_DST:
				dst, _ = netip.AddrFromSlice(v)
			case unix.NDA_VLAN:
				return // of a bridge that filters VLANs, which heddle's does not
			}
		}
		e := found[key]
		switch {
		case self && l.kind == string(datapath.VXLAN):
			e.self++
			e.vtep = dst
		case !self && state&unix.NUD_NOARP != 0 && state&unix.NUD_PERMANENT == 0:
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

func u16(b []byte) uint16 { return binary.NativeEndian.Uint16(b) }
