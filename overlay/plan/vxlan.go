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

// vxlan wants an overlay network: what a bridge network has, VXLAN device, and for each remote
// endpoint a forwarding entry and neighbours.
func vxlan(c *datapath.Config, v View, n overlay.Network, local []Endpoint) {
	owner := datapath.Owner(n.ID)
	ns, mtu := bridge(c, v, n, local)
	device := datapath.VXLANAttr{VNI: n.VNI, Port: v.DataPathPort, Local: v.underlay()}
	if n.Encrypted {
		device.Port, device.Local, device.Underlay = innerPort, overlay.InnerAddr(v.Nodes[v.Self].Cluster, v.Self), TunnelsNS()
	}
	c.Links = append(c.Links, datapath.Link{
		NS: ns, Name: DeviceName, Owner: owner, Kind: datapath.VXLAN, MAC: routerMAC(v.Self), MTU: mtu,
		Master: BridgeName, Port: datapath.PortFlags{NeighborSuppress: true},
		VXLAN: device,
	})
	remote(c, ns, owner, v, n, local)
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
	vteps := map[overlay.NodeID]netip.Addr{}
	for _, id := range v.Participants[n.ID] {
		vtep := v.vtep(n, id)
		if id == v.Self || !vtep.IsValid() {
			continue
		}
		vteps[id] = vtep
		if !n.Encrypted {
			c.Filters[0].Allowed = append(c.Filters[0].Allowed, datapath.Allow{Source: vtep, VNI: n.VNI})
		}
	}
	if !n.Internal {
		transit(c, ns, owner, v, vteps)
	}
	claims := v.Remote[n.ID]
	c.FDB, c.Neighbors = slices.Grow(c.FDB, len(claims)), slices.Grow(c.Neighbors, 2*len(claims))
	for _, claim := range claims {
		vtep, in := vteps[claim.Record.Owner]
		if !in || slices.ContainsFunc(claim.Record.IPs, func(ip netip.Addr) bool { return own[ip] }) {
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

// routerMAC is the address of a node's VXLAN devices, by which others send to its namespaces
// themselves: a bridge takes what is for a port's own address.
func routerMAC(id overlay.NodeID) datapath.MAC { return derived(string(id)) }

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

const defaultMTU = 1500 // of an underlay that nobody has told of

// leastIPv6 is the least MTU with which Linux, and RFC 8200 in section 5, have IPv6 at all.
const leastIPv6 = 1280

// MTU is the network's MTU: what its spec says, else the least underlay MTU of its
// participants less the encapsulation, in bytes. Where that is too little for the network's IPv6,
// the largest frames go over the underlay in pieces, as RFC 8200 asks of such a link.
func MTU(n overlay.Network, v View) int {
	if m := n.NetworkSpec.MTU(); m != 0 {
		return m
	}
	if n.Driver == overlay.DriverBridge { // no underlay carries it
		return cmp.Or(v.Nodes[v.Self].MTU, defaultMTU)
	}
	overhead, least := overhead4, v.Nodes[v.Self].MTU
	switch {
	case n.Encrypted:
		overhead = overhead6 + wireGuardOverhead(v.Nodes[v.Self])
	case v.Nodes[v.Self].DataPath().Is6():
		overhead = overhead6
	}
	for _, id := range v.Participants[n.ID] {
		if m := v.Nodes[id].MTU; m > 0 && (least == 0 || m < least) {
			least = m
		}
	}
	mtu := cmp.Or(least, defaultMTU) - overhead
	if n.IPv6 {
		return max(mtu, leastIPv6)
	}
	return mtu
}
