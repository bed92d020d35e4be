package datapath

import (
	"net/netip"
	"testing"
)

// News of what is there, or gone as believed, is no surprise; any difference is one.
func TestSurprising(t *testing.T) {
	ns, guest := Namespace{Name: "net", Owner: "n"}, NS{Path: "/proc/1/ns/net", Inode: 1}
	in := ns.NS()
	ip, vtep, mac := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("192.0.2.2"), MAC{2, 0, 0, 0, 0, 1}
	link := Link{NS: in, Name: "br0", Owner: "n", Kind: Bridge, MAC: mac, MTU: 1450}
	port := Link{
		NS: in, Name: "e1", Owner: "e", Kind: Veth, MAC: mac, MTU: 1450, Master: "br0", Port: PortFlags{BroadcastFlood: true},
		Peer: Peer{NS: guest, Name: "eth0", MAC: MAC{2, 0, 0, 0, 0, 9}, MTU: 1450, Owner: "e"},
	}
	far := Link{NS: guest, Name: "eth0", Owner: "e", Kind: Veth, MAC: port.Peer.MAC, MTU: 1450}
	address := Address{NS: in, Link: "br0", Prefix: netip.MustParsePrefix("10.0.0.1/24")}
	neighbor := Neighbor{NS: in, Link: "br0", IP: ip, MAC: mac}
	remote, local := FDBEntry{NS: in, Link: "vx0", MAC: mac, VTEP: vtep}, FDBEntry{NS: in, Link: "e1", MAC: MAC{2, 0, 0, 0, 0, 9}}
	half := remote
	half.VTEP = netip.Addr{}
	route := Route{NS: guest, Link: "eth0", Prefix: netip.MustParsePrefix("0.0.0.0/0"), Via: ip, Metric: 7}
	s := NewState()
	for _, op := range []Op{SetNamespace{ns}, AddLink{link}, UpLink{link}, AddLink{port}, UpLink{port}, SetAddress{address}, SetNeighbor{neighbor}, SetFDB{remote}, SetFDB{local}, SetRoute{route}} {
		s.Apply(op)
	}
	wg := Link{NS: in, Name: "wg0", Owner: "n", Kind: WireGuard, MTU: 1420, WireGuard: WireGuardAttr{Key: PrivateKey{1}, Port: 5379}}
	peer := WGPeer{NS: in, Link: "wg0", Key: PublicKey{2}, Address: netip.MustParseAddr("fd07::2"), Endpoint: netip.MustParseAddrPort("192.0.2.2:5379")}
	s.Apply(AddLink{wg})
	s.Apply(SetWGPeer{peer})
	device := func(a WireGuardAttr, peers ...WGPeer) WGNews { return WGNews{wg.Key(), a, peers} }
	altered := func(change func(*WGPeer)) WGPeer { p := peer; change(&p); return p }
	up := func(l Link) LinkNews { return LinkNews{Link: LinkState{Link: l, Up: true}} }
	changed := func(l Link, change func(*LinkNews)) LinkNews { n := up(l); change(&n); return n }
	named := func(l Link, ns NS, name string) Link { l.NS, l.Name = ns, name; return l }
	strange := func(a Address, ns NS) Address { a.NS, a.Prefix = ns, netip.MustParsePrefix("10.9.9.9/32"); return a }
	for _, tc := range []struct {
		name string
		news News
		want bool
	}{
		{"a link as it is", up(link), false},
		{"a link that is gone", changed(link, func(n *LinkNews) { n.Gone = true }), true},
		{"a link that is down", changed(link, func(n *LinkNews) { n.Link.Up = false }), true},
		{"another MTU", changed(link, func(n *LinkNews) { n.Link.MTU = 9000 }), true},
		{"another MAC", changed(link, func(n *LinkNews) { n.Link.MAC = MAC{} }), true},
		{"no mark", changed(link, func(n *LinkNews) { n.Link.Owner = "" }), true},
		{"a strange link among heddle's", up(named(Link{Kind: Bridge}, in, "odd")), true},
		{"one that has gone again", changed(named(Link{Kind: Bridge}, in, "odd"), func(n *LinkNews) { n.Gone = true }), false},
		{"a strange link of the host", up(named(Link{Kind: Bridge}, NS{}, "docker0")), false},
		{"a marked link of the host", up(named(link, NS{}, "hd-old")), true},
		{"a far end as it is", up(far), false},
		{"a far end that is down", changed(far, func(n *LinkNews) { n.Link.Up = false }), true},
		{"a link of a workload's own", up(named(Link{Kind: Veth}, guest, "tun0")), false},
		{"a namespace's loopback", changed(named(Link{Owner: "n"}, in, "lo"), func(*LinkNews) {}), false},
		{"a loopback that is down", changed(named(Link{Owner: "n"}, in, "lo"), func(n *LinkNews) { n.Link.Up = false }), true},
		{"a device as it is", device(wg.WireGuard, peer), false},
		{"a peer that was heard elsewhere", device(wg.WireGuard, altered(func(p *WGPeer) { p.Endpoint = netip.AddrPort{} })), false},
		{"a peer that is gone", device(wg.WireGuard), true},
		{"a strange peer", device(wg.WireGuard, peer, altered(func(p *WGPeer) { p.Key[0]++ })), true},
		{"another peer", device(wg.WireGuard, altered(func(p *WGPeer) { p.Key[0]++ })), true},
		{"a peer without its address", device(wg.WireGuard, altered(func(p *WGPeer) { p.Address = netip.Addr{} })), true},
		{"a peer that is kept alive", device(wg.WireGuard, altered(func(p *WGPeer) { p.Keepalive = true })), true},
		{"another private key", device(WireGuardAttr{PrivateKey{9}, 5379}, peer), true},
		{"a device of others", WGNews{Link: LinkKey{guest, "wg0"}}, false},
		{"port flags as they are", PortNews{Link: port.Key(), Port: port.Port}, false},
		{"other port flags", PortNews{Link: port.Key()}, true},
		{"a port that learns", PortNews{Link: port.Key(), Port: port.Port, Altered: true}, true},
		{"an address as it is", AddressNews{Address: address}, false},
		{"an address that is gone", AddressNews{address, true}, true},
		{"a strange address", AddressNews{Address: strange(address, in)}, true},
		{"an address of a workload's own", AddressNews{Address: strange(address, guest)}, false},
		{"a neighbour as it is", NeighborNews{Neighbor: neighbor}, false},
		{"a neighbour that is gone", NeighborNews{neighbor, true}, true},
		{"a neighbour elsewhere", NeighborNews{Neighbor: Neighbor{NS: in, Link: "br0", IP: ip}}, true},
		{"half of a remote entry", FDBNews{FDBEntry: remote, Self: true}, false},
		{"the other half", FDBNews{FDBEntry: half}, false},
		{"half of it gone", FDBNews{FDBEntry: remote, Self: true, Gone: true}, true},
		{"the other half gone", FDBNews{FDBEntry: half, Gone: true}, true},
		{"an entry to elsewhere", FDBNews{FDBEntry: FDBEntry{NS: in, Link: "vx0", MAC: mac, VTEP: ip}, Self: true}, true},
		{"a local entry", FDBNews{FDBEntry: local}, false},
		{"a local entry that is gone", FDBNews{FDBEntry: local, Gone: true}, true},
		{"a route as it is", RouteNews{Route: route}, false},
		{"a route that is gone", RouteNews{route, true}, true},
		{"a route to elsewhere", RouteNews{Route: Route{NS: guest, Link: "eth0", Prefix: route.Prefix, Via: vtep, Metric: 7}}, true},
		{"a namespace's name that is gone", NamespaceNews{"net"}, true},
		{"another's name", NamespaceNews{"web"}, false},
		{"a table", TableNews{in, "heddle"}, true},
	} {
		if got := Surprising(s, []News{tc.news}); got != tc.want {
			t.Errorf("%s: surprising is %v", tc.name, got)
		}
	}
}
