package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// tracked is a connection, or what UDP has of one, as the kernel's connection tracking has it.
type tracked struct {
	front   datapath.Front
	backend netip.AddrPort
	from    netip.AddrPort // who began it
	answers netip.AddrPort // whom the backend answers
	orig    []byte         // the tuple that it began with, as an attribute's value
	id      []byte
}

// Flush ends the flows to the VIPs given whose backends are neither used nor kept. Then the next
// packet of UDP begins a new one, and TCP's meets a backend that knows nothing of it and refuses it.
func (b *Balance) Flush(now []*datapath.VIP, gone []netip.Addr) error {
	at, without := map[netip.Addr]*datapath.VIP{}, map[netip.Addr]bool{}
	for _, v := range now {
		for _, a := range v.Addrs {
			at[a] = v
		}
	}
	for _, a := range gone {
		without[a] = at[a] == nil
	}
	return b.h.endFlows(b.ns, func(f tracked) bool {
		if at[f.front.Addr] == nil && !without[f.front.Addr] {
			return false
		}
		p, _ := at[f.front.Addr].At(f.front)
		return !p.Keeps(f.backend)
	})
}

// endFlows ends those flows of a namespace that are to be ended.
func (h *handle) endFlows(ns datapath.NS, is func(tracked) bool) error {
	any, err := h.flows(ns)
	if err != nil || !any {
		return err
	}
	var old []tracked
	err = h.dump(request(conntrack|nl.IPCTNL_MSG_CT_GET, 0, nfgen(unix.AF_UNSPEC, 0)), func() { old = nil }, func(m []byte) {
		if f, ok := parseFlow(m); ok && is(f) {
			old = append(old, f)
		}
	})
	if err != nil {
		return fmt.Errorf("list the flows in %s: %w", ns, err)
	}
	for _, f := range old {
		family := familyOf(f.front.Addr).proto
		m := request(conntrack|nl.IPCTNL_MSG_CT_DELETE, 0, nfgen(family, 0)).bytes(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, f.orig).bytes(nl.CTA_ID, f.id)
		if err := h.do(m); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("end a flow in %s: %w", ns, err)
		}
	}
	return nil
}

// flows says whether there are any. To list none takes as long as to list the whole host's.
func (h *handle) flows(ns datapath.NS) (any bool, err error) {
	const stats, entries = 5, 1 // IPCTNL_MSG_CT_GET_STATS, CTA_STATS_GLOBAL_ENTRIES
	err = h.get(request(conntrack|stats, 0, nfgen(unix.AF_UNSPEC, 0)), func(m []byte) {
		any = len(m) > nfgenmsg && be32(attribute(m[nfgenmsg:], entries)) > 0
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return false, datapath.Errorf(datapath.Unsupported, "this kernel can't end flows to backends that are gone: %w; load the module nf_conntrack_netlink", err)
	}
	if err != nil {
		return false, fmt.Errorf("count the flows in %s: %w", ns, err)
	}
	return any, nil
}

const conntrack = unix.NFNL_SUBSYS_CTNETLINK << 8

// parseFlow reads a flow of TCP or UDP: what it was for, and who answers.
func parseFlow(b []byte) (f tracked, ok bool) {
	if len(b) < nfgenmsg {
		return f, false
	}
	f.orig, f.id = attribute(b[nfgenmsg:], nl.CTA_TUPLE_ORIG), attribute(b[nfgenmsg:], nl.CTA_ID)
	from, to, proto := parseTuple(f.orig)
	f.from = from
	f.backend, f.answers, _ = parseTuple(attribute(b[nfgenmsg:], nl.CTA_TUPLE_REPLY))
	switch proto {
	case unix.IPPROTO_TCP:
		f.front.Proto = "tcp"
	case unix.IPPROTO_UDP:
		f.front.Proto = "udp"
	default:
		return f, false
	}
	f.front.Addr, f.front.Port = to.Addr(), to.Port()
	return f, to.IsValid() && f.backend.IsValid()
}

func parseTuple(b []byte) (from, to netip.AddrPort, proto byte) {
	ips, ports := attribute(b, nl.CTA_TUPLE_IP), attribute(b, nl.CTA_TUPLE_PROTO)
	addr := func(typ4, typ6 uint16) netip.Addr {
		v := attribute(ips, typ4)
		if v == nil {
			v = attribute(ips, typ6)
		}
		a, _ := netip.AddrFromSlice(v)
		return a
	}
	port := func(typ uint16) uint16 {
		if v := attribute(ports, typ); len(v) == 2 {
			return uint16(v[0])<<8 | uint16(v[1])
		}
		return 0
	}
	if n := attribute(ports, nl.CTA_PROTO_NUM); len(n) == 1 {
		proto = n[0]
	}
	return netip.AddrPortFrom(addr(nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC), port(nl.CTA_PROTO_SRC_PORT)),
		netip.AddrPortFrom(addr(nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST), port(nl.CTA_PROTO_DST_PORT)), proto
}
