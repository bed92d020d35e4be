package datapathtest

import (
	"fmt"
	"net/netip"

	"github.com/heddle-net/heddle/datapath"
)

// Tunnels is the namespace of WireGuard devices in the samples.
var Tunnels = datapath.Namespace{Name: "heddle-wg", Owner: "wireguard"}

const (
	sealedPort  = 5380 // of VXLAN inside WireGuard
	tunnelsPort = 5379 // of the first WireGuard device; the next has the next
	tunnelRoute = 1024 // metric
)

// Sealed is Config over WireGuard: two devices with every member as a peer of each, and routes by
// the first. Local, Members and the endpoints' VTEPs are IPv6 addresses inside the tunnels.
func (o Overlay) Sealed() datapath.Config {
	c, ns, owner := o.Config(), Tunnels.NS(), Tunnels.Owner
	c.Namespaces = append(c.Namespaces, Tunnels)
	c.Links[1].VXLAN.Underlay, c.Links[1].VXLAN.Port = ns, sealedPort
	c.Filters[0].NS, c.Filters[0].Owner, c.Filters[0].Port = ns, owner, sealedPort
	for i := range 2 {
		name := o.Tunnel(i)
		c.Links = append(c.Links, datapath.Link{
			NS: ns, Name: name, Owner: owner, Kind: datapath.WireGuard, MTU: 1420,
			WireGuard: datapath.WireGuardAttr{Key: privateKey(byte(i)), Port: tunnelsPort + uint16(i)},
		})
		for _, m := range o.Members {
			last := m.As16()[15]
			c.WGPeers = append(c.WGPeers, datapath.WGPeer{
				NS: ns, Link: name, Key: datapath.PublicKey{last, byte(i), 1}, Owner: owner, Address: m,
				Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, last}), tunnelsPort+uint16(i)),
			})
		}
	}
	c.Addresses = append(c.Addresses, datapath.Address{NS: ns, Link: o.Tunnel(0), Prefix: netip.PrefixFrom(o.Local, 128), Owner: owner})
	for _, m := range o.Members {
		c.Routes = append(c.Routes, datapath.Route{NS: ns, Link: o.Tunnel(0), Prefix: netip.PrefixFrom(m, 128), Metric: tunnelRoute, Owner: owner})
	}
	return c
}

// Tunnel is the name of a WireGuard device. A name is one host's alone: the sockets by which
// processes are asked know no namespaces.
func (o Overlay) Tunnel(i int) string { return fmt.Sprintf("test%d-%d", i, o.Local.As16()[15]) }

// privateKey is the nth key, clamped as Curve25519 wants it.
func privateKey(n byte) datapath.PrivateKey {
	return datapath.PrivateKey{0: 8, 1: n, 31: 64}
}
