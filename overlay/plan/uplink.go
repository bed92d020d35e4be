package plan

import (
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

// UplinkPrefix begins the names of the host's ends of uplinks.
const UplinkPrefix = "hd-"

// Addresses of uplinks: each takes two that are next to each other, the host's first. They are
// this node's own business, and the host hides them.
var (
	uplinkPool4 = netip.MustParsePrefix("169.254.128.0/17")
	uplinkPool6 = netip.MustParsePrefix("fd68:6564:646c:65::/64")
)

const maxUplinks = 1 << 14 // pairs in uplinkPool4

// routeMetric is that of a workload's default route by its first network; lower ones are the
// workload's own affair, and win.
const routeMetric = 26724

// Egress is what uplinks want of the host.
func Egress() datapath.Egress {
	return datapath.Egress{Uplinks: UplinkPrefix, Pool4: uplinkPool4, Pool6: uplinkPool6}
}

// inside are the links by which the host itself is in networks.
func inside(v View) string {
	var links []string
	for _, e := range v.Local {
		if e.Host && e.IfName != "" {
			links = append(links, e.IfName)
		}
	}
	slices.Sort(links)
	return strings.Join(links, ",")
}

// UplinkHostName is the name of the host's end of a network's uplink.
func UplinkHostName(id overlay.NetworkID) string { return UplinkPrefix + string(id)[:min(len(id), 10)] }

// uplink wants the way out of a network: a link to the host, and the default route over it.
func uplink(c *datapath.Config, ns datapath.NS, mtu int, n overlay.Network, v View) {
	owner, far := datapath.Owner(n.ID), UplinkHostName(n.ID)
	near, host := derived(string(n.ID)), derived(string(n.ID))
	host[0] = 0xfa
	c.Links = append(c.Links, datapath.Link{
		NS: ns, Name: UplinkName, Owner: owner, Kind: datapath.Veth, MAC: near, MTU: mtu,
		Peer: datapath.Peer{Name: far, MAC: host, MTU: mtu, Owner: owner},
	})
	index := uplinkIndex(n, v)
	for _, pool := range []netip.Prefix{uplinkPool4, uplinkPool6} {
		bits := pool.Addr().BitLen() - 1
		first := nth(pool, 2*index)
		c.Addresses = append(c.Addresses,
			datapath.Address{Link: far, Prefix: netip.PrefixFrom(first, bits), Owner: owner},
			datapath.Address{NS: ns, Link: UplinkName, Prefix: netip.PrefixFrom(first.Next(), bits), Owner: owner})
		c.Neighbors = append(c.Neighbors, // IPv6 would resolve nothing in the first seconds, for lack of an address that is usable already
			datapath.Neighbor{Link: far, IP: first.Next(), MAC: near, Owner: owner},
			datapath.Neighbor{NS: ns, Link: UplinkName, IP: first, MAC: host, Owner: owner})
		c.Routes = append(c.Routes, datapath.Route{NS: ns, Link: UplinkName, Prefix: anywhere(pool.Addr()), Via: first, Metric: routeMetric, Owner: owner})
	}
	// By this the host's programs get answers from published ports of ::1. No two uplinks have one metric.
	c.Routes = append(c.Routes, datapath.Route{Link: far, Prefix: netip.PrefixFrom(netip.IPv6Loopback(), 128), Metric: routeMetric + index, Owner: owner})
	for _, s := range n.Subnets { // what is for the network never leaves it, also when its bridge has lost its address
		c.Routes = append(c.Routes, datapath.Route{NS: ns, Link: datapath.Nowhere, Prefix: s.Prefix, Metric: routeMetric, Owner: owner})
	}
	c.Egress = Egress()
}

// leave wants an endpoint's default routes, through the gateway of its network.
func leave(c *datapath.Config, n overlay.Network, e Endpoint, rank int) {
	if n.Internal || e.Host {
		return
	}
	for _, ip := range e.IPs {
		if s, ok := n.SubnetOf(ip); ok {
			c.Routes = append(c.Routes, datapath.Route{
				NS: e.Namespace, Link: e.IfName, Prefix: anywhere(ip), Via: s.Gateway, Metric: routeMetric + rank, Owner: datapath.Owner(e.ID),
			})
		}
	}
}

func anywhere(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// ranks orders the endpoints of each namespace by priority, then by the names of their networks:
// the first has the default route that counts.
func ranks(v View) map[overlay.EndpointID]int {
	byNS := map[datapath.NS][]Endpoint{}
	for _, e := range v.Local {
		byNS[e.Namespace] = append(byNS[e.Namespace], e)
	}
	out := map[overlay.EndpointID]int{}
	for _, eps := range byNS {
		place := func(e Endpoint) overlay.RouteRank {
			return overlay.RouteRank{Priority: e.Priority, Network: v.Networks[e.Network].Name, Endpoint: e.ID}
		}
		slices.SortFunc(eps, func(a, b Endpoint) int { return place(a).Compare(place(b)) })
		for i, e := range eps {
			out[e.ID] = i
		}
	}
	return out
}

// uplinkIndex is which pair of addresses a network's uplink has: by its VNI, or where it has none by
// its ID, so that a restart finds the same; or the next one that no other network of this node has.
func uplinkIndex(n overlay.Network, v View) int {
	all := slices.SortedFunc(maps.Values(v.Networks), func(a, b overlay.Network) int {
		return cmp.Or(cmp.Compare(a.VNI, b.VNI), cmp.Compare(a.ID, b.ID))
	})
	taken := map[int]bool{}
	for _, o := range all {
		i := uplinkStart(o)
		for taken[i] && len(taken) < maxUplinks {
			i = (i + 1) % maxUplinks
		}
		if o.ID == n.ID {
			return i
		}
		taken[i] = true
	}
	return 0
}

// uplinkStart is where a network's pair is looked for first.
func uplinkStart(n overlay.Network) int {
	if n.VNI != 0 {
		return int(n.VNI-overlay.MinVNI) % maxUplinks
	}
	d := derived(string(n.ID))
	return (int(d[1])<<8 | int(d[2])) % maxUplinks
}

// nth is the nth address of a pool.
func nth(pool netip.Prefix, n int) netip.Addr {
	b := pool.Addr().As16()
	binary.BigEndian.PutUint32(b[12:], binary.BigEndian.Uint32(b[12:])+uint32(n))
	a := netip.AddrFrom16(b)
	if pool.Addr().Is4() {
		a = a.Unmap()
	}
	return a
}
