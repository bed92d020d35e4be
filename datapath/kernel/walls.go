package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// Netdev chains number their hooks on their own.
const netdevIngress, netdevEgress = 0, 1

// way is what passes a base chain's hook to or from a port of heddle's, in words; "" for other hooks.
func way(ch *nftables.Chain) string {
	hook, in, out := *ch.Hooknum, "other nodes send to", "this node sends to others at"
	if ch.Table.Family == nftables.TableFamilyNetdev {
		return map[nftables.ChainHook]string{netdevIngress: in, netdevEgress: out}[hook]
	}
	switch hook {
	case *nftables.ChainHookPrerouting, *nftables.ChainHookInput:
		return in
	case *nftables.ChainHookOutput, *nftables.ChainHookPostrouting:
		return out
	}
	return ""
}

// otherFamily says whether no packet for the port passes the chain.
func otherFamily(ch *nftables.Chain, p datapath.Port) bool {
	f := ch.Table.Family
	return p.At.IsValid() && (f == nftables.TableFamilyIPv4 && !p.At.Is4() || f == nftables.TableFamilyIPv6 && p.At.Is4()) ||
		f == nftables.TableFamilyNetdev && p.Link != "" && ch.Device != "" && ch.Device != p.Link
}

// droppers are the lines about rules that drop what is for a port in a chain that lets other things
// through.
func (w walls) droppers(ch *nftables.Chain, ports []datapath.Port) (out []string, err error) {
	what := way(ch)
	if what == "" {
		return nil, nil
	}
	for _, p := range ports {
		if otherFamily(ch, p) {
			continue
		}
		in, r, _, err := w.dropper(ch, p, depthMost)
		if err != nil {
			return nil, err
		}
		if r != nil {
			out = append(out, fmt.Sprintf("a rule in the chain `%s` drops what %s %d/%s; type `nft delete rule %s handle %d`", chainName(in), what, p.Port, p.Proto, chainName(in), r.Handle))
		}
	}
	return out, nil
}

// dropper is the rule that drops what is for a port in a chain, or in those that it calls, with its
// chain. decided says that the packets go no further here, or may have been let through.
func (w walls) dropper(ch *nftables.Chain, p datapath.Port, depth int) (in *nftables.Chain, _ *nftables.Rule, decided bool, err error) {
	rules, err := w.c.GetRules(ch.Table, ch)
	if err != nil {
		return nil, nil, false, fmt.Errorf("list rules of %s: %w", chainName(ch), err)
	}
	for _, r := range rules {
		holds := w.concerns(r, p)
		v, is := last(r).(*expr.Verdict)
		switch {
		case holds == no:
		case refuses(last(r)):
			if general := depth == depthMost && refusesAll(r); holds == yes && !general { // that one is judged as a policy is
				return ch, r, true, nil
			}
		case !is:
		case v.Kind == expr.VerdictAccept:
			return nil, nil, true, nil
		case v.Kind == expr.VerdictReturn:
			return nil, nil, holds == maybe, nil
		case v.Kind == expr.VerdictJump || v.Kind == expr.VerdictGoto:
			called := w.byName[chainName(&nftables.Chain{Table: ch.Table, Name: v.Chain})]
			if called == nil || depth == 0 {
				return nil, nil, true, nil
			}
			in, drops, decided, err := w.dropper(called, p, depth-1)
			switch {
			case err != nil || decided && drops == nil, holds == yes && (decided || v.Kind == expr.VerdictGoto):
				return in, drops, true, err
			}
		}
	}
	return nil, nil, false, nil
}

const depthMost = 4 // of chains that call each other

// holds says whether a rule's conditions hold for all that is for a port; maybe where one is not
// understood.
type holds int

const (
	no holds = iota
	maybe
	yes
)

func (w walls) concerns(r *nftables.Rule, p datapath.Port) holds {
	all := yes
	for i := 0; i < len(r.Exprs); i++ {
		switch r.Exprs[i].(type) {
		case *expr.Counter, *expr.Log, *expr.Verdict, *expr.Reject, *expr.Target:
			continue
		}
		switch holds, used := w.condition(r, r.Exprs[i:], p); holds {
		case no:
			return no
		case maybe:
			all = maybe
			fallthrough
		case yes:
			i += used - 1
		}
	}
	return all
}

// condition judges the one that a rule's expressions begin with, and says how many it takes up.
func (w walls) condition(r *nftables.Rule, exprs []expr.Any, p datapath.Port) (_ holds, used int) {
	equal := func(known bool, ok func(data []byte) bool) (holds, int) {
		if len(exprs) < 2 {
			return maybe, 1
		}
		cmp, is := exprs[1].(*expr.Cmp)
		switch {
		case !is || !known:
			return maybe, 2
		case ok(cmp.Data) == (cmp.Op == expr.CmpOpEq) && (cmp.Op == expr.CmpOpEq || cmp.Op == expr.CmpOpNeq):
			return yes, 2
		case cmp.Op == expr.CmpOpEq || cmp.Op == expr.CmpOpNeq:
			return no, 2
		}
		return maybe, 2
	}
	proto := func(data []byte) bool {
		return len(data) == 1 && data[0] == map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}[p.Proto]
	}
	switch e := exprs[0].(type) {
	case *expr.Meta:
		switch e.Key {
		case expr.MetaKeyL4PROTO:
			return equal(true, proto)
		case expr.MetaKeyNFPROTO:
			return equal(p.At.IsValid(), func(d []byte) bool { return d[0] == family(p.At) })
		case expr.MetaKeyPROTOCOL:
			return equal(p.At.IsValid(), func(d []byte) bool { return binary.BigEndian.Uint16(d) == etherType(p.At) })
		case expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME:
			if cmp, is := next[*expr.Cmp](exprs); is && cmp.Op == expr.CmpOpEq && text(cmp.Data) == "lo" {
				return no, 2
			}
			return equal(p.Link != "", func(d []byte) bool { return strings.HasPrefix(whole(p.Link), string(d)) })
		}
	case *expr.Payload:
		switch {
		case e.Base == expr.PayloadBaseNetworkHeader && e.Offset == 9 && e.Len == 1: // IPv4's protocol
			return equal(true, proto)
		case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 2 && e.Len == 2 && len(exprs) > 1:
			return w.portCondition(r, exprs[1:], binary.BigEndian.AppendUint16(nil, p.Port))
		}
	case *expr.Match:
		return matchCondition(e, p), 1
	case *expr.Ct:
		return w.ctCondition(r, e.Key, exprs)
	}
	return maybe, 1
}

// ctCondition judges what a packet's connection is asked for. A rule for those that are established
// lets none of them begin, and what comes for heddle is of no translated one.
func (w walls) ctCondition(r *nftables.Rule, key expr.CtKey, exprs []expr.Any) (_ holds, used int) {
	var bits uint32
	if mask, is := next[*expr.Bitwise](exprs); is && len(mask.Mask) == 4 {
		bits, used = binary.NativeEndian.Uint32(mask.Mask), 3 // with what it is compared with
	} else if set, is := next[*expr.Lookup](exprs); is {
		used = 2
		for _, v := range w.elements(r, set) {
			bits |= u32(v.Key)
		}
	}
	translated := uint32(ctStatusDNAT | ctStatusDNAT>>1)
	switch {
	case bits == 0:
		return maybe, 1
	case key == expr.CtKeySTATE && bits&expr.CtStateBitNEW == 0, key == expr.CtKeySTATUS && bits&^translated == 0:
		return no, used
	}
	return maybe, used
}

// matchCondition judges one of iptables' own.
func matchCondition(m *expr.Match, p datapath.Port) holds {
	ports := func(proto string, to [2]uint16, whole bool) holds {
		switch {
		case proto != p.Proto || whole && (p.Port < to[0] || p.Port > to[1]):
			return no
		case whole:
			return yes
		}
		return maybe
	}
	state := func(b xt.ConntrackMtinfoBase, mask uint16) holds {
		const stateNew = 1 << 3 // XT_CONNTRACK_STATE_BIT(IP_CT_NEW)
		if b.MatchFlags == uint16(xt.ConntrackState) && b.InvertFlags == 0 && mask&stateNew == 0 {
			return no
		}
		return maybe
	}
	all := [2]uint16{0, 0xffff}
	switch i := m.Info.(type) {
	case *xt.Udp:
		return ports("udp", i.DstPorts, i.InvFlags == 0 && i.SrcPorts == all)
	case *xt.Tcp:
		return ports("tcp", i.DstPorts, i.InvFlags == 0 && i.SrcPorts == all && i.FlagsMask == 0 && i.Option == 0)
	case *xt.ConntrackMtinfo1:
		return state(i.ConntrackMtinfoBase, uint16(i.StateMask))
	case *xt.ConntrackMtinfo2:
		return state(i.ConntrackMtinfoBase, i.StateMask)
	case *xt.ConntrackMtinfo3:
		return state(i.ConntrackMtinfoBase, i.StateMask)
	}
	if m.Name == "comment" {
		return yes
	}
	return maybe
}

// portCondition judges what a port is compared with: a set, or one or two limits.
func (w walls) portCondition(r *nftables.Rule, exprs []expr.Any, port []byte) (all holds, used int) {
	if r, is := exprs[0].(*expr.Range); is {
		inside := string(r.FromData) <= string(port) && string(port) <= string(r.ToData)
		if inside == (r.Op == expr.CmpOpEq) {
			return yes, 2
		}
		return no, 2
	}
	if _, is := exprs[0].(*expr.Cmp); !is {
		if w.matchesPort(r, exprs[0], port) {
			return yes, 2
		}
		return no, 2
	}
	all, used = yes, 1
	for _, e := range exprs {
		cmp, is := e.(*expr.Cmp)
		if !is {
			break
		}
		used++
		d := bytes.Compare(port, cmp.Data)
		if ok := map[expr.CmpOp]bool{
			expr.CmpOpEq: d == 0, expr.CmpOpNeq: d != 0, expr.CmpOpLt: d < 0, expr.CmpOpLte: d <= 0, expr.CmpOpGt: d > 0, expr.CmpOpGte: d >= 0,
		}[cmp.Op]; !ok {
			all = no
		}
	}
	return all, used
}

func next[E expr.Any](exprs []expr.Any) (e E, is bool) {
	if len(exprs) > 1 {
		e, is = exprs[1].(E)
	}
	return e, is
}

func etherType(a netip.Addr) uint16 {
	if a.Is4() {
		return unix.ETH_P_IP
	}
	return unix.ETH_P_IPV6
}
