// Package frames makes Ethernet frames as a workload may send them, honest and forged ones, for
// tests of what a port lets through.
package frames

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

// Station is a workload, or a network's gateway.
type Station struct {
	MAC      net.HardwareAddr
	IP4, IP6 netip.Addr // zero where it has none
}

// Frame is one to be sent by a workload. Kind is the counter that it belongs to, "" for an honest
// one.
type Frame struct {
	Name  string
	Kind  string
	Bytes []byte
}

// From are frames from one workload to another of its network. A frame's checksums are not right:
// it is judged before anybody looks at them.
func From(me, other, gateway Station) []Frame {
	all := append(me.plain(other, gateway), me.tagged(other)...)
	if me.IP4.IsValid() {
		all = append(all, me.four(other, gateway)...)
	}
	if me.IP6.IsValid() {
		all = append(all, me.six(other, gateway)...)
	}
	return all
}

func (me Station) plain(other, gateway Station) []Frame {
	return []Frame{
		{"the gateway's MAC", "mac", me.as(gateway.MAC).to(other, typeIPv6, ip6(me.local(), other.local(), 17, udp(9, 9)))},
		{"another link-local address", "ip", me.to(other, typeIPv6, ip6(other.local(), other.local(), 17, udp(9, 9)))},
		{"a frame of another protocol", "other", me.to(other, 0x88cc, make([]byte, 46))},
		{"an IP packet behind an LLC header", "other", me.to(other, 28, append([]byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, make([]byte, 20)...))},
		{"its link-local address", "", me.to(other, typeIPv6, ip6(me.local(), other.local(), 17, udp(9, 9)))},
		{"a search for duplicates of its link-local address", "", me.to(other, typeIPv6, solicit(netip.IPv6Unspecified(), me.local(), option(14, make([]byte, 6))))},
		{"a search for duplicates of another's", "nd", me.to(other, typeIPv6, solicit(netip.IPv6Unspecified(), other.local(), nil))},
		{"a listener's report before it has an address", "", me.to(other, typeIPv6, ip6(netip.IPv6Unspecified(), allNodes, hopByHop, append([]byte{58, 0, 5, 2, 0, 0, 1, 0}, icmp(143, make([]byte, 24))...)))},
		{"a listener's report", "", me.to(other, typeIPv6, ip6(me.local(), allNodes, hopByHop, append([]byte{58, 0, 5, 2, 0, 0, 1, 0}, icmp(143, make([]byte, 24))...)))},
		{"a router solicitation", "", me.to(other, typeIPv6, ip6(me.local(), allNodes, 58, icmp(133, make([]byte, 4), option(1, me.MAC))))},
		{"a router solicitation without options", "", me.to(other, typeIPv6, ip6(me.local(), allNodes, 58, icmp(133, make([]byte, 4))))},
		{"a router solicitation with another's MAC", "nd", me.to(other, typeIPv6, ip6(me.local(), allNodes, 58, icmp(133, make([]byte, 4), option(1, other.MAC))))},
		{"a router advertisement", "ra", me.to(other, typeIPv6, advert(me.local()))},
		{"a router advertisement behind another header", "ra", me.to(other, typeIPv6, ip6(me.local(), allNodes, hopByHop, append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, advert(me.local())[40:]...)))},
		{"a redirect", "ra", me.to(other, typeIPv6, ip6(me.local(), other.local(), 58, icmp(137, make([]byte, 36))))},
	}
}

// tagged are VLANs: with one tag, two, and the tag of priorities alone.
func (me Station) tagged(other Station) []Frame {
	inner := binary.BigEndian.AppendUint16([]byte{0, 7}, typeIPv6)
	inner = append(inner, ip6(me.local(), other.local(), 17, udp(9, 9))...)
	return []Frame{
		{"an 802.1Q tag", "vlan", me.to(other, 0x8100, inner)},
		{"an 802.1ad tag", "vlan", me.to(other, 0x88a8, inner)},
		{"both", "vlan", me.to(other, 0x88a8, append([]byte{0, 9, 0x81, 0}, inner...))},
		{"a tag of VLAN 0", "vlan", me.to(other, 0x8100, append([]byte{0, 0}, inner[2:]...))},
	}
}

func (me Station) four(other, gateway Station) []Frame {
	nobody := netip.AddrFrom4([4]byte{})
	return []Frame{
		{"IPv4", "", me.to(other, typeIPv4, ip4(me.IP4, other.IP4, 17, udp(9, 9)))},
		{"TCP to port 68", "", me.to(other, typeIPv4, ip4(me.IP4, other.IP4, 6, append([]byte{0, 9, 0, 68}, make([]byte, 16)...)))},
		{"a later fragment", "", me.to(other, typeIPv4, fragment4(ip4(me.IP4, other.IP4, 17, udp(9, 68))))},
		{"a question of a DHCP client", "", me.to(other, typeIPv4, ip4(me.IP4, other.IP4, 17, udp(68, 67)))},
		{"an answer of a DHCP server", "dhcp", me.to(other, typeIPv4, ip4(me.IP4, other.IP4, 17, udp(67, 68)))},
		{"another's MAC", "mac", me.as(other.MAC).to(gateway, typeIPv4, ip4(other.IP4, gateway.IP4, 17, udp(9, 9)))},
		{"another's IPv4", "ip", me.to(gateway, typeIPv4, ip4(other.IP4, gateway.IP4, 17, udp(9, 9)))},
		{"the gateway's IPv4", "ip", me.to(other, typeIPv4, ip4(gateway.IP4, other.IP4, 17, udp(9, 9)))},
		{"no IPv4", "ip", me.to(other, typeIPv4, ip4(nobody, other.IP4, 17, udp(68, 67)))},
		{"a question by ARP", "", me.to(other, typeARP, arp(1, me.MAC, me.IP4, other.IP4))},
		{"an answer by ARP", "", me.to(other, typeARP, arp(2, me.MAC, me.IP4, other.IP4))},
		{"a probe by ARP", "", me.to(other, typeARP, arp(1, me.MAC, nobody, me.IP4))},
		{"another's IP by ARP", "arp", me.to(other, typeARP, arp(1, me.MAC, gateway.IP4, other.IP4))},
		{"another's MAC by ARP", "arp", me.to(other, typeARP, arp(2, gateway.MAC, me.IP4, other.IP4))},
		{"another altogether by ARP", "arp", me.to(other, typeARP, arp(2, gateway.MAC, gateway.IP4, other.IP4))},
		{"another's ARP", "mac", me.as(gateway.MAC).to(other, typeARP, arp(2, gateway.MAC, gateway.IP4, other.IP4))},
	}
}

func (me Station) six(other, gateway Station) []Frame {
	mine, theirs := option(1, me.MAC), option(1, other.MAC)
	return []Frame{
		{"IPv6", "", me.to(other, typeIPv6, ip6(me.IP6, other.IP6, 17, udp(9, 9)))},
		{"TCP to port 546", "", me.to(other, typeIPv6, ip6(me.IP6, other.IP6, 6, append([]byte{0, 9, 2, 34}, make([]byte, 16)...)))},
		{"an echo request", "", me.to(other, typeIPv6, ip6(me.IP6, other.IP6, 58, icmp(128, make([]byte, 4))))},
		{"a later fragment of an echo request", "", me.to(other, typeIPv6, ip6(me.IP6, other.IP6, 44, append([]byte{58, 0, 0, 8, 0, 0, 0, 1}, make([]byte, 16)...)))},
		{"a later fragment of UDP", "", me.to(other, typeIPv6, label(546, ip6(me.IP6, other.IP6, 44, append([]byte{17, 0, 0, 8, 0, 0, 0, 1}, udp(9, 546)...))))},
		{"an answer of a DHCPv6 server in fragments", "dhcp", me.to(other, typeIPv6, ip6(me.IP6, other.IP6, 44, append([]byte{17, 0, 0, 1, 0, 0, 0, 1}, udp(547, 546)...)))},
		{"an answer of a DHCPv6 server behind another header", "dhcp", me.to(other, typeIPv6, ip6(me.IP6, other.IP6, 60, append([]byte{17, 0, 1, 4, 0, 0, 0, 0}, udp(547, 546)...)))},
		{"a question of a DHCPv6 client", "", me.to(other, typeIPv6, ip6(me.local(), other.local(), 17, udp(546, 547)))},
		{"an answer of a DHCPv6 server", "dhcp", me.to(other, typeIPv6, ip6(me.local(), other.local(), 17, udp(547, 546)))},
		{"another's IPv6", "ip", me.to(gateway, typeIPv6, ip6(other.IP6, gateway.IP6, 17, udp(9, 9)))},
		{"the gateway's IPv6", "ip", me.to(other, typeIPv6, ip6(gateway.IP6, other.IP6, 17, udp(9, 9)))},
		{"another's echo request", "ip", me.to(gateway, typeIPv6, ip6(other.IP6, gateway.IP6, 58, icmp(128, make([]byte, 4))))},
		{"a solicitation", "", me.to(other, typeIPv6, solicit(me.IP6, other.IP6, mine))},
		{"a solicitation without options", "", me.to(other, typeIPv6, solicit(me.IP6, other.IP6, nil))},
		{"a search for duplicates", "", me.to(other, typeIPv6, solicit(netip.IPv6Unspecified(), me.IP6, nil))},
		{"a search for duplicates of the gateway", "nd", me.to(other, typeIPv6, solicit(netip.IPv6Unspecified(), gateway.IP6, nil))},
		{"another's MAC in a solicitation", "nd", me.to(other, typeIPv6, solicit(me.IP6, other.IP6, theirs))},
		{"another's MAC behind an option", "nd", me.to(other, typeIPv6, solicit(me.IP6, other.IP6, append(option(14, make([]byte, 6)), theirs...)))},
		{"another's solicitation", "nd", me.to(other, typeIPv6, solicit(gateway.IP6, other.IP6, mine))},
		{"an answer", "", me.to(other, typeIPv6, advertise(me.IP6, me.IP6, option(2, me.MAC)))},
		{"an answer without options", "", me.to(other, typeIPv6, advertise(me.IP6, me.IP6, nil))},
		{"an answer for its link-local address", "", me.to(other, typeIPv6, advertise(me.local(), me.local(), option(2, me.MAC)))},
		{"an answer for the gateway", "nd", me.to(other, typeIPv6, advertise(me.IP6, gateway.IP6, option(2, me.MAC)))},
		{"an answer of the gateway", "nd", me.to(other, typeIPv6, advertise(gateway.IP6, gateway.IP6, option(2, me.MAC)))},
		{"an answer with another's MAC", "nd", me.to(other, typeIPv6, advertise(me.IP6, me.IP6, option(2, gateway.MAC)))},
		{"an answer in fragments", "nd", me.to(other, typeIPv6, ip6(me.IP6, other.IP6, 44, append([]byte{58, 0, 0, 1, 0, 0, 0, 1}, advertise(me.IP6, me.IP6, nil)[40:]...)))},
	}
}

// The numbers are those of RFC 894, 826, 8200, 4861 and IEEE 802.1Q.
const (
	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeIPv6 = 0x86dd
	hopByHop = 0
)

var allNodes = netip.MustParseAddr("ff02::1")

// local is the link-local address that belongs to the MAC.
func (s Station) local() netip.Addr {
	m := s.MAC
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// as is the station with another MAC.
func (s Station) as(mac net.HardwareAddr) Station { s.MAC = mac; return s }

func (s Station) to(other Station, etherType uint16, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint16(slices.Concat(other.MAC, s.MAC), etherType), payload...)
}

func udp(from, to uint16) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
	return append(b, 0, 12, 0, 0, 'd', 'a', 't', 'a')
}

func arp(op byte, mac net.HardwareAddr, ip, target netip.Addr) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, op}, mac, ip.AsSlice(), make([]byte, 6), target.AsSlice())
}

func ip4(src, dst netip.Addr, proto byte, payload []byte) []byte {
	head := []byte{0x45, 0, 0, byte(20 + len(payload)), 0, 0, 0, 0, 64, proto, 0, 0}
	return slices.Concat(head, src.AsSlice(), dst.AsSlice(), payload)
}

func fragment4(packet []byte) []byte {
	packet[7] = 9
	return packet
}

// label sets a part of the flow label, which nf_tables may take for a port.
func label(v uint16, packet []byte) []byte {
	binary.BigEndian.PutUint16(packet[2:], v)
	return packet
}

func ip6(src, dst netip.Addr, next byte, payload []byte) []byte {
	return slices.Concat([]byte{0x60, 0, 0, 0, 0, byte(len(payload)), next, 255}, src.AsSlice(), dst.AsSlice(), payload)
}

func icmp(kind byte, parts ...[]byte) []byte {
	return append([]byte{kind, 0, 0, 0}, slices.Concat(parts...)...)
}

func option(kind byte, value []byte) []byte { return append([]byte{kind, 1}, value...) }

func solicit(src, target netip.Addr, options []byte) []byte {
	return ip6(src, allNodes, 58, icmp(135, make([]byte, 4), target.AsSlice(), options))
}

func advertise(src, target netip.Addr, options []byte) []byte {
	return ip6(src, allNodes, 58, icmp(136, []byte{0x60, 0, 0, 0}, target.AsSlice(), options))
}

func advert(src netip.Addr) []byte {
	return ip6(src, allNodes, 58, icmp(134, []byte{64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}))
}
