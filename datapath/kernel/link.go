package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

const (
	mark             = "heddle:"       // starts the alias of every link that is heddle's
	skipStats        = 1 << 3          // RTEXT_FILTER_SKIP_STATS
	vethInfoPeer     = 1               // VETH_INFO_PEER
	addrGenNone      = 1               // IN6_ADDR_GEN_MODE_NONE
	inet6AddrGenMode = 8               // IFLA_INET6_ADDR_GEN_MODE
	operUp           = 6               // IF_OPER_UP
	readyDeadline    = 3 * time.Second // linkwatch may put a carrier off for one
)

// link is a network device as the kernel tells of it.
type link struct {
	index, master, peer int32 // peer is IFLA_LINK
	up                  bool
	oper                uint8
	name, alias, kind   string
	mac                 datapath.MAC
	mtu                 int
	vxlan               datapath.VXLANAttr
	port                datapath.PortFlags
	altered             bool // a setting that heddle always turns off is on
	abroad              bool // the other side is in another namespace: its ID here is netnsID
	netnsID             uint32
}

// owner is whom the link's mark names. A link with settings that heddle never leaves so
// names nobody: it is written again.
func (l *link) owner() datapath.Owner {
	if o, ok := strings.CutPrefix(l.alias, mark); ok && !l.altered {
		return datapath.Owner(o)
	}
	return ""
}

func (l *link) ours() bool { return strings.HasPrefix(l.alias, mark) }

func parseLink(b []byte) link {
	l := link{}
	if len(b) < unix.SizeofIfInfomsg {
		return l
	}
	l.index = int32(u32(b[4:]))
	l.up = u32(b[8:])&unix.IFF_UP != 0
	for t, v := range attributes(b[unix.SizeofIfInfomsg:]) {
		switch t {
		case unix.IFLA_IFNAME:
			l.name = text(v)
		case unix.IFLA_IFALIAS:
			l.alias = text(v)
		case unix.IFLA_MTU:
			l.mtu = int(u32(v))
		case unix.IFLA_MASTER:
			l.master = int32(u32(v))
		case unix.IFLA_LINK:
			l.peer = int32(u32(v))
		case unix.IFLA_LINK_NETNSID:
			l.abroad, l.netnsID = true, u32(v)
		case unix.IFLA_OPERSTATE:
			l.oper = on(v)
		case unix.IFLA_ADDRESS:
			copy(l.mac[:], v)
		case unix.IFLA_LINKINFO:
			l.parseInfo(v)
		}
	}
	return l
}

func (l *link) parseInfo(b []byte) {
	var data, port []byte
	for t, v := range attributes(b) {
		switch t {
		case unix.IFLA_INFO_KIND:
			if l.kind = text(v); l.kind == tunKind {
				l.kind = string(datapath.WireGuard) // as far as can be seen
			}
		case unix.IFLA_INFO_DATA:
			data = v
		case unix.IFLA_INFO_SLAVE_DATA:
			port = v
		}
	}
	l.port, l.altered = portFlags(port)
	switch datapath.Kind(l.kind) {
	case datapath.Bridge:
		l.parseBridge(data)
	case datapath.VXLAN:
		l.parseVXLAN(data)
	}
}

func (l *link) parseBridge(data []byte) {
	for t, v := range attributes(data) {
		switch t {
		case unix.IFLA_BR_STP_STATE, unix.IFLA_BR_FORWARD_DELAY:
			l.altered = l.altered || u32(v) != 0
		case unix.IFLA_BR_MCAST_SNOOPING:
			l.altered = l.altered || on(v) != 0
		}
	}
}

func (l *link) parseVXLAN(data []byte) {
	for t, v := range attributes(data) {
		switch t {
		case unix.IFLA_VXLAN_ID:
			l.vxlan.VNI = u32(v)
		case unix.IFLA_VXLAN_PORT:
			if len(v) == 2 {
				l.vxlan.Port = binary.BigEndian.Uint16(v)
			}
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			l.vxlan.Local, _ = netip.AddrFromSlice(v)
		}
	}
}

// on is the first byte of a one-byte attribute.
func on(v []byte) uint8 {
	if len(v) == 0 {
		return 0
	}
	return v[0]
}

// byName asks for one link. A missing one is an error that wraps unix.ENODEV.
func (h *handle) byName(name string) (link, error) {
	var l link
	err := h.get(request(unix.RTM_GETLINK, 0, ifinfo(0, 0, 0)).str(unix.IFLA_IFNAME, name).u32(unix.IFLA_EXT_MASK, skipStats),
		func(b []byte) { l = parseLink(b) })
	if err == nil {
		h.index[name] = l.index
	}
	return l, err
}

// indexOf is the index of a link, from the kernel when it is not known.
func (h *handle) indexOf(name string) (int32, error) {
	if i, ok := h.index[name]; ok {
		return i, nil
	}
	l, err := h.byName(name)
	return l.index, err
}

func (h *handle) links() ([]link, error) {
	var out []link
	err := h.dump(request(unix.RTM_GETLINK, 0, ifinfo(0, 0, 0)).u32(unix.IFLA_EXT_MASK, skipStats),
		func() { out = out[:0] },
		func(b []byte) { out = append(out, parseLink(b)) })
	if err != nil {
		return nil, fmt.Errorf("list links of %s: %w", h.file.Name(), err)
	}
	clear(h.index)
	for _, l := range out {
		h.index[l.name] = l.index
	}
	return out, nil
}

func (k *Kernel) addLink(l datapath.Link) error {
	if l.Kind == datapath.WireGuard {
		return k.addWireGuard(l)
	}
	h, err := k.in(l.NS)
	if err != nil {
		return err
	}
	m := request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0, 0)).str(unix.IFLA_IFNAME, l.Name)
	m.u32(unix.IFLA_MTU, uint32(l.MTU)).bytes(unix.IFLA_ADDRESS, l.MAC[:])
	if l.Master != "" {
		i, err := h.indexOf(l.Master)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", l.Master, err)
		}
		m.u32(unix.IFLA_MASTER, uint32(i))
	}
	var far *handle
	in := h // where the request goes
	switch l.Kind {
	case datapath.Bridge:
		m.nest(unix.IFLA_LINKINFO, func() { bridgeInfo(m) })
	case datapath.VXLAN: // the underlay is the namespace of the socket
		if in, err = k.in(l.VXLAN.Underlay); err != nil {
			return err
		}
		m.u32(unix.IFLA_NET_NS_FD, uint32(h.file.Fd()))
		m.nest(unix.IFLA_LINKINFO, func() { vxlanInfo(m, l.VXLAN) })
	case datapath.Veth:
		if far, err = k.in(l.Peer.NS); err != nil {
			return err
		}
		m.nest(unix.IFLA_LINKINFO, func() { vethInfo(m, l.Peer, far) })
	default:
		return fmt.Errorf("link kind %q is unknown", l.Kind)
	}
	delete(h.index, l.Name)
	if err := addFrom(in, h, l.Name, m); err != nil {
		if err = k.explainAdd(l, h, far, err); err != nil {
			return err
		}
		if err := in.do(m); err != nil {
			return err
		}
	}
	if far != nil {
		delete(far.index, l.Peer.Name)
		if err := k.prepareFarEnd(l, far); err != nil {
			return err
		}
	}
	return writeLink(h, l)
}

// passingName is a link's between its making and its naming.
const passingName = "heddle-making"

// addFrom makes a link of h by a request in the namespace in. Linux before 6.2 looks for links of the
// name there: where it finds one, ours gets its name afterwards.
func addFrom(in, h *handle, name string, m *message) error {
	err := in.do(m)
	if in == h || !errors.Is(err, unix.EEXIST) {
		return err
	}
	if _, missing := h.byName(name); missing == nil {
		return err
	}
	if in.do(m.str(unix.IFLA_IFNAME, passingName)) != nil { // of two the last counts
		return err // it was not for the name
	}
	l, err := h.byName(passingName)
	if err != nil {
		return err
	}
	delete(h.index, passingName)
	return h.do(request(unix.RTM_NEWLINK, 0, ifinfo(l.index, 0, 0)).str(unix.IFLA_IFNAME, name))
}

func bridgeInfo(m *message) {
	m.str(unix.IFLA_INFO_KIND, "bridge")
	m.nest(unix.IFLA_INFO_DATA, func() {
		m.u32(unix.IFLA_BR_FORWARD_DELAY, 0).u32(unix.IFLA_BR_STP_STATE, 0).u8(unix.IFLA_BR_MCAST_SNOOPING, 0)
	})
}

func vxlanInfo(m *message, v datapath.VXLANAttr) {
	m.str(unix.IFLA_INFO_KIND, "vxlan")
	m.nest(unix.IFLA_INFO_DATA, func() {
		m.u32(unix.IFLA_VXLAN_ID, v.VNI).u8(unix.IFLA_VXLAN_LEARNING, 0)
		m.bytes(unix.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, v.Port))
		vxlanLocal(m, v.Local)
	})
}

func vxlanLocal(m *message, a netip.Addr) {
	if a.Is4() {
		m.bytes(unix.IFLA_VXLAN_LOCAL, a.AsSlice())
	} else if a.IsValid() {
		m.bytes(unix.IFLA_VXLAN_LOCAL6, a.AsSlice())
	}
}

func vethInfo(m *message, p datapath.Peer, far *handle) {
	m.str(unix.IFLA_INFO_KIND, "veth")
	m.nest(unix.IFLA_INFO_DATA, func() {
		m.nest(vethInfoPeer, func() {
			m.raw(ifinfo(0, 0, 0))
			m.str(unix.IFLA_IFNAME, p.Name).u32(unix.IFLA_MTU, uint32(p.MTU)).bytes(unix.IFLA_ADDRESS, p.MAC[:])
			m.u32(unix.IFLA_NET_NS_FD, uint32(far.file.Fd()))
		})
	})
}

// explainAdd turns the kernel's refusal to make a link into what stands in the way. Nil
// means that a leftover of heddle's stood there and is deleted.
func (k *Kernel) explainAdd(l datapath.Link, h, far *handle, refusal error) error {
	if errors.Is(refusal, unix.EOPNOTSUPP) {
		return datapath.Errorf(datapath.Unsupported, "this kernel cannot make %s devices: %w; load the module %s", l.Kind, refusal, l.Kind)
	}
	if !errors.Is(refusal, unix.EEXIST) {
		return refusal
	}
	if there, err := h.byName(l.Name); err == nil {
		if name, ok := ownName(l.NS); ok && k.own[name] != nil {
			return refusal // everything there is heddle's: the next reading shows it
		}
		return takenName(h, l.NS, there, l.Owner, refusal)
	}
	if far != nil {
		if there, err := far.byName(l.Peer.Name); err == nil {
			return takenName(far, l.Peer.NS, there, l.Peer.Owner, refusal)
		}
	}
	if l.Kind == datapath.VXLAN {
		return datapath.Errorf(datapath.Taken, "VNI %d on UDP port %d is taken by a VXLAN device that is not heddle's (%w); remove that device", l.VXLAN.VNI, l.VXLAN.Port, refusal)
	}
	return refusal
}

func takenName(h *handle, ns datapath.NS, there link, owner datapath.Owner, refusal error) error {
	switch {
	case !there.ours():
		return datapath.Errorf(datapath.Foreign, "link %s in namespace %s is not heddle's (%w); rename or delete it, or choose another interface name", there.name, ns, refusal)
	case there.owner() != owner: // another endpoint's, which may be on its way out
		return fmt.Errorf("link %s in namespace %s is there for %s: %w", there.name, ns, there.alias, refusal)
	}
	return gone(h.do(request(unix.RTM_DELLINK, 0, ifinfo(there.index, 0, 0))))
}

// setLink writes everything that can change in a link and its far end.
func (k *Kernel) setLink(l datapath.Link) error {
	if l.Kind == datapath.WireGuard {
		return k.setWireGuard(l)
	}
	h, err := k.in(l.NS)
	if err != nil {
		return err
	}
	var master int32
	if l.Master != "" {
		if master, err = h.indexOf(l.Master); err != nil {
			return fmt.Errorf("bridge %s: %w", l.Master, err)
		}
	}
	if err := h.change(l.Name, l.MAC, l.MTU, &master); err != nil {
		return err
	}
	if l.Kind == datapath.Veth {
		far, err := k.in(l.Peer.NS)
		if err != nil {
			return err
		}
		if err := far.change(l.Peer.Name, l.Peer.MAC, l.Peer.MTU, nil); err != nil {
			return err
		}
		if err := k.prepareFarEnd(l, far); err != nil {
			return err
		}
	}
	if l.Kind == datapath.VXLAN {
		m := request(unix.RTM_NEWLINK, 0, ifinfo(0, 0, 0)).str(unix.IFLA_IFNAME, l.Name)
		m.nest(unix.IFLA_LINKINFO, func() {
			m.str(unix.IFLA_INFO_KIND, "vxlan").nest(unix.IFLA_INFO_DATA, func() { vxlanLocal(m, l.VXLAN.Local) })
		})
		if err := h.do(m); err != nil {
			return err
		}
	}
	return writeLink(h, l)
}

// change writes what differs alone: a MAC that is written, even the same, makes the kernel
// forget the link's neighbours.
func (h *handle) change(name string, mac datapath.MAC, mtu int, master *int32) error {
	there, err := h.byName(name)
	if err != nil {
		return err
	}
	m := request(unix.RTM_NEWLINK, 0, ifinfo(there.index, 0, 0))
	if there.mac != mac {
		m.bytes(unix.IFLA_ADDRESS, mac[:])
	}
	if there.mtu != mtu {
		m.u32(unix.IFLA_MTU, uint32(mtu))
	}
	if master != nil && there.master != *master {
		m.u32(unix.IFLA_MASTER, uint32(*master))
	}
	return h.do(m)
}

// writeLink writes the mark and what only an existing link takes: the flags of a port, and
// that no link-local address is made.
func writeLink(h *handle, l datapath.Link) error {
	m := request(unix.RTM_NEWLINK, 0, ifinfo(0, 0, 0)).str(unix.IFLA_IFNAME, l.Name)
	m.str(unix.IFLA_IFALIAS, mark+string(l.Owner))
	m.nest(unix.IFLA_LINKINFO, func() {
		if l.Kind == datapath.Bridge {
			bridgeInfo(m)
		}
		if l.Master == "" {
			return
		}
		m.str(unix.IFLA_INFO_SLAVE_KIND, "bridge")
		m.nest(unix.IFLA_INFO_SLAVE_DATA, func() {
			m.u8(unix.IFLA_BRPORT_LEARNING, 0)
			m.flag(unix.IFLA_BRPORT_UNICAST_FLOOD, l.Port.Flood)
			m.flag(unix.IFLA_BRPORT_BCAST_FLOOD, l.Port.BroadcastFlood)
			m.flag(unix.IFLA_BRPORT_MCAST_FLOOD, l.Port.MulticastFlood)
			m.flag(unix.IFLA_BRPORT_NEIGH_SUPPRESS, l.Port.NeighborSuppress)
			m.flag(unix.IFLA_BRPORT_ISOLATED, l.Port.Isolated)
		})
	})
	if hasIPv6() {
		m.nest(unix.IFLA_AF_SPEC, func() {
			m.nest(unix.AF_INET6, func() { m.u8(inet6AddrGenMode, addrGenNone) })
		})
	}
	return h.do(m)
}

func hasIPv6() bool {
	_, err := os.Stat("/proc/net/if_inet6")
	return err == nil
}

// prepareFarEnd marks a workload's interface and turns IPv6 on and router advertisements
// off for it.
func (k *Kernel) prepareFarEnd(l datapath.Link, far *handle) error {
	p := l.Peer
	m := request(unix.RTM_NEWLINK, 0, ifinfo(0, 0, 0)).str(unix.IFLA_IFNAME, p.Name).str(unix.IFLA_IFALIAS, mark+string(p.Owner))
	if err := far.do(m); err != nil {
		return err
	}
	list := farEndSysctls(p.Name)
	if p.NS.Path == "" && l.Master == "" { // the host's end of an uplink: what comes from it is forwarded
		list = append(list, sysctl{filepath.Join("net/ipv4/conf", p.Name, "forwarding"), "1"}, localnet(p.Name))
	}
	return netns.Do(far.file, func() error { return writeSysctls(list) })
}

func farEndSysctls(name string) []sysctl {
	return []sysctl{
		{filepath.Join("net/ipv6/conf", name, "disable_ipv6"), "0"},
		{filepath.Join("net/ipv6/conf", name, "accept_ra"), "0"},
		{filepath.Join("net/ipv4/conf", name, "promote_secondaries"), "1"},
	}
}

func (h *handle) setUp(name string) error {
	return h.do(request(unix.RTM_NEWLINK, 0, ifinfo(0, unix.IFF_UP, unix.IFF_UP)).str(unix.IFLA_IFNAME, name))
}

func (k *Kernel) upLink(l datapath.Link) error {
	h, err := k.in(l.NS)
	if err != nil {
		return err
	}
	if err := h.setUp(l.Name); err != nil {
		if l.Kind == datapath.VXLAN && errors.Is(err, unix.EADDRINUSE) {
			return datapath.Errorf(datapath.Taken, "UDP port %d for VXLAN is taken by %s (%w); end that, or choose another with --data-path-port at init", l.VXLAN.Port, k.holder(l.VXLAN.Port), err)
		}
		if l.Kind == datapath.WireGuard {
			return k.explainPort(l, err)
		}
		return err
	}
	if l.Kind == datapath.WireGuard {
		if err := k.upWireGuard(h, l); err != nil {
			return err
		}
	}
	if l.Kind == datapath.VXLAN && l.Master != "" { // the bridge has a carrier since its first port, and drops what the namespace itself sends until that is told
		if err := h.waitReady(l.Master); err != nil {
			return err
		}
	}
	if l.Kind != datapath.Veth {
		return h.waitAddresses(l.Name)
	}
	far, err := k.in(l.Peer.NS)
	if err != nil {
		return err
	}
	if err := far.setUp(l.Peer.Name); err != nil {
		return err
	}
	if err := far.waitReady(l.Peer.Name); err != nil {
		return err
	}
	if err := h.waitReady(l.Name); err != nil {
		return err
	}
	return far.waitAddresses(l.Peer.Name)
}

// waitReady returns when the link passes frames. Setting a link up is not enough: carrier
// is reported to the queueing layer, the bridge and IPv6 by a kernel worker. Asking for
// the link makes it run first, on kernels since 6.8.
func (h *handle) waitReady(name string) error {
	return poll("carrier of "+name, func() (bool, error) {
		l, err := h.byName(name)
		return l.oper == operUp, err
	})
}

// poll asks until the answer is yes.
func poll(what string, fn func() (bool, error)) error {
	for end := time.Now().Add(readyDeadline); ; time.Sleep(100 * time.Microsecond) {
		ok, err := fn()
		if ok || err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("no %s after %v", what, readyDeadline)
		}
	}
}

func (k *Kernel) delLink(l datapath.Link) error {
	h, err := k.in(l.NS)
	if err != nil {
		return gone(err)
	}
	if l.Kind == datapath.WireGuard || l.Kind == tunKind {
		return k.delWireGuard(h, l.Name)
	}
	delete(h.index, l.Name)
	return gone(h.do(request(unix.RTM_DELLINK, 0, ifinfo(0, 0, 0)).str(unix.IFLA_IFNAME, l.Name)))
}
