package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/tunnel"
)

// Names of what carries encrypted networks.
const (
	TunnelsName  = "heddle-wg" // the namespace of the WireGuard devices
	TunnelsOwner = datapath.Owner("wireguard")

	innerPort   = 5380 // UDP, of VXLAN inside WireGuard
	tunnelRoute = 1024 // metric
)

var deviceNames = [2]string{"heddle-wg0", "heddle-wg1"} // not as the host's own links are named, by which it is a workload

// DeviceIndex says which of the two WireGuard devices a link is.
func DeviceIndex(link string) (int, bool) {
	i := slices.Index(deviceNames[:], link)
	return i, i >= 0
}

// Tunnels are this node's WireGuard devices.
type Tunnels struct {
	Keys [2]datapath.PrivateKey
	Says overlay.WireGuard                 // what this node says of them
	Seen map[overlay.NodeID]tunnel.Session // what is known of peers in the kernel
}

// TunnelsNS is the namespace of the WireGuard devices.
func TunnelsNS() datapath.NS { return datapath.Namespace{Name: TunnelsName}.NS() }

// vtep is where a network's frames for a node go; not valid while that is not known.
func (v View) vtep(n overlay.Network, id overlay.NodeID) netip.Addr {
	r := v.Nodes[id]
	if !n.Encrypted {
		return r.DataPath()
	}
	if r.WireGuard == nil {
		return netip.Addr{}
	}
	return overlay.InnerAddr(r.Cluster, id)
}

// tunnels wants the WireGuard devices and, as their peers, the other participants of the encrypted
// networks that are here. Nothing else is in their namespace, so that nothing can leave it in
// clear text.
func tunnels(c *datapath.Config, v View, sealed []overlay.Network) {
	space := datapath.Namespace{Name: TunnelsName, Owner: TunnelsOwner}
	ns, self := space.NS(), v.Nodes[v.Self]
	filter := datapath.Filter{NS: ns, Owner: TunnelsOwner, Port: innerPort, MinVNI: overlay.MinVNI}
	peers := map[overlay.NodeID]bool{}
	for _, n := range sealed {
		filter.Partial = filter.Partial || v.Partial[n.ID]
		for _, id := range v.Participants[n.ID] {
			if vtep := v.vtep(n, id); id != v.Self && vtep.IsValid() {
				filter.Allowed = append(filter.Allowed, datapath.Allow{Source: vtep, VNI: n.VNI})
				peers[id] = true
			}
		}
	}
	c.Namespaces = append(c.Namespaces, space)
	c.Filters = append(c.Filters, filter)
	for i, name := range deviceNames {
		c.Links = append(c.Links, datapath.Link{
			NS: ns, Name: name, Owner: TunnelsOwner, Kind: datapath.WireGuard, MTU: cmp.Or(self.MTU, defaultMTU) - wireGuardOverhead(self),
			WireGuard: datapath.WireGuardAttr{Key: v.Tunnels.Keys[i], Port: v.Tunnels.Says.Tunnels[i].Port},
		})
	}
	c.Addresses = append(c.Addresses, datapath.Address{
		NS: ns, Link: deviceNames[0], Prefix: netip.PrefixFrom(overlay.InnerAddr(self.Cluster, v.Self), 128), Owner: TunnelsOwner,
	})
	for _, id := range slices.Sorted(maps.Keys(peers)) {
		v.peer(c, ns, id)
	}
}

// peer wants a node as a peer of both devices, and a route to it by one of them.
func (v View) peer(c *datapath.Config, ns datapath.NS, id overlay.NodeID) {
	r, seen := v.Nodes[id], v.Tunnels.Seen[id]
	inner := overlay.InnerAddr(r.Cluster, id)
	by, wanted := tunnel.Choose(v.Tunnels.Says, *r.WireGuard, seen)
	for i, t := range r.WireGuard.Tunnels {
		c.WGPeers = append(c.WGPeers, datapath.WGPeer{
			NS: ns, Link: deviceNames[i], Key: datapath.PublicKey(t.Key), Owner: TunnelsOwner,
			Endpoint: netip.AddrPortFrom(r.DataPath(), t.Port), Address: inner, Keepalive: i == wanted && by != wanted,
		})
	}
	c.Routes = append(c.Routes, datapath.Route{NS: ns, Link: deviceNames[by], Prefix: netip.PrefixFrom(inner, 128), Metric: tunnelRoute, Owner: TunnelsOwner})
}

// Bytes that WireGuard adds to a packet: outer IP, UDP, and 32 of its own.
func wireGuardOverhead(r overlay.NodeRecord) int {
	if r.DataPath().Is6() {
		return 40 + 8 + 32
	}
	return 20 + 8 + 32
}
