package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// The rules of a balancer are in a table of their own in the workload's namespace. As nft would print
// it, for IPv4:
//
//	table inet heddle-services {
//		map ports4 { type ipv4_addr . inet_proto . inet_service : verdict; elements = { VIP . tcp . 80 : goto spread4-2 } }
//		map backends4 { type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service; counter
//			elements = { VIP . tcp . 80 . 0 : BACKEND . 8080, VIP . tcp . 80 . 1 : BACKEND . 8080 } }
//		set vips4 { type ipv4_addr; elements = { VIP } }
//		chain output { type nat hook output priority dstnat
//			ip daddr . meta l4proto . th dport vmap @ports4
//			ip daddr @vips4 goto refuse
//		}
//		chain refuse {
//			meta l4proto tcp reject with tcp reset
//			reject
//		}
//		chain spread4-2 {
//			dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @backends4
//		}
//	}
//
// All VIPs share the maps, and all that have as many backends a chain: what nf_tables does for a change
// grows with the sets and chains of a table. What changes in a VIP is elements alone.
//
// Only the first packet of a flow gets here: the others follow the kernel's connection tracking. It
// happens before anybody would look for a VIP on the segment, and the way is looked up anew, so that
// a workload reaches itself too.
const (
	balancerTable   = tableName + "-services"
	balancerChain   = "output"
	refuseChain     = "refuse"
	spreadChain     = "spread" // begins the names of chains for numbers of backends
	balancerVersion = 1        // to be raised when the rules change, so that standing ones are written anew

	dstNAT = 1<<32 - 100 // the priority of NAT of destinations, -100, as it is sent
)

// inetFamily is what differs between IPv4 and IPv6.
type inetFamily struct {
	ports, backends, vips string // sets

	number    string // ends names
	proto     byte   // NFPROTO_*
	at, bytes uint32 // of the destination's address in the header
	kind      uint32 // nft's number for the address's type
	next      uint32 // the register behind an address in register 1; others follow it
}

var families = [2]inetFamily{
	{"ports4", "backends4", "vips4", "4", unix.NFPROTO_IPV4, 16, 4, 7, unix.NFT_REG32_01},
	{"ports6", "backends6", "vips6", "6", unix.NFPROTO_IPV6, 24, 16, 8, unix.NFT_REG32_04},
}

func familyOf(a netip.Addr) inetFamily {
	if a.Is4() {
		return families[0]
	}
	return families[1]
}

// nft's numbers for types, and how many bits of a concatenation each takes; and the kernel's flags. A mark
// is a number of 32 bits: nft can list no map whose keys have one that may be of any size.
const (
	kindProto, kindPort, kindMark = 12, 13, 19
	kindBits                      = 6

	setMap        = 8
	setExpression = 17 // NFTA_SET_EXPR
	dataVerdict   = 0xffffff00
	verdictGoto   = 1<<32 - 4 // NFT_GOTO as it is sent
)

func protoNumber(proto string) byte {
	if proto == "udp" {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// frontKey is a front as the maps have it: each part fills words of four bytes.
func frontKey(f datapath.Front) []byte {
	return be(f.Addr.AsSlice(), protoNumber(f.Proto), make([]byte, 3), f.Port, uint16(0))
}

// frontOf is the opposite, of what a key begins with.
func frontOf(f inetFamily, key []byte) (out datapath.Front, ok bool) {
	n := int(f.bytes)
	if len(key) < n+8 {
		return out, false
	}
	out.Addr, _ = netip.AddrFromSlice(key[:n])
	switch key[n] {
	case unix.IPPROTO_TCP:
		out.Proto = "tcp"
	case unix.IPPROTO_UDP:
		out.Proto = "udp"
	}
	out.Port = binary.BigEndian.Uint16(key[n+4:])
	return out, out.Proto != ""
}

// slotKey is the Nth backend of a front as the maps have it. Numgen draws a number of this host's byte
// order.
func slotKey(f datapath.Front, n int) []byte {
	return binary.NativeEndian.AppendUint32(frontKey(f), uint32(n))
}

// slotOf is the opposite.
func slotOf(f inetFamily, key []byte) (out datapath.Front, n int, ok bool) {
	if len(key) != int(f.bytes)+12 {
		return out, 0, false
	}
	out, ok = frontOf(f, key)
	return out, int(u32(key[f.bytes+8:])), ok
}

// target is a backend as the maps have it, and targetOf the opposite.
func target(b netip.AddrPort) []byte { return be(b.Addr().AsSlice(), b.Port(), uint16(0)) }

func targetOf(f inetFamily, data []byte) (b netip.AddrPort, ok bool) {
	if len(data) < int(f.bytes)+2 {
		return b, false
	}
	a, ok := netip.AddrFromSlice(data[:f.bytes])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(data[f.bytes:])), ok
}

// leadsTo is the chain for a number of backends.
func leadsTo(f inetFamily, backends int) string {
	if backends == 0 {
		return refuseChain
	}
	return fmt.Sprintf("%s%s-%d", spreadChain, f.number, backends)
}

// backendsOf is the number of backends that a chain is for.
func backendsOf(f inetFamily, chain string) (n int, ok bool) {
	if chain == refuseChain {
		return 0, true
	}
	number, ok := strings.CutPrefix(chain, spreadChain+f.number+"-")
	n, err := strconv.Atoi(number)
	return n, ok && err == nil && chain == leadsTo(f, n)
}

func spreadComment(chain string) string {
	return fmt.Sprintf("heddle services %d.%s", balancerVersion, chain)
}

// spread leads to one of some backends.
func spread(f inetFamily, backends int) []expr.Any {
	return append(f.front(),
		&expr.Numgen{Register: f.next + 2, Modulus: uint32(backends), Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: f.backends},
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: 1, RegAddrMax: 1,
			RegProtoMin: f.next, RegProtoMax: f.next, Specified: true,
		})
}

// destination puts a packet's destination address into register 1, and front its front.
func (f inetFamily) destination() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Register: 1, Data: []byte{f.proto}},
		&expr.Payload{DestRegister: 1, Base: atNetwork, Offset: f.at, Len: f.bytes},
	}
}

func (f inetFamily) front() []expr.Any {
	return append(f.destination(), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: f.next}, &expr.Payload{DestRegister: f.next + 1, Base: atTransport, Offset: 2, Len: 2})
}

// sharedRule is a rule that all VIPs have in common.
type sharedRule struct {
	chain   string
	exprs   []expr.Any
	comment string
}

func sharedRules() (rules []sharedRule) {
	add := func(chain string, exprs ...expr.Any) {
		rules = append(rules, sharedRule{chain, exprs, fmt.Sprintf("heddle services %d.%d", balancerVersion, len(rules))})
	}
	add(refuseChain, append(carries(unix.IPPROTO_TCP), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})...)
	add(refuseChain, &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})
	for _, f := range families { // without a rule of NAT no connection is tracked, and what is not tracked gets into no chain of NAT
		add(leadsTo(f, 1), spread(f, 1)...)
	}
	for _, f := range families {
		add(balancerChain, append(f.front(), &expr.Lookup{SourceRegister: 1, IsDestRegSet: true, SetName: f.ports})...)
	}
	for _, f := range families {
		add(balancerChain, append(f.destination(), &expr.Lookup{SourceRegister: 1, SetName: f.vips}, &expr.Verdict{Kind: expr.VerdictGoto, Chain: refuseChain})...)
	}
	return rules
}

func isShared(chain string) bool {
	return slices.ContainsFunc(sharedRules(), func(r sharedRule) bool { return r.chain == chain })
}

// inet starts a message to nf_tables about heddle's table of services. In messages of all kinds the
// first attribute names the table.
func inet(typ, flags uint16) *message {
	return request(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, nfgen(unix.NFPROTO_INET, 0)).str(unix.NFTA_TABLE_NAME, balancerTable)
}

// sharedMessages make the table with all that VIPs have in common.
func sharedMessages() (all []*message, err error) {
	all = append(all, inet(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE))
	for i, f := range families {
		key := f.kind<<(2*kindBits) | kindProto<<kindBits | kindPort
		all = append(all,
			newSet(f.ports, 3*i, setMap, key, f.bytes+8).be32(unix.NFTA_SET_DATA_TYPE, dataVerdict),
			newSet(f.backends, 3*i+1, setMap, key<<kindBits|kindMark, f.bytes+12).
				be32(unix.NFTA_SET_DATA_TYPE, f.kind<<kindBits|kindPort).be32(unix.NFTA_SET_DATA_LEN, f.bytes+4).counted(),
			newSet(f.vips, 3*i+2, 0, f.kind, f.bytes))
	}
	hooked := newChain(balancerChain).str(unix.NFTA_CHAIN_TYPE, "nat")
	hooked.nest(unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED, func() {
		hooked.be32(unix.NFTA_HOOK_HOOKNUM, unix.NF_INET_LOCAL_OUT).be32(unix.NFTA_HOOK_PRIORITY, dstNAT)
	})
	all = append(all, newChain(refuseChain), newChain(leadsTo(families[0], 1)), newChain(leadsTo(families[1], 1)), hooked)
	for _, r := range sharedRules() {
		m, err := newRule(r.chain, r.exprs, r.comment)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

func newChain(name string) *message {
	return inet(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE).str(unix.NFTA_CHAIN_NAME, name)
}

func newRule(chain string, exprs []expr.Any, comment string) (*message, error) {
	m := inet(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND).str(unix.NFTA_RULE_CHAIN, chain)
	if err := m.rule(unix.NFPROTO_INET, exprs, comment); err != nil {
		return nil, fmt.Errorf("encode a rule of %s: %w", chain, err)
	}
	return m, nil
}

// newSet begins a set. index tells it from others of its transaction.
func newSet(name string, index int, flags, kind, length uint32) *message {
	return inet(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE).str(unix.NFTA_SET_NAME, name).be32(unix.NFTA_SET_FLAGS, flags).
		be32(unix.NFTA_SET_KEY_TYPE, kind).be32(unix.NFTA_SET_KEY_LEN, length).be32(unix.NFTA_SET_ID, uint32(index+1))
}

// counted has a set count the packets that find each of its elements.
func (m *message) counted() *message {
	m.nest(setExpression|unix.NLA_F_NESTED, func() {
		m.str(unix.NFTA_EXPR_NAME, "counter")
		m.nest(unix.NFTA_EXPR_DATA|unix.NLA_F_NESTED, func() {})
	})
	return m
}

// setElement is an element of a set; of a map with what it leads to: data, or a chain.
type setElement struct {
	key   []byte
	data  []byte
	chain string
}

// setElements adds elements to a set, or takes them out of it.
func setElements(typ uint16, set string, list []setElement) *message {
	m := inet(typ, unix.NLM_F_CREATE).str(unix.NFTA_SET_ELEM_LIST_SET, set)
	m.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED, func() {
		for _, e := range list {
			m.nest(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, func() { m.element(e) })
		}
	})
	return m
}

func (m *message) element(e setElement) {
	m.nest(unix.NFTA_SET_ELEM_KEY|unix.NLA_F_NESTED, func() { m.bytes(unix.NFTA_DATA_VALUE, e.key) })
	switch {
	case e.data != nil:
		m.nest(unix.NFTA_SET_ELEM_DATA|unix.NLA_F_NESTED, func() { m.bytes(unix.NFTA_DATA_VALUE, e.data) })
	case e.chain != "":
		m.nest(unix.NFTA_SET_ELEM_DATA|unix.NLA_F_NESTED, func() {
			m.nest(unix.NFTA_DATA_VERDICT|unix.NLA_F_NESTED, func() {
				m.be32(unix.NFTA_VERDICT_CODE, verdictGoto).str(unix.NFTA_VERDICT_CHAIN, e.chain)
			})
		})
	}
}
