package kernel

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// A lock is a table of its own, so that one more costs the same whatever there is: nf_tables
// checks all chains of a table at each change. As nft would print it, for one address of each
// family:
//
//	table netdev heddle-PORT {
//		chain ingress { type filter hook ingress device PORT priority filter
//			udp dport 68                                            counter drop  dhcp
//			IPv4 from MAC, ip saddr IP4                             accept
//			udp dport 546                                           counter drop  dhcp
//			IPv6 from MAC, meta l4proto != icmpv6, ip6 saddr IP6    accept
//			…
//		}
//	}
//
// What most frames are comes first, and needs few steps: MAC and type are compared at once, in
// eight bytes that lie side by side, which a tag between them would tear apart. A frame that no
// rule accepts meets the one that says why it is dropped.
const (
	lockPrefix  = tableName + "-"
	lockChain   = "ingress"
	lockVersion = 1 // to be raised when the rules change, so that standing locks are written anew
)

// lockRule accepts what it matches, or with a kind drops and counts it.
type lockRule struct {
	kind   datapath.Forgery
	match  []expr.Any
	goesOn bool // there is no verdict
}

// hostPriority tells what the host itself sends as a workload from what its programs forge: the
// VXLAN frame keeps the program's socket, and the priority (socket(7)). One above 6 takes
// CAP_NET_ADMIN to set; queueing disciplines treat this one like 0.
const hostPriority = 8

// Ethernet and ICMPv6 types, in RFC 4861 and 3810 the latter.
const (
	typeIPv4, typeARP, typeIPv6 = 0x0800, 0x0806, 0x86dd
	typeVLAN, typeOuterVLAN     = 0x8100, 0x88a8

	routerSolicit, routerAdvert, neighborSolicit, neighborAdvert, redirect, listenerReport = 133, 134, 135, 136, 137, 143
)

func lockRules(l datapath.Lock) (rules []lockRule) {
	add := func(kind datapath.Forgery, match ...[]expr.Any) {
		rules = append(rules, lockRule{kind: kind, match: slices.Concat(match...)})
	}
	const accept datapath.Forgery = ""
	frame := func(etherType uint16) []expr.Any { return is(atLink, 6, be(l.MAC[:], etherType)) }
	var ip4, ip6 []netip.Addr
	for _, ip := range l.IPs {
		if ip.Is4() {
			ip4 = append(ip4, ip)
		} else {
			ip6 = append(ip6, ip)
		}
	}

	if l.Host {
		rules = append(rules, lockRule{goesOn: true, match: []expr.Any{
			&expr.Immediate{Register: 1, Data: binary.NativeEndian.AppendUint32(nil, hostPriority)},
			&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1},
		}})
	}
	add(datapath.ForgedDHCP, to(68), is(atLink, 12, be(uint16(typeIPv4))), begins4())
	for _, ip := range ip4 {
		add(accept, frame(typeIPv4), is(atNetwork, 12, ip.AsSlice()))
	}
	add(datapath.ForgedDHCP, to(546), whole6())
	add(datapath.ForgedDHCP, to(546), begins6())
	for _, ip := range ip6 {
		add(accept, frame(typeIPv6), carriesNo(unix.IPPROTO_ICMPV6), from6(ip))
	}
	for _, ip := range ip4 {
		add(accept, frame(typeARP), is(atNetwork, 8, be(l.MAC[:], ip.AsSlice())))
		// A probe for an address that nobody claims yet (RFC 5227).
		add(accept, frame(typeARP), is(atNetwork, 6, be(uint16(1), l.MAC[:], make([]byte, 4))))
	}
	add(datapath.ForgedVLAN, is(atLink, 12, be(uint16(typeVLAN))))
	add(datapath.ForgedVLAN, is(atLink, 12, be(uint16(typeOuterVLAN))))
	add(datapath.ForgedMAC, isNot(atLink, 6, l.MAC[:]))
	add(datapath.ForgedARP, is(atLink, 12, be(uint16(typeARP))))
	add(datapath.ForgedIP, is(atLink, 12, be(uint16(typeIPv4))))
	add(datapath.ForgedOther, isNot(atLink, 12, be(uint16(typeIPv6))))
	return append(rules, lockRules6(l.MAC, append(ip6, l.MAC.LinkLocal()))...)
}

// lockRules6 are the rules for IPv6 from the MAC that is not an address's ordinary traffic.
func lockRules6(mac datapath.MAC, own []netip.Addr) (rules []lockRule) {
	add := func(kind datapath.Forgery, match ...[]expr.Any) {
		rules = append(rules, lockRule{kind: kind, match: slices.Concat(match...)})
	}
	const accept datapath.Forgery = ""
	message := func(t byte) []expr.Any { return is(atTransport, 0, []byte{t}) }
	nowhere := netip.IPv6Unspecified()

	add(accept, carriesNo(unix.IPPROTO_ICMPV6), from6(mac.LinkLocal()))
	add(datapath.ForgedIP, carriesNo(unix.IPPROTO_ICMPV6))
	add(datapath.ForgedRA, message(routerAdvert))
	add(datapath.ForgedRA, message(redirect))
	for _, ip := range own { // duplicate address detection, whose options nobody heeds
		add(accept, message(neighborSolicit), from6(nowhere), is(atTransport, 8, ip.AsSlice()))
	}
	for _, m := range []struct {
		first, last byte
		bare        uint16 // length without options
	}{{routerSolicit, routerSolicit, 8}, {neighborSolicit, neighborAdvert, 24}} {
		// Without options, or with one alone that has the MAC: nf_tables can't look behind it. The
		// ICMPv6 header comes first, and the hop limit is 255, as in all of these (RFC 4861, RFC 6980).
		length := func(n uint16) []byte { return be(n, []byte{unix.IPPROTO_ICMPV6, 255}) }
		with := m.bare + 8
		add(datapath.ForgedND, messages(m.first, m.last), isNot(atNetwork, 4, length(m.bare)), isNot(atNetwork, 4, length(with)))
		add(datapath.ForgedND, messages(m.first, m.last), is(atNetwork, 4, length(with)), isNot(atTransport, uint32(m.bare)+2, mac[:]))
	}
	for _, ip := range own {
		add(accept, message(neighborAdvert), from6(ip), is(atTransport, 8, ip.AsSlice()))
	}
	add(datapath.ForgedND, message(neighborAdvert))
	add(accept, message(listenerReport), from6(nowhere)) // before the first address is usable (RFC 3590)
	for _, ip := range own {
		add(accept, carries(unix.IPPROTO_ICMPV6), from6(ip))
	}
	add(datapath.ForgedND, messages(routerSolicit, neighborSolicit))
	add(datapath.ForgedIP)
	return rules
}

const (
	atLink      = expr.PayloadBaseLLHeader
	atNetwork   = expr.PayloadBaseNetworkHeader
	atTransport = expr.PayloadBaseTransportHeader
)

// be puts numbers and bytes side by side as they are sent.
func be(parts ...any) (out []byte) {
	for _, p := range parts {
		out, _ = binary.Append(out, binary.BigEndian, p)
	}
	return out
}

func is(base expr.PayloadBase, offset uint32, data []byte) []expr.Any {
	return compare(base, offset, expr.CmpOpEq, data)
}

func isNot(base expr.PayloadBase, offset uint32, data []byte) []expr.Any {
	return compare(base, offset, expr.CmpOpNeq, data)
}

func compare(base expr.PayloadBase, offset uint32, op expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))},
		&expr.Cmp{Op: op, Register: 1, Data: data},
	}
}

// messages matches ICMPv6 messages by type.
func messages(first, last byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: atTransport, Len: 1},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{first}, ToData: []byte{last}},
	}
}

// to matches UDP to a port. What is no beginning of a packet may look like it.
func to(port uint16) []expr.Any {
	return append(is(atTransport, 2, be(port)), carries(unix.IPPROTO_UDP)...)
}

// begins4 matches what is no later fragment of an IPv4 packet.
func begins4() []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: atNetwork, Offset: 6, Len: 2}, bits(0x1fff), &expr.Cmp{Register: 1, Data: make([]byte, 2)}}
}

// begins6 matches the first fragment of an IPv6 packet, and whole6 what is no fragment.
func begins6() []expr.Any {
	return []expr.Any{&expr.Exthdr{DestRegister: 1, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2}, bits(0xfff8), &expr.Cmp{Register: 1, Data: make([]byte, 2)}}
}

func whole6() []expr.Any {
	return []expr.Any{&expr.Exthdr{DestRegister: 1, Type: unix.IPPROTO_FRAGMENT, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT}, &expr.Cmp{Register: 1, Data: []byte{0}}}
}

func bits(mask uint16) *expr.Bitwise {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: be(mask), Xor: make([]byte, 2)}
}

func from6(ip netip.Addr) []expr.Any { return is(atNetwork, 8, ip.AsSlice()) }

func carries(proto byte) []expr.Any { return carry(expr.CmpOpEq, proto) }

func carriesNo(proto byte) []expr.Any { return carry(expr.CmpOpNeq, proto) }

func carry(op expr.CmpOp, proto byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: []byte{proto}}}
}

// exprs are the rule as nf_tables takes it.
func (r lockRule) exprs() []expr.Any {
	if r.goesOn {
		return r.match
	}
	if r.kind == "" {
		return append(r.match, &expr.Verdict{Kind: expr.VerdictAccept})
	}
	return append(r.match, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
}

// lockComments mark the rules of a lock: a rule that somebody replaces loses its own.
func lockComments(l datapath.Lock, rules []lockRule) []string {
	sum := sha256.Sum256(fmt.Append(nil, lockVersion, l.Allows()))
	out := make([]string, len(rules))
	for i, r := range rules {
		out[i] = fmt.Sprintf("heddle lock %x.%d %s", sum[:8], i, r.kind)
	}
	return out
}
