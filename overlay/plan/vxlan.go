package plan

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

// Names of the links in an overlay's namespace. They need be unique in it alone.
const (
	BridgeName = "br0"
	DeviceName = "vxlan0"
	UplinkName = "uplink"
)

// GatewayMAC is the anycast gateway's address: the same in every network and on every node,
// and never seen on the wire between nodes.
var GatewayMAC = datapath.MAC{0x02, 0x68, 0x65, 0x64, 0x00, 0x01}

// PortName is the name of an endpoint's port in the overlay's namespace.
func PortName(id overlay.EndpointID) string { return "ep-" + string(id)[:min(len(id), 12)] }

// vxlan wants an overlay network: its namespace, bridge with gateway, VXLAN device, a port
// for each local endpoint, and for each remote one a forwarding entry and neighbours.
func vxlan(c *datapath.Config, v View, n overlay.Network, local []Endpoint) {
	owner := datapath.Owner(n.ID)
	space := datapath.Namespace{Name: n.NamespaceName(), Owner: owner, Partial: v.Partial[n.ID]}
	if !n.Internal {
		space.Uplink = UplinkName
	}
	c.Namespaces = append(c.Namespaces, space)
	ns, mtu := space.NS(), cmp.Or(v.MTU[n.ID], MTU(n, v))

	c.Links = append(c.Links,
		datapath.Link{NS: ns, Name: BridgeName, Owner: owner, Kind: datapath.Bridge, MAC: GatewayMAC, MTU: mtu},
		datapath.Link{
			NS: ns, Name: DeviceName, Owner: owner, Kind: datapath.VXLAN, MAC: deviceMAC(v), MTU: mtu,
			Master: BridgeName, Port: datapath.PortFlags{NeighborSuppress: true},
			VXLAN: datapath.VXLANAttr{VNI: n.VNI, Port: v.DataPathPort, Local: v.underlay()},
		},
	)
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
	remote(c, ns, owner, v, n, local)
}

// port wants one local endpoint: a veth made in place, its far end in the workload's
// namespace. What the bridge itself sends to it needs no resolution. Broadcast reaches it, since suppression answers only for what lies behind the
// VXLAN device and two endpoints of one node must find each other.
func port(c *datapath.Config, ns datapath.NS, mtu int, n overlay.Network, e Endpoint) {
	owner, name := datapath.Owner(e.ID), PortName(e.ID)
	c.Links = append(c.Links, datapath.Link{
		NS: ns, Name: name, Owner: owner, Kind: datapath.Veth, MAC: portMAC(e), MTU: mtu,
		Master: BridgeName, Port: datapath.PortFlags{BroadcastFlood: true, MulticastFlood: true},
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
	c.FDB = append(c.FDB, datapath.FDBEntry{NS: ns, Link: name, MAC: datapath.MAC(e.MAC), Owner: owner})
}

// remote wants the entries for other nodes' endpoints, and lets their frames in. What a local
// endpoint has got a moment ago may still be claimed by its last holder.
func remote(c *datapath.Config, ns datapath.NS, owner datapath.Owner, v View, n overlay.Network, local []Endpoint) {
	own := map[netip.Addr]bool{}
	for _, e := range local {
		for _, ip := range e.IPs {
			own[ip] = true
		}
	}
	for _, id := range v.Participants[n.ID] {
		if vtep := v.Nodes[id].DataPath(); id != v.Self && vtep.IsValid() {
			c.Filter.Allowed = append(c.Filter.Allowed, datapath.Allow{Source: vtep, VNI: n.VNI})
		}
	}
	for _, claim := range v.Remote[n.ID] {
		vtep := v.Nodes[claim.Record.Owner].DataPath()
		if claim.Record.Owner == v.Self || !vtep.IsValid() || slices.ContainsFunc(claim.Record.IPs, func(ip netip.Addr) bool { return own[ip] }) {
			continue
		}
		mac, of := datapath.MAC(claim.Record.MAC), datapath.Owner(claim.Record.Endpoint)
		c.FDB = append(c.FDB, datapath.FDBEntry{NS: ns, Link: DeviceName, MAC: mac, VTEP: vtep, Owner: of})
		for _, ip := range claim.Record.IPs {
			c.Neighbors = append(c.Neighbors, datapath.Neighbor{NS: ns, Link: BridgeName, IP: ip, MAC: mac, Owner: of})
		}
	}
}

// underlay is the outer source address of this node's frames, before anything translates it.
func (v View) underlay() netip.Addr {
	if v.Underlay.IsValid() {
		return v.Underlay
	}
	return v.Nodes[v.Self].DataPath()
}

// deviceMAC is the VXLAN device's own address: no frame carries it, so that the node's ID is
// good enough to derive it from, and a restart finds the same.
func deviceMAC(v View) datapath.MAC {
	return derived(string(v.Self))
}

// portMAC is the address of the bridge's side of a port. A bridge with a fixed address does
// not take it over.
func portMAC(e Endpoint) datapath.MAC { return derived(string(e.ID)) }

// derived takes the first five bytes of a hexadecimal ID under the prefix fe, which is
// locally administered and, as the bridge likes it, higher than any workload's.
func derived(id string) datapath.MAC {
	m := datapath.MAC{0xfe}
	for i := 1; i < len(m) && 2*i < len(id); i++ {
		m[i] = nibble(id[2*i-2])<<4 | nibble(id[2*i-1])
	}
	return m
}

func nibble(b byte) byte {
	if b >= 'a' {
		return b - 'a' + 10
	}
	return b - '0'
}

// Bytes that VXLAN adds to a frame (RFC 7348, section 5): outer IP, UDP, VXLAN and the
// inner Ethernet header.
const (
	overhead4 = 20 + 8 + 8 + 14
	overhead6 = 40 + 8 + 8 + 14
)

// MTU is the network's MTU: what its spec says, else the least underlay MTU of its
// participants less the encapsulation, in bytes.
func MTU(n overlay.Network, v View) int {
	if m := n.NetworkSpec.MTU(); m != 0 {
		return m
	}
	overhead, least := overhead4, v.Nodes[v.Self].MTU
	if v.Nodes[v.Self].DataPath().Is6() {
		overhead = overhead6
	}
	for _, id := range v.Participants[n.ID] {
		if m := v.Nodes[id].MTU; m > 0 && (least == 0 || m < least) {
			least = m
		}
	}
	if least == 0 {
		least = 1500
	}
	return least - overhead
}
