package kernel

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// The tables of an entrance, one of workloads' ports and one of services', as nft would print one of
// the host's:
//
//	table inet heddle-publish {
//		chain ports {
//			dnat ip to ip daddr . meta l4proto . th dport map { ADDR . tcp . 8080 : 169.254.128.1 . 8080 }
//			fib daddr type local dnat ip to meta l4proto . th dport map { tcp . 8081 : 169.254.128.1 . 8081 }
//			…                                                                      and the same for ip6
//		}
//		chain prerouting { type nat hook prerouting priority dstnat - 1;  jump ports }
//		chain output     { type nat hook output priority dstnat - 1;      jump ports }
//	}
//
// and of an overlay's namespace:
//
//	table inet heddle-publish {
//		chain ports {
//			dnat ip to ip daddr . meta l4proto . th dport map { 169.254.128.1 . tcp . 8080 : 10.20.0.7 . 80 }
//			ip daddr 169.254.128.1 meta l4proto tcp th dport 8081 dnat ip to numgen random mod 2 map { 0 : 10.20.0.7 . 80, 1 : 10.20.0.8 . 80 }
//			…
//		}
//		chain prerouting  { type nat hook prerouting priority dstnat - 1;   iifname "uplink" jump ports }
//		chain postrouting { type nat hook postrouting priority srcnat - 1;  oifname "br0" snat ip to ip daddr map { 10.20.0.7 : 10.20.0.1 } }
//	}
//
// All maps are anonymous, so that nobody changes one without its rule. The rules are asked about the
// first packet of a flow alone.
const (
	workloadsTable = tableName + "-publish"
	servicesTable  = tableName + "-ingress"
	portsChain     = "ports"
	localAddress   = unix.RTN_LOCAL
)

// entranceTables are the tables of workloads' ports, and of services'. One without a chain is not to
// be there.
func entranceTables(e datapath.Entrance) [2]table {
	is := e.State()
	return [2]table{
		passageTable(e, workloadsTable, is.Workloads, e.Workloads, -1),
		passageTable(e, servicesTable, is.Services, e.Services, 0),
	}
}

// passageTable makes a table. Of two the one whose order is lower decides about a flow.
func passageTable(e datapath.Entrance, name, digest string, p datapath.Passages, order nftables.ChainPriority) table {
	w := passageWriter{t: table{name: name}}
	if digest == "" {
		return w.t
	}
	at := func(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority, rules ...[]expr.Any) {
		w.t.chains = append(w.t.chains, chain{name: name, kind: nftables.ChainTypeNAT, hook: hook, priority: *priority + order, rules: rules})
	}
	w.t.chains = append(w.t.chains, chain{name: portsChain, rules: w.ports(p.Ports)})
	jump := []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: portsChain}}
	if e.From == "" {
		at("prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, jump)
		at("output", nftables.ChainHookOutput, nftables.ChainPriorityNATDest, jump)
	} else {
		at("prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, append(linkIs(expr.MetaKeyIIFNAME, whole(e.From)), jump...))
	}
	if len(p.Sources) > 0 {
		at("postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, w.sources(e.Bridge, p.Sources)...)
	}
	rules := 0
	for _, ch := range w.t.chains {
		rules += len(ch.rules)
	}
	w.t.text = fmt.Sprintf("entrance %s of %d", digest, rules)
	return w.t
}

// passageWriter collects a table's maps.
type passageWriter struct{ t table }

func (f inetFamily) is4() bool { return f.proto == unix.NFPROTO_IPV4 }

// address is the type of an address in a map.
func (f inetFamily) address() nftables.SetDatatype {
	if f.is4() {
		return nftables.TypeIPAddr
	}
	return nftables.TypeIP6Addr
}

// ports are the rules that translate destinations: what names an address comes first.
func (w *passageWriter) ports(ports []datapath.Passage) (rules [][]expr.Any) {
	for _, f := range families {
		var exact, any []nftables.SetElement
		var more [][]expr.Any
		for _, p := range ports {
			to := used(p, f.is4())
			if len(to) == 0 || p.At.IsValid() && p.At.Is4() != f.is4() {
				continue
			}
			key := be([]byte{protoNumber(p.Proto), 0, 0, 0}, p.Port, uint16(0))
			named := p.At.IsValid() && !p.At.IsUnspecified()
			switch {
			case len(to) == 1 && named:
				exact = append(exact, nftables.SetElement{Key: append(p.At.AsSlice(), key...), Val: target(to[0])})
			case len(to) == 1:
				any = append(any, nftables.SetElement{Key: key, Val: target(to[0])})
			default:
				more = append(more, w.balanced(f, p, to))
			}
		}
		here, to := proto(f.proto), nftables.MustConcatSetType(f.address(), nftables.TypeInetService)
		protoPort := func(register uint32) []expr.Any {
			return []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
				&expr.Payload{DestRegister: register + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			}
		}
		nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: 1, RegProtoMin: f.next, Specified: true}
		if len(exact) > 0 {
			key := nftables.MustConcatSetType(f.address(), nftables.TypeInetProto, nftables.TypeInetService)
			address := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.at, Len: f.bytes}
			rules = append(rules, slices.Concat(here, []expr.Any{address}, protoPort(f.next), []expr.Any{w.lookup(key, to, exact), nat}))
		}
		rules = append(rules, more...)
		if len(any) > 0 {
			key := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
			rules = append(rules, slices.Concat(here, local(), protoPort(firstRegister), []expr.Any{w.lookup(key, to, any), nat}))
		}
	}
	return rules
}

const firstRegister = 8 // of 4 bytes; register 1 is it and the three that follow

// balanced translates to one of several backends, by chance.
func (w *passageWriter) balanced(f inetFamily, p datapath.Passage, to []netip.AddrPort) []expr.Any {
	elements := make([]nftables.SetElement, len(to))
	for i, b := range to {
		elements[i] = nftables.SetElement{Key: binary.NativeEndian.AppendUint32(nil, uint32(i)), Val: target(b)}
	}
	here := local()
	if p.At.IsValid() && !p.At.IsUnspecified() {
		here = is(atNetwork, f.at, p.At.AsSlice())
	}
	return slices.Concat(proto(f.proto), here, carries(protoNumber(p.Proto)), is(atTransport, 2, be(p.Port)), []expr.Any{
		&expr.Numgen{Register: 1, Modulus: uint32(len(to)), Type: unix.NFT_NG_RANDOM},
		w.lookup(nftables.TypeInteger, nftables.MustConcatSetType(f.address(), nftables.TypeInetService), elements),
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: 1, RegProtoMin: f.next, Specified: true},
	})
}

// sources are the rules that translate who comes.
func (w *passageWriter) sources(bridge string, sources []datapath.Source) (rules [][]expr.Any) {
	for _, f := range families {
		var elements []nftables.SetElement
		for _, s := range sources {
			if s.Of.Is4() == f.is4() {
				elements = append(elements, nftables.SetElement{Key: s.Of.AsSlice(), Val: s.As.AsSlice()})
			}
		}
		if len(elements) > 0 {
			rules = append(rules, slices.Concat(linkIs(expr.MetaKeyOIFNAME, whole(bridge)), proto(f.proto), []expr.Any{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.at, Len: f.bytes},
				w.lookup(f.address(), f.address(), elements),
				&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.proto), RegAddrMin: 1},
			}))
		}
	}
	return rules
}

// lookup makes a map, and puts what it has for the first register in there.
func (w *passageWriter) lookup(key, data nftables.SetDatatype, elements []nftables.SetElement) expr.Any {
	set := &nftables.Set{
		ID: uint32(len(w.t.sets) + 1), Name: "__map%d", Anonymous: true, Constant: true, IsMap: true,
		KeyType: key, DataType: data, Concatenation: len(nftables.ConcatSetTypeElements(key)) > 1, KeyByteOrder: binaryutil.BigEndian,
	}
	w.t.sets = append(w.t.sets, filled{set, elements})
	return &expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetID: set.ID, SetName: set.Name}
}

// local matches what is for an address of the place's own.
func local() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, localAddress)},
	}
}

// used are the backends of a family to which new flows go.
func used(p datapath.Passage, v4 bool) (to []netip.AddrPort) {
	for _, b := range p.To {
		if !b.Leaves && b.At.Addr().Is4() == v4 {
			to = append(to, b.At)
		}
	}
	return to
}

func (k *Kernel) setEntrance(op datapath.SetEntrance) error {
	err := k.withNFTOf(op.NS, func(c *nftables.Conn) error {
		tables := entranceTables(op.Entrance)
		for i, write := range []bool{op.Workload, op.Service} {
			switch {
			case !write:
			case len(tables[i].chains) == 0:
				if err := tables[i].remove(c); err != nil {
					return err
				}
			default:
				if err := tables[i].write(c); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	h, err := k.in(op.NS)
	if err == nil {
		err = h.nft(&k.low.own)
	}
	if err != nil {
		return err
	}
	return h.endFlows(op.NS, func(f tracked) bool { return f.strays(op.Entrance) })
}

// strays says whether a flow is to be ended for the sake of an entrance: where it leads none of the
// passages do, or it is of UDP and stood before the port was open. The next packet begins a new flow,
// of TCP too: it meets somebody who knows nothing of it and refuses it, instead of nobody.
func (f tracked) strays(e datapath.Entrance) bool {
	within := func(a netip.Addr) bool {
		return slices.ContainsFunc(e.Within, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	to := netip.AddrPortFrom(f.front.Addr, f.front.Port)
	leads := e.Leads(f.front.Proto, to)
	switch {
	case within(f.backend.Addr()) && !within(to.Addr()): // it was led
		if e.Partial && len(leads) == 0 {
			return false
		}
		return !slices.ContainsFunc(leads, func(b datapath.Backend) bool { return b.At == f.backend })
	case f.backend == to && f.answers == f.from: // it never was
		return f.front.Proto == "udp" && slices.ContainsFunc(leads, func(b datapath.Backend) bool {
			return !b.Leaves && b.At.Addr().Is4() == to.Addr().Is4()
		})
	}
	return false
}

func (k *Kernel) delEntrance(ns datapath.NS) error {
	return k.setEntrance(datapath.SetEntrance{Entrance: datapath.Entrance{NS: ns}, Workload: true, Service: true})
}

// readEntrance is what stands in a place.
func (h *handle) readEntrance() (is datapath.EntranceState, err error) {
	if is.Workloads, err = h.standing(workloadsTable); err == nil {
		is.Services, err = h.standing(servicesTable)
	}
	return is, err
}

// standing is the digest in the comments of a table's rules, if all of them are there and no others;
// "" where there is no table.
func (h *handle) standing(name string) (digest string, err error) {
	inet := func(typ uint16) *message {
		return request(unix.NFNL_SUBSYS_NFTABLES<<8|typ, 0, nfgen(unix.NFPROTO_INET, 0)).str(unix.NFTA_TABLE_NAME, name)
	}
	if err := h.get(inet(unix.NFT_MSG_GETTABLE), func([]byte) {}); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return "", nil
		}
		return "", explainNFT(fmt.Errorf("look for table %s: %w", name, err))
	}
	var comments []string
	err = h.dump(inet(unix.NFT_MSG_GETRULE), func() { comments = comments[:0] }, func(b []byte) {
		if len(b) > nfgenmsg && text(attribute(b[nfgenmsg:], unix.NFTA_RULE_TABLE)) == name {
			comment, _ := userdata.GetString(attribute(b[nfgenmsg:], unix.NFTA_RULE_USERDATA), userdata.TypeComment)
			comments = append(comments, comment)
		}
	})
	if err != nil {
		return "", fmt.Errorf("list rules of %s: %w", name, err)
	}
	for i, comment := range comments {
		var d string
		var of, chain, rule int
		if n, _ := fmt.Sscanf(comment, "heddle entrance %s of %d %d.%d", &d, &of, &chain, &rule); n != 4 || i > 0 && d != digest || of != len(comments) {
			return datapath.Altered, nil
		}
		digest = d
	}
	return cmp.Or(digest, datapath.Altered), nil
}
