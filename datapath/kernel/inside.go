package kernel

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

const (
	dnsPort = 53

	askRate    = 22000 // packets a second to port 53 from one address
	askBurst   = 2200
	askForget  = time.Minute // after which an address that asks no more is forgotten
	mostAskers = 4096        // a bridge has room for 1,023 workloads
)

// namespaceRules are the table of an overlay's namespace. What leaves by an uplink has the uplink's
// address, so that the host never sees the overlay's. What workloads ask for names is bounded for
// each, so that a flood from one fills no socket of all; and with the answers it is not tracked: of
// two questions that leave one port at the same time, each of which makes an entry, one would be
// lost. As nft would print it, for one family:
//
//	table inet heddle {
//		set askers4 { type ipv4_addr; size 4096; flags dynamic,timeout; timeout 1m }
//		chain postrouting { type nat hook postrouting priority srcnat; oifname UPLINK masquerade }
//		chain asked { type filter hook prerouting priority raw
//			ip daddr GATEWAY th dport 53 update @askers4 { ip saddr limit rate over 22000/second burst 2200 packets } drop
//			ip daddr GATEWAY th dport 53 notrack
//		}
//		chain told { type filter hook output priority raw; ip saddr GATEWAY th sport 53 notrack }
//	}
//
// Without an uplink nothing is tracked, and the first rule of asked is all there is.
func namespaceRules(n datapath.Namespace) table {
	t := table{name: "heddle", text: "uplink " + n.Uplink}
	if n.Uplink != "" {
		t.chains = []chain{{
			name: "postrouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, priority: *nftables.ChainPriorityNATSource,
			rules: [][]expr.Any{append(linkIs(expr.MetaKeyOIFNAME, whole(n.Uplink)), &expr.Masq{})},
		}}
	}
	if n.Names == "" {
		return t
	}
	t.text += fmt.Sprintf(" names %x", sha256.Sum256([]byte(n.Names)))[:len(" names ")+16] // a comment holds no more
	asked := chain{name: "asked", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: *nftables.ChainPriorityRaw}
	told := chain{name: "told", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, priority: *nftables.ChainPriorityRaw}
	for s := range strings.SplitSeq(n.Names, ",") {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			continue // nobody can ask there
		}
		f := askFamilies[ip.Is4()]
		question := slices.Concat(proto(f.proto), is(atNetwork, f.to, ip.AsSlice()), is(atTransport, 2, be(uint16(dnsPort))))
		asked.rules = append(asked.rules, slices.Concat(question, f.tooMany()))
		if n.Uplink != "" {
			asked.rules = append(asked.rules, append(question, &expr.Notrack{}))
			told.rules = append(told.rules, slices.Concat(proto(f.proto), is(atNetwork, f.from, ip.AsSlice()), is(atTransport, 0, be(uint16(dnsPort))), []expr.Any{&expr.Notrack{}}))
		}
	}
	for _, f := range askFamilies {
		t.sets = append(t.sets, filled{set: &nftables.Set{Name: f.set, KeyType: f.key, Dynamic: true, HasTimeout: true, Timeout: askForget, Size: mostAskers}})
	}
	t.chains = append(t.chains, asked)
	if n.Uplink != "" {
		t.chains = append(t.chains, told)
	}
	return t
}

// askFamily is where a packet of one has its addresses, and the set of those who ask by it.
type askFamily struct {
	proto    byte
	from, to uint32 // offsets
	size     uint32 // bytes of an address
	set      string
	key      nftables.SetDatatype
}

var askFamilies = map[bool]askFamily{ // by whether it is IPv4
	true:  {unix.NFPROTO_IPV4, 12, 16, 4, "askers4", nftables.TypeIPAddr},
	false: {unix.NFPROTO_IPV6, 8, 24, 16, "askers6", nftables.TypeIP6Addr},
}

// tooMany drops what an address sends above its rate.
func (f askFamily) tooMany() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: atNetwork, Offset: f.from, Len: f.size},
		&expr.Dynset{
			SrcRegKey: 1, SetName: f.set, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE),
			Exprs: []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: askRate, Over: true, Unit: expr.LimitTimeSecond, Burst: askBurst}},
		},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}
