package plan

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/services"
)

// Transit addresses are those of participants' namespaces themselves, by node number: what one sends
// into a network on behalf of others comes from there, and finds its way back. They are in no subnet.
var (
	transitPool4 = netip.MustParsePrefix("100.64.0.0/10")
	transitPool6 = netip.MustParsePrefix("fd68:6564:646c:74::/64")
)

// transitAddrs are a node's, of both families; none where its number is not known.
func (v View) transitAddrs(id overlay.NodeID) []netip.Addr {
	n, known := v.Numbers[id]
	if !known || n >= 1<<22 {
		return nil
	}
	return []netip.Addr{numbered(transitPool4, n), numbered(transitPool6, n)}
}

// numbered is the nth address of a pool.
func numbered(pool netip.Prefix, n uint32) netip.Addr {
	b := pool.Addr().As16()
	binary.BigEndian.PutUint32(b[12:], binary.BigEndian.Uint32(b[12:])+n)
	if a := netip.AddrFrom16(b); pool.Addr().Is6() {
		return a
	}
	return netip.AddrFrom16(b).Unmap()
}

// transit wants the ways to other participants' namespaces. Each address is a route of its own, so that
// no more is taken from what lies outside than there are nodes.
func transit(c *datapath.Config, ns datapath.NS, owner datapath.Owner, v View, vteps map[overlay.NodeID]netip.Addr) {
	for _, a := range v.transitAddrs(v.Self) {
		c.Addresses = append(c.Addresses, datapath.Address{NS: ns, Link: BridgeName, Prefix: netip.PrefixFrom(a, a.BitLen()), Owner: owner})
	}
	for _, id := range slices.Sorted(maps.Keys(vteps)) {
		addrs := v.transitAddrs(id)
		if len(addrs) == 0 {
			continue
		}
		c.FDB = append(c.FDB, datapath.FDBEntry{NS: ns, Link: DeviceName, MAC: routerMAC(id), VTEP: vteps[id], Owner: owner})
		for _, a := range addrs {
			c.Neighbors = append(c.Neighbors, datapath.Neighbor{NS: ns, Link: BridgeName, IP: a, MAC: routerMAC(id), Owner: owner})
			c.Routes = append(c.Routes, datapath.Route{NS: ns, Link: BridgeName, Prefix: netip.PrefixFrom(a, a.BitLen()), Metric: routeMetric, Owner: owner})
		}
	}
}

// serves are the published ports of a service, with those of its backends that this node leads to: all,
// or its own. Where flows that stand are kept, new ones may go elsewhere.
func (v View) serves(s *services.Service) (ports []opened) {
	for _, p := range s.Publish {
		o := opened{Publish: p, service: true}
		for _, b := range s.Backends {
			if !b.Keeps() || p.Mode == overlay.PublishLocal && b.Node != v.Self {
				continue
			}
			for _, ip := range b.IPs {
				o.to = append(o.to, datapath.Backend{At: netip.AddrPortFrom(ip, p.Target), Leaves: !b.Used})
			}
		}
		ports = append(ports, o)
	}
	return ports
}

// through wants routes to those backends of a network that are on other nodes, through the namespaces
// there, which know how the answers come back. It answers as whom those are seen that take them.
func (v View) through(c *datapath.Config, ns datapath.NS, owner datapath.Owner, n overlay.Network, local []Endpoint) (out []datapath.Source) {
	self := v.transitAddrs(v.Self)
	own := map[netip.Addr]bool{}
	for _, e := range local {
		for _, ip := range e.IPs {
			own[ip] = true
		}
	}
	for _, s := range v.Services[n.ID] {
		if !s.Ingress() {
			continue
		}
		for _, b := range s.Backends {
			via := v.transitAddrs(b.Node)
			if b.Node == v.Self || !b.Keeps() || len(via) == 0 || len(self) == 0 {
				continue
			}
			for _, ip := range b.IPs {
				if own[ip] {
					continue
				}
				own[ip] = true // once, though it serves more than one
				six := yes(ip.Is6())
				c.Routes = append(c.Routes, datapath.Route{NS: ns, Link: BridgeName, Prefix: netip.PrefixFrom(ip, ip.BitLen()), Via: via[six], Metric: routeMetric, Owner: owner})
				out = append(out, datapath.Source{Of: ip, As: self[six]})
			}
		}
	}
	slices.SortFunc(out, func(a, b datapath.Source) int { return a.Of.Compare(b.Of) })
	return out
}

func yes(b bool) int {
	if b {
		return 1
	}
	return 0
}
