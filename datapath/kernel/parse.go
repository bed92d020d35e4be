package kernel

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// What rtnetlink's messages say, of dumps and notifications alike. None of the functions here
// looks at more than the message: links are told by index.

// addr is an address of a link.
type addr struct {
	index  int32
	prefix netip.Prefix
	proto  uint8 // who has added it; 0 where the kernel does not tell
}

func parseAddr(b []byte) (a addr, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return a, false
	}
	a.index = int32(u32(b[4:]))
	var ip netip.Addr
	for t, v := range attributes(b[unix.SizeofIfAddrmsg:]) {
		switch {
		case t == unix.IFA_LOCAL, t == unix.IFA_ADDRESS && !ip.IsValid():
			ip, _ = netip.AddrFromSlice(v)
		case t == ifaProto:
			a.proto = on(v)
		}
	}
	a.prefix = netip.PrefixFrom(ip, int(b[1]))
	return a, a.prefix.IsValid()
}

// parseNeighbor reads an entry of ARP or ND.
func parseNeighbor(b []byte) (n datapath.Neighbor, index int32, state uint16, ok bool) {
	if len(b) < unix.SizeofNdMsg || b[0] == unix.AF_BRIDGE {
		return n, 0, 0, false
	}
	for t, v := range attributes(b[unix.SizeofNdMsg:]) {
		switch t {
		case unix.NDA_DST:
			n.IP, _ = netip.AddrFromSlice(v)
		case unix.NDA_LLADDR:
			copy(n.MAC[:], v)
		}
	}
	return n, int32(u32(b[4:])), u16(b[8:]), n.IP.IsValid()
}

// fdbRow is one half of a forwarding entry.
type fdbRow struct {
	index  int32
	mac    datapath.MAC
	self   bool // in the device, else in the bridge
	static bool // in the bridge, written by somebody
	vtep   netip.Addr
}

func parseFDB(b []byte) (r fdbRow, ok bool) {
	if len(b) < unix.SizeofNdMsg || b[0] != unix.AF_BRIDGE {
		return r, false
	}
	r.index = int32(u32(b[4:]))
	state := u16(b[8:])
	r.self = b[10]&unix.NTF_SELF != 0
	r.static = !r.self && state&unix.NUD_NOARP != 0 && state&unix.NUD_PERMANENT == 0
	for t, v := range attributes(b[unix.SizeofNdMsg:]) {
		switch t {
		case unix.NDA_LLADDR:
			copy(r.mac[:], v)
		case unix.NDA_DST:
			r.vtep, _ = netip.AddrFromSlice(v)
		case unix.NDA_VLAN:
			return r, false // of a bridge that filters VLANs, which heddle's does not
		}
	}
	return r, true
}

// parseRoute reads a route that is heddle's, and the index of its link, unless it leads nowhere.
func parseRoute(b []byte) (r datapath.Route, oif int32, ok bool) {
	if len(b) < unix.SizeofRtMsg || b[5] != protoHeddle || b[4] != unix.RT_TABLE_MAIN && b[4] != unix.RT_TABLE_LOCAL {
		return r, 0, false
	}
	switch b[7] {
	case unix.RTN_UNICAST, unix.RTN_LOCAL:
	case unix.RTN_UNREACHABLE:
		r.Link = datapath.Nowhere
	default:
		return r, 0, false
	}
	dst := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	for t, v := range attributes(b[unix.SizeofRtMsg:]) {
		switch t {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(v)
		case unix.RTA_GATEWAY:
			r.Via, _ = netip.AddrFromSlice(v)
		case unix.RTA_OIF:
			oif = int32(u32(v))
		case unix.RTA_PRIORITY:
			r.Metric = int(u32(v))
		}
	}
	r.Prefix = netip.PrefixFrom(dst, int(b[1]))
	return r, oif, r.Prefix.IsValid()
}

// parsePort reads the flags of a port from what its bridge tells.
func parsePort(b []byte) (f datapath.PortFlags, learning, ok bool) {
	for t, v := range attributes(b[unix.SizeofIfInfomsg:]) {
		if t == unix.IFLA_PROTINFO {
			f, learning = portFlags(v)
			return f, learning, true
		}
	}
	return f, false, false
}

func portFlags(b []byte) (f datapath.PortFlags, learning bool) {
	for t, v := range attributes(b) {
		switch t {
		case unix.IFLA_BRPORT_UNICAST_FLOOD:
			f.Flood = on(v) != 0
		case unix.IFLA_BRPORT_BCAST_FLOOD:
			f.BroadcastFlood = on(v) != 0
		case unix.IFLA_BRPORT_MCAST_FLOOD:
			f.MulticastFlood = on(v) != 0
		case unix.IFLA_BRPORT_NEIGH_SUPPRESS:
			f.NeighborSuppress = on(v) != 0
		case unix.IFLA_BRPORT_ISOLATED:
			f.Isolated = on(v) != 0
		case unix.IFLA_BRPORT_LEARNING:
			learning = on(v) != 0
		}
	}
	return f, learning
}

func u16(b []byte) uint16 { return binary.NativeEndian.Uint16(b) }
