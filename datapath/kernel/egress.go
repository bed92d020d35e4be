package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

// The host's table for egress, as nft would print it:
//
//	table inet heddle-egress {
//		chain postrouting { type nat hook postrouting priority srcnat
//			ip saddr POOL4 oifname != "hd-*" masquerade
//			ip6 saddr POOL6 oifname != "hd-*" masquerade
//			ip saddr POOL4 oifname "hd-*" ct status dnat masquerade        a workload comes by a published port
//			ip6 saddr POOL6 oifname "hd-*" ct status dnat masquerade
//			ip saddr 127.0.0.0/8 oifname "hd-*" masquerade                  so does the host
//			ip6 saddr ::1 oifname "hd-*" masquerade
//		}
//		chain forward { type filter hook forward priority -10
//			iifname "hd-*" oifname "hd-*" ct status != dnat drop            networks do not meet here, but by published ports
//			iifname "hd-*" oifname INSIDE drop                              nor where the host itself is in one
//			oifname "hd-*" ct state != established,related ct status != dnat drop    nobody calls in otherwise
//			iifname LINK oifname != "hd-*" ct state new ct status != dnat drop
//			meta nfproto ipv6 iifname != "hd-*" oifname != "hd-*" ct state new ct status != dnat drop
//		}
//	}
//	table inet heddle-localnet {
//		chain prerouting { type filter hook prerouting priority raw
//			ip daddr 127.0.0.0/8 iifname "hd-*" drop                        see localnet
//		}
//	}
//
// The last two are guards: they stand where heddle itself turned forwarding on, the third for
// each such link (IPv4 forwards by the link that a packet came in on), the fourth for IPv6
// (which has one switch for all). What Docker or others forward is theirs: they turn the
// switch for all of IPv4, and then the guards go.
const (
	egressTable     = "heddle-egress"
	forwardPriority = -10
	ctStatusDNAT    = 1 << 5 // IPS_DST_NAT
)

// guards are where heddle has turned forwarding on.
type guards struct {
	links []string // IPv4
	all6  bool
	ra    []string // links that would have taken router advertisements all the same, by raAlways
}

// A host that forwards IPv6 takes router advertisements by raAlways alone: without it the host's
// own addresses and its default route would run out.
const (
	raOnHosts = "1"
	raAlways  = "2"
)

func acceptRA(link, value string) sysctl {
	return sysctl{filepath.Join("net/ipv6/conf", link, "accept_ra"), value}
}

// withRA names the host's links that take router advertisements so. Among them may be "default",
// which is how links that come later begin.
func withRA(links []hostLink, value string) (names []string) {
	for _, l := range append(slices.Clip(links), hostLink{name: "default"}) {
		if sysctlIs(acceptRA(l.name, value)) {
			names = append(names, l.name)
		}
	}
	return names
}

func egressRules(e datapath.Egress, g guards) table {
	in, out := expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME
	drop, masquerade := verdict(expr.VerdictDrop), []expr.Any{&expr.Masq{}}
	published, stray := ctBits(expr.CtKeySTATUS, ctStatusDNAT, expr.CmpOpNeq), ctBits(expr.CtKeySTATUS, ctStatusDNAT, expr.CmpOpEq)
	stranger := slices.Concat(ctBits(expr.CtKeySTATE, expr.CtStateBitNEW, expr.CmpOpNeq), stray)
	t := table{
		name: egressTable,
		text: fmt.Sprintf("egress %s/%s %s %s 2 guards %s %v %s%s", e.Uplinks, e.Inside, e.Pool4, e.Pool6, strings.Join(g.links, ","), g.all6, raMark, strings.Join(g.ra, ",")),
		chains: []chain{
			{name: "postrouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, priority: *nftables.ChainPriorityNATSource},
			{name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, priority: forwardPriority},
		},
	}
	nat, forward := &t.chains[0].rules, &t.chains[1].rules
	for _, pool := range []netip.Prefix{e.Pool4, e.Pool6} {
		*nat = append(*nat, slices.Concat(from(pool), linkBegins(out, e.Uplinks, expr.CmpOpNeq), masquerade),
			slices.Concat(from(pool), linkIs(out, e.Uplinks), published, masquerade))
	}
	for _, own := range loopbacks {
		*nat = append(*nat, slices.Concat(from(own), linkIs(out, e.Uplinks), masquerade))
	}
	*forward = append(*forward,
		slices.Concat(linkIs(in, e.Uplinks), linkIs(out, e.Uplinks), stray, drop),
		slices.Concat(linkIs(out, e.Uplinks), ctBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED, expr.CmpOpEq), stray, drop))
	for _, name := range strings.FieldsFunc(e.Inside, func(r rune) bool { return r == ',' }) {
		*forward = append(*forward, slices.Concat(linkIs(in, e.Uplinks), linkIs(out, whole(name)), drop))
	}
	for _, name := range g.links {
		*forward = append(*forward, slices.Concat(proto(unix.NFPROTO_IPV4), linkIs(in, whole(name)), linkBegins(out, e.Uplinks, expr.CmpOpNeq), stranger, drop))
	}
	if g.all6 {
		*forward = append(*forward, slices.Concat(proto(unix.NFPROTO_IPV6), linkBegins(in, e.Uplinks, expr.CmpOpNeq), linkBegins(out, e.Uplinks, expr.CmpOpNeq), stranger, drop))
	}
	return t
}

// localnetRules are a table of their own, which comes before what it guards against.
func localnetRules(e datapath.Egress) table {
	return table{name: tableName + "-localnet", text: "localnet " + e.Uplinks, chains: []chain{{
		name: "prerouting", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: *nftables.ChainPriorityRaw,
		rules: [][]expr.Any{slices.Concat(within(loopbacks[0], 16), linkIs(expr.MetaKeyIIFNAME, e.Uplinks), verdict(expr.VerdictDrop))},
	}}}
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func proto(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}}}
}

// linkBegins compares the name of a packet's link with a beginning, or with a whole name.
func linkBegins(key expr.MetaKey, name string, op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: []byte(name)}}
}

// whole makes a beginning of a link's name that is the whole of it.
func whole(name string) string { return name + strings.Repeat("\x00", unix.IFNAMSIZ-len(name)) }

// from matches a source address.
func from(p netip.Prefix) []expr.Any {
	if p.Addr().Is6() {
		return within(p, 8)
	}
	return within(p, 12)
}

// within matches the address at an offset into a packet's header.
func within(p netip.Prefix, offset uint32) []expr.Any {
	family := byte(unix.NFPROTO_IPV4)
	if p.Addr().Is6() {
		family = unix.NFPROTO_IPV6
	}
	size := uint32(p.Addr().BitLen() / 8)
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(proto(family),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

// ctBits compares bits of the connection's state or status with none.
func ctBits(key expr.CtKey, bits uint32, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: make([]byte, 4)},
	}
}

// egressPlan is what egress asks of the host as it is now.
type egressPlan struct {
	rules   table
	sysctls []sysctl // that do not hold, in the order of writing
	doors   []door   // that are missing
}

func (p egressPlan) done(stands bool) bool { return stands && len(p.sysctls) == 0 && len(p.doors) == 0 }

// inHost runs fn in the host's namespace.
func (k *Kernel) inHost(fn func() error) error {
	h, err := k.hostHandle()
	if err != nil {
		return err
	}
	return netns.Do(h.file, fn)
}

// planEgress looks at the host. Guards stay where they stand as long as they mean something.
func (k *Kernel) planEgress(c *nftables.Conn, e datapath.Egress) (p egressPlan, err error) {
	had, err := standingGuards(c)
	if err != nil {
		return p, err
	}
	links, err := k.hostLinks(e.Uplinks)
	if err != nil {
		return p, err
	}
	g := guards{all6: had.all6, ra: had.ra}
	want := func(s sysctl) bool { // says whether it has to be written
		if s.holds() {
			return false
		}
		p.sysctls = append(p.sysctls, s)
		return true
	}
	err = k.inHost(func() error {
		all4 := sysctl{"net/ipv4/conf/all/forwarding", "1"}.holds()
		for _, l := range links {
			if !l.uplink && !l.has4 && !l.has6 {
				continue
			}
			switch written := want(sysctl{filepath.Join("net/ipv4/conf", l.name, "forwarding"), "1"}); {
			case l.uplink:
				want(localnet(l.name))
			case all4:
			case written || slices.Contains(had.links, l.name):
				g.links = append(g.links, l.name)
			}
		}
		six := slices.ContainsFunc(links, func(l hostLink) bool { return l.has6 && !l.uplink })
		forward6 := sysctl{"net/ipv6/conf/all/forwarding", "1"}
		if six && !had.all6 && !forward6.holds() {
			g.all6, g.ra = true, withRA(links, raAlways)
		}
		if g.all6 { // else others forward, and have chosen what the host does with advertisements
			for _, name := range withRA(links, raOnHosts) {
				p.sysctls = append(p.sysctls, acceptRA(name, raAlways))
			}
		}
		if six {
			want(forward6)
		}
		return nil
	})
	slices.Sort(g.links)
	p.rules = egressRules(e, g)
	if err == nil {
		p.doors, err = closedDoors(c, e.Uplinks)
	}
	return p, err
}

func sysctlIs(s sysctl) bool {
	b, err := os.ReadFile(s.file())
	return err == nil && strings.TrimSpace(string(b)) == s.value
}

// standingGuards reads the guards from the table's own comments.
func standingGuards(c *nftables.Conn) (g guards, err error) {
	comments, err := egressRules(datapath.Egress{Pool4: anyPool4, Pool6: anyPool6}, guards{}).comments(c)
	if err != nil || len(comments) == 0 {
		return g, err
	}
	words := strings.Fields(comments[0]) // heddle egress UPLINKS/INSIDE POOL4 POOL6 [VERSION] guards [LINKS] ALL6 [ra:[LINKS]] I.J
	at := slices.Index(words, "guards")
	if at < 5 || len(words) < at+3 {
		return g, nil
	}
	words = words[at+1 : len(words)-1]
	if ra, is := strings.CutPrefix(words[len(words)-1], raMark); is { // not of the first builds
		g.ra, words = strings.Split(ra, ","), words[:len(words)-1]
	}
	if len(words) == 2 {
		g.links = strings.Split(words[0], ",")
	}
	g.all6 = words[len(words)-1] == "true"
	return g, nil
}

const raMark = "ra:" // no link's name has a colon

// loopbacks are the addresses by which the host's programs talk to each other.
var loopbacks = [2]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// localnet lets answers in to programs of the host that went to a published port of 127.0.0.1. What
// others send to such an address by an uplink is dropped: by the rules above, and by the overlay's
// namespace, which has no such setting.
func localnet(link string) sysctl {
	return sysctl{filepath.Join("net/ipv4/conf", link, "route_localnet"), "1"}
}

var anyPool4, anyPool6 = netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")

// hostLink is a link of the host.
type hostLink struct {
	name               string
	uplink, has4, has6 bool // has: a global address
}

// hostLinks are the host's links but for its loopback, and the ones by which it is a workload itself.
func (k *Kernel) hostLinks(uplinks string) (out []hostLink, err error) {
	h, err := k.hostHandle()
	if err != nil {
		return nil, err
	}
	links, err := h.links()
	if err != nil {
		return nil, err
	}
	type families struct{ v4, v6 bool }
	has := map[int32]families{}
	err = h.dump(request(unix.RTM_GETADDR, 0, ifaddr(unix.AF_UNSPEC, 0, 0)), func() { clear(has) }, func(b []byte) {
		if len(b) < unix.SizeofIfAddrmsg || b[3] != unix.RT_SCOPE_UNIVERSE {
			return
		}
		f := has[int32(u32(b[4:]))]
		f.v4, f.v6 = f.v4 || b[0] == unix.AF_INET, f.v6 || b[0] == unix.AF_INET6
		has[int32(u32(b[4:]))] = f
	})
	for _, l := range links {
		f, uplink := has[l.index], strings.HasPrefix(l.name, uplinks)
		if l.name != "lo" && (uplink || !l.ours()) {
			out = append(out, hostLink{l.name, uplink, f.v4, f.v6})
		}
	}
	return out, err
}

func (k *Kernel) setEgress(e datapath.Egress) error {
	return k.withNFT(func(c *nftables.Conn) error {
		p, err := k.planEgress(c, e)
		if err != nil {
			return err
		}
		for _, t := range []table{localnetRules(e), p.rules} { // before anything is forwarded
			if err := t.write(c); err != nil {
				return err
			}
		}
		if err := k.inHost(func() error { return writeSysctls(p.sysctls) }); err != nil {
			return err
		}
		return openDoors(c, p.doors, e.Uplinks)
	})
}

func (k *Kernel) readEgress(want datapath.Egress) (e datapath.Egress, err error) {
	err = k.withNFT(func(c *nftables.Conn) error {
		if want == (datapath.Egress{}) {
			g, err := standingGuards(c)
			if there, terr := (table{name: egressTable}).there(c); terr == nil && there || len(g.links) > 0 {
				e.Uplinks = "unwanted"
			}
			return err
		}
		p, err := k.planEgress(c, want)
		if err != nil {
			return err
		}
		stands, err := p.rules.stands(c)
		if err != nil {
			return err
		}
		guarded, err := localnetRules(want).stands(c)
		if p.done(stands && guarded) {
			e = want
		}
		return err
	})
	if datapath.FaultOf(err) == datapath.Unsupported {
		err = nil // whoever wants it learns of it
	}
	return e, err
}

// delEgress takes back what setEgress did, also the forwarding that heddle turned on.
func (k *Kernel) delEgress() error {
	links, err := k.hostLinks("")
	if err != nil {
		return err
	}
	return k.withNFT(func(c *nftables.Conn) error {
		g, err := standingGuards(c)
		if err != nil {
			return err
		}
		var back []sysctl
		for _, name := range g.links {
			back = append(back, sysctl{filepath.Join("net/ipv4/conf", name, "forwarding"), "0"})
		}
		err = k.inHost(func() error {
			if g.all6 {
				back = append(back, sysctl{"net/ipv6/conf/all/forwarding", "0"})
				for _, name := range withRA(links, raAlways) {
					if !slices.Contains(g.ra, name) {
						back = append(back, acceptRA(name, raOnHosts))
					}
				}
			}
			return writeSysctls(back)
		})
		if err != nil {
			return err
		}
		if err := shutDoors(c); err != nil {
			return err
		}
		return errors.Join(table{name: egressTable}.remove(c), localnetRules(datapath.Egress{}).remove(c))
	})
}

func linkIs(key expr.MetaKey, begin string) []expr.Any { return linkBegins(key, begin, expr.CmpOpEq) }
