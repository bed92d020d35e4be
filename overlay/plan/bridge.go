package plan

import (
	"cmp"
	"net/netip"
	"strings"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

// bridge wants a network that ends on this node: a namespace of its own, in it a bridge with the
// gateway's addresses, a port for each local endpoint, and unless it is internal a way out that hides
// them. So subnets of two bridge networks may be the same, and neither reaches the other. An overlay
// has all of it, too.
func bridge(c *datapath.Config, v View, n overlay.Network, local []Endpoint) (ns datapath.NS, mtu int) {
	owner := datapath.Owner(n.ID)
	space := datapath.Namespace{Name: n.NamespaceName(), Owner: owner, Names: gateways(n), Partial: v.Partial[n.ID]}
	if !n.Internal {
		space.Uplink = UplinkName
	}
	c.Namespaces = append(c.Namespaces, space)
	ns, mtu = space.NS(), cmp.Or(v.MTU[n.ID], MTU(n, v))
	c.Links = append(c.Links, datapath.Link{NS: ns, Name: BridgeName, Owner: owner, Kind: datapath.Bridge, MAC: GatewayMAC, MTU: mtu})
	for _, s := range n.Subnets {
		c.Addresses = append(c.Addresses, datapath.Address{
			NS: ns, Link: BridgeName,
			Prefix: netip.PrefixFrom(s.Gateway, s.Prefix.Bits()), Owner: owner,
		})
	}
	if !n.Internal {
		uplink(c, ns, mtu, n, v)
	}
	for _, e := range local {
		port(c, ns, mtu, n, e)
	}
	return ns, mtu
}

// gateways are where workloads ask for names, with commas between.
func gateways(n overlay.Network) string {
	var all []string
	for _, s := range n.Subnets {
		all = append(all, s.Gateway.String())
	}
	return strings.Join(all, ",")
}

// port wants one local endpoint: a veth made in place, its far end in the workload's namespace, locked to
// its addresses. What the bridge itself sends to it needs no resolution. Broadcast reaches it, since
// suppression answers only for what lies behind the VXLAN device, and two endpoints of one node must find
// each other.
func port(c *datapath.Config, ns datapath.NS, mtu int, n overlay.Network, e Endpoint) {
	owner, name := datapath.Owner(e.ID), PortName(e.ID)
	c.Links = append(c.Links, datapath.Link{
		NS: ns, Name: name, Owner: owner, Kind: datapath.Veth, MAC: portMAC(e), MTU: mtu,
		Master: BridgeName, Port: datapath.PortFlags{BroadcastFlood: true, MulticastFlood: true, Isolated: !n.Mingles()},
		Peer: datapath.Peer{NS: e.Namespace, Name: e.IfName, MAC: datapath.MAC(e.MAC), MTU: mtu, Owner: owner},
	})
	for _, ip := range e.IPs {
		if s, ok := n.SubnetOf(ip); ok {
			c.Addresses = append(c.Addresses, datapath.Address{
				NS: e.Namespace, Link: e.IfName,
				Prefix: netip.PrefixFrom(ip, s.Prefix.Bits()), Owner: owner,
			})
		}
		c.Neighbors = append(c.Neighbors, datapath.Neighbor{NS: ns, Link: BridgeName, IP: ip, MAC: datapath.MAC(e.MAC), Owner: owner})
	}
	c.Locks = append(c.Locks, datapath.Lock{NS: ns, Link: name, MAC: datapath.MAC(e.MAC), IPs: e.IPs, Host: e.Host, Owner: owner})
	c.FDB = append(c.FDB, datapath.FDBEntry{NS: ns, Link: name, MAC: datapath.MAC(e.MAC), Owner: owner})
}
