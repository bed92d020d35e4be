package datapathtest

import (
	"fmt"
	"net/netip"

	"github.com/heddle-net/heddle/datapath"
)

// MinVNI and Port are what the sample networks use.
const (
	MinVNI = 1 << 23
	Port   = 4789
)

// Overlay is a sample: one network as it looks on one host.
type Overlay struct {
	ID        string
	VNI       uint32
	Local     netip.Addr // this host's VTEP; Members are the others'
	Members   []netip.Addr
	Endpoints []Endpoint
}

// Endpoint is the Nth endpoint of a network: remote with a VTEP, else in the namespace NS.
type Endpoint struct {
	N    int
	VTEP netip.Addr
	NS   datapath.NS
	Make string // name of the namespace, where heddle makes it; NS is then ignored
}

// NS is the network's namespace.
func (o Overlay) NS() datapath.NS { return datapath.Namespace{Name: "heddle-" + o.ID}.NS() }

// Config is everything that the network wants from this host's kernel.
func (o Overlay) Config() datapath.Config {
	owner, ns := datapath.Owner(o.ID), o.NS()
	c := datapath.Config{
		Namespaces: []datapath.Namespace{{Name: "heddle-" + o.ID, Owner: owner}},
		Links: []datapath.Link{
			{NS: ns, Name: "br0", Owner: owner, Kind: datapath.Bridge, MAC: datapath.MAC{2, 0x64, 0xff, 0, 0, 1}, MTU: 1450},
			{
				NS: ns, Name: "vx0", Owner: owner, Kind: datapath.VXLAN, MAC: datapath.MAC{2, 0x64, 0xff, 0, 0, 2}, MTU: 1450, Master: "br0",
				Port: datapath.PortFlags{NeighborSuppress: true}, VXLAN: datapath.VXLANAttr{VNI: o.VNI, Port: Port, Local: o.Local},
			},
		},
		Addresses: []datapath.Address{
			{NS: ns, Link: "br0", Prefix: netip.MustParsePrefix("10.64.255.254/16"), Owner: owner},
			{NS: ns, Link: "br0", Prefix: netip.MustParsePrefix("fd00:64::ffff/64"), Owner: owner},
		},
		Filters: []datapath.Filter{{Port: Port, MinVNI: MinVNI}},
	}
	for _, m := range o.Members {
		c.Filters[0].Allowed = append(c.Filters[0].Allowed, datapath.Allow{Source: m, VNI: o.VNI})
	}
	for _, e := range o.Endpoints {
		e.add(&c, ns)
	}
	return c
}

// IPv4 and IPv6 are the endpoint's addresses.
func (e Endpoint) IPv4() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 64, byte(e.N >> 8), byte(e.N)})
}

func (e Endpoint) IPv6() netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x64, 14: byte(e.N >> 8), 15: byte(e.N)})
}

// MAC is the endpoint's.
func (e Endpoint) MAC() datapath.MAC {
	return datapath.MAC{2, 0x64, 0, byte(e.N >> 16), byte(e.N >> 8), byte(e.N)}
}

// Owner is the endpoint's ID.
func (e Endpoint) Owner() datapath.Owner { return datapath.Owner(fmt.Sprintf("endpoint%d", e.N)) }

// where is the namespace that the endpoint is in.
func (e Endpoint) where() datapath.NS {
	if e.Make != "" {
		return datapath.Namespace{Name: e.Make}.NS()
	}
	return e.NS
}

func (e Endpoint) add(c *datapath.Config, ns datapath.NS) {
	for _, ip := range []netip.Addr{e.IPv4(), e.IPv6()} {
		c.Neighbors = append(c.Neighbors, datapath.Neighbor{NS: ns, Link: "br0", IP: ip, MAC: e.MAC(), Owner: e.Owner()})
	}
	if e.VTEP.IsValid() {
		c.FDB = append(c.FDB, datapath.FDBEntry{NS: ns, Link: "vx0", MAC: e.MAC(), VTEP: e.VTEP, Owner: e.Owner()})
		return
	}
	if e.Make != "" {
		c.Namespaces = append(c.Namespaces, datapath.Namespace{Name: e.Make, Owner: e.Owner()})
	}
	e.NS = e.where()
	port := fmt.Sprintf("e%d", e.N)
	c.Links = append(c.Links, datapath.Link{
		NS: ns, Name: port, Owner: e.Owner(), Kind: datapath.Veth, MAC: datapath.MAC{2, 0x64, 1, byte(e.N >> 16), byte(e.N >> 8), byte(e.N)}, MTU: 1450,
		Master: "br0", Port: datapath.PortFlags{BroadcastFlood: true, MulticastFlood: true},
		Peer: datapath.Peer{NS: e.NS, Name: "eth0", MAC: e.MAC(), MTU: 1450, Owner: e.Owner()},
	})
	c.Addresses = append(c.Addresses,
		datapath.Address{NS: e.NS, Link: "eth0", Prefix: netip.PrefixFrom(e.IPv4(), 16), Owner: e.Owner()},
		datapath.Address{NS: e.NS, Link: "eth0", Prefix: netip.PrefixFrom(e.IPv6(), 64), Owner: e.Owner()})
	c.Locks = append(c.Locks, datapath.Lock{NS: ns, Link: port, MAC: e.MAC(), IPs: []netip.Addr{e.IPv4(), e.IPv6()}, Owner: e.Owner()})
	c.FDB = append(c.FDB, datapath.FDBEntry{NS: ns, Link: port, MAC: e.MAC(), Owner: e.Owner()})
}

// Open is Config with a way out: an uplink to the host, and default routes over it.
func (o Overlay) Open() datapath.Config {
	c, owner, ns := o.Config(), datapath.Owner(o.ID), o.NS()
	c.Namespaces[0].Uplink, c.Namespaces[0].Names = "up0", "10.64.255.254,fd00:64::ffff"
	c.Links = append(c.Links, datapath.Link{
		NS: ns, Name: "up0", Owner: owner, Kind: datapath.Veth, MAC: datapath.MAC{2, 0x64, 0xff, 0, 0, 3}, MTU: 1450,
		Peer: datapath.Peer{Name: "hd-" + o.ID, MAC: datapath.MAC{2, 0x64, 0xff, 0, 0, 4}, MTU: 1450, Owner: owner},
	})
	c.Egress = datapath.Egress{Uplinks: "hd-", Pool4: netip.MustParsePrefix("169.254.128.0/17"), Pool6: netip.MustParsePrefix("fd68::/64")}
	c.Routes = append(c.Routes, datapath.Route{Link: "hd-" + o.ID, Prefix: netip.MustParsePrefix("::1/128"), Metric: 1000, Owner: owner})
	for _, way := range []struct{ host, own, dst, gateway, subnet string }{
		{"169.254.128.0/31", "169.254.128.1/31", "0.0.0.0/0", "10.64.255.254", "10.64.0.0/16"}, {"fd68::/127", "fd68::1/127", "::/0", "fd00:64::ffff", "fd00:64::/64"},
	} {
		host, dst := netip.MustParsePrefix(way.host), netip.MustParsePrefix(way.dst)
		c.Addresses = append(c.Addresses,
			datapath.Address{Link: "hd-" + o.ID, Prefix: host, Owner: owner},
			datapath.Address{NS: ns, Link: "up0", Prefix: netip.MustParsePrefix(way.own), Owner: owner})
		c.Neighbors = append(c.Neighbors,
			datapath.Neighbor{Link: "hd-" + o.ID, IP: netip.MustParsePrefix(way.own).Addr(), MAC: datapath.MAC{2, 0x64, 0xff, 0, 0, 3}, Owner: owner},
			datapath.Neighbor{NS: ns, Link: "up0", IP: host.Addr(), MAC: datapath.MAC{2, 0x64, 0xff, 0, 0, 4}, Owner: owner})
		c.Routes = append(c.Routes,
			datapath.Route{NS: ns, Link: "up0", Prefix: dst, Via: host.Addr(), Metric: 1000, Owner: owner},
			datapath.Route{NS: ns, Link: datapath.Nowhere, Prefix: netip.MustParsePrefix(way.subnet), Metric: 1000, Owner: owner})
		for _, e := range o.Endpoints {
			if !e.VTEP.IsValid() {
				c.Routes = append(c.Routes, datapath.Route{NS: e.where(), Link: "eth0", Prefix: dst, Via: netip.MustParseAddr(way.gateway), Metric: 1000, Owner: e.Owner()})
			}
		}
	}
	return c
}
