package plan

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

const (
	nodeA = overlay.NodeID("aa000000000000000000000000000000")
	nodeB = overlay.NodeID("bb000000000000000000000000000000")
	nodeC = overlay.NodeID("cc000000000000000000000000000000")
	blue  = overlay.NetworkID("b1000000000000000000000000000000")
	web   = overlay.EndpointID("e1000000000000000000000000000000")
	db    = overlay.EndpointID("e2000000000000000000000000000000")
)

// view is node A's: web on A, db on B, in a dual-stack network in which C takes part too.
func view() View {
	node := func(addr string, mtu int) overlay.NodeRecord {
		return overlay.NodeRecord{DataPath4: netip.MustParseAddr(addr), MTU: mtu}
	}
	return View{
		Self: nodeA, DataPathPort: 4789,
		Networks: map[overlay.NetworkID]overlay.Network{blue: {ID: blue, VNI: overlay.MinVNI + 7, NetworkSpec: overlay.NetworkSpec{
			Name: "blue", Driver: overlay.DriverOverlay, IPv4: true, IPv6: true, Subnets: []overlay.Subnet{
				{Prefix: netip.MustParsePrefix("10.20.0.0/24"), Gateway: netip.MustParseAddr("10.20.0.1")},
				{Prefix: netip.MustParsePrefix("fd00:20::/64"), Gateway: netip.MustParseAddr("fd00:20::1")},
			},
		}}},
		Participants: map[overlay.NetworkID][]overlay.NodeID{blue: {nodeA, nodeB, nodeC}},
		Local: []Endpoint{{
			ID: web, Network: blue, MAC: overlay.MAC{2, 0, 0, 0, 0, 1}, IfName: "eth0", Make: "web",
			Namespace: datapath.NS{Path: "/run/netns/web"},
			IPs:       []netip.Addr{netip.MustParseAddr("10.20.0.2"), netip.MustParseAddr("fd00:20::2")},
		}},
		Remote: map[overlay.NetworkID][]*overlay.Claim{blue: {{Record: overlay.Record{
			Owner: nodeB, Endpoint: db, MAC: overlay.MAC{2, 0, 0, 0, 0, 2},
			IPs: []netip.Addr{netip.MustParseAddr("10.20.0.9"), netip.MustParseAddr("fd00:20::9")},
		}}}},
		Nodes: map[overlay.NodeID]overlay.NodeRecord{nodeA: node("192.0.2.1", 1500), nodeB: node("192.0.2.2", 1500), nodeC: node("192.0.2.3", 9000)},
	}
}

// text prints a configuration a row a line, sorted, for golden files.
func text(c datapath.Config) string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, n := range c.Namespaces {
		add("namespace %s owner=%.12s partial=%v", n.Name, n.Owner, n.Partial)
	}
	for _, l := range c.Links {
		add("link %s %s %s owner=%.4s mac=%s mtu=%d master=%s port=%+v vxlan=%+v peer=%+v", l.NS.Path, l.Name, l.Kind, l.Owner, l.MAC, l.MTU, l.Master, l.Port, l.VXLAN, l.Peer)
	}
	for _, p := range c.WGPeers {
		add("peer %s %s %s at %s has %s keepalive=%v owner=%.4s", p.NS.Path, p.Link, p.Key, p.Endpoint, p.Address, p.Keepalive, p.Owner)
	}
	for _, l := range c.Locks {
		add("lock %s owner=%.4s", l, l.Owner)
	}
	for _, a := range c.Addresses {
		add("address %s %s %s owner=%.4s", a.NS.Path, a.Link, a.Prefix, a.Owner)
	}
	for _, n := range c.Neighbors {
		add("neighbor %s %s %s %s owner=%.4s", n.NS.Path, n.Link, n.IP, n.MAC, n.Owner)
	}
	for _, r := range c.Routes {
		add("route %s %s %s via %s metric=%d owner=%.4s", r.NS.Path, r.Link, r.Prefix, r.Via, r.Metric, r.Owner)
	}
	if c.Egress != (datapath.Egress{}) {
		add("egress %s %s %s", c.Egress.Uplinks, c.Egress.Pool4, c.Egress.Pool6)
	}
	for _, f := range c.FDB {
		add("fdb %s %s %s vtep=%s owner=%.4s", f.NS.Path, f.Link, f.MAC, f.VTEP, f.Owner)
	}
	for _, f := range c.Filters {
		add("filter %s port=%d min=%d", f.NS, f.Port, f.MinVNI)
		for _, a := range f.Allowed {
			add("allow %s %s vni=%d", f.NS, a.Source, a.VNI)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

func TestBuildGolden(t *testing.T) { golden(t, "overlay.txt", view()) }

func golden(t *testing.T, name string, v View) {
	t.Helper()
	got, file := text(Build(v)), "testdata/"+name
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("plan differs from %s (UPDATE=1 rewrites it):\n%s", file, d)
	}
}

func TestBuildWants(t *testing.T) {
	cases := []struct {
		name   string
		change func(*View)
		check  func(datapath.Config) bool
	}{
		{
			"nothing without local endpoints", func(v *View) { v.Local = nil },
			func(c datapath.Config) bool { return text(c) == "\n" },
		},
		{
			"nothing before the network is known", func(v *View) { v.Networks = nil },
			func(c datapath.Config) bool { return len(c.Links) == 0 },
		},
		{
			"nothing before the own data-path address is known", func(v *View) { delete(v.Nodes, nodeA) },
			func(c datapath.Config) bool { return len(c.Links) == 0 },
		},
		{
			"no entry for an owner without a node record", func(v *View) { delete(v.Nodes, nodeB) },
			func(c datapath.Config) bool { return len(c.Neighbors) == 2+4 && len(c.Filters[0].Allowed) == 1 },
		},
		{
			"own claims make no remote entry", func(v *View) { v.Remote[blue][0].Record.Owner = nodeA },
			func(c datapath.Config) bool { return len(c.Neighbors) == 2+4 && len(c.FDB) == 1 },
		},
		{
			"an address of a local endpoint is nobody else's", func(v *View) { v.Remote[blue][0].Record.IPs[0] = v.Local[0].IPs[0] },
			func(c datapath.Config) bool { return len(c.Neighbors) == 2+4 && len(c.FDB) == 1 },
		},
		{
			"only participants are let in", func(v *View) { v.Participants[blue] = []overlay.NodeID{nodeA, nodeC} },
			func(c datapath.Config) bool {
				return len(c.Filters[0].Allowed) == 1 && c.Filters[0].Allowed[0].Source.String() == "192.0.2.3"
			},
		},
		{
			"a partial network stays marked", func(v *View) { v.Partial = map[overlay.NetworkID]bool{blue: true} },
			func(c datapath.Config) bool {
				return slices.ContainsFunc(c.Namespaces, func(n datapath.Namespace) bool { return n.Partial })
			},
		},
		{
			"a given namespace is not made", func(v *View) { v.Local[0].Make = "" },
			func(c datapath.Config) bool { return len(c.Namespaces) == 1 },
		},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			v := view()
			tc.change(&v)
			if c := Build(v); !tc.check(c) {
				t.Errorf("got\n%s", text(c))
			}
		})
	}
}

func TestMTU(t *testing.T) {
	cases := []struct {
		name   string
		change func(*View)
		want   int
	}{
		{"least of the participants", func(*View) {}, 1450},
		{"a smaller participant", func(v *View) { v.Nodes[nodeC] = overlay.NodeRecord{MTU: 1400} }, 1350},
		{"IPv6 underlay", func(v *View) {
			v.Nodes[nodeA] = overlay.NodeRecord{DataPath6: netip.MustParseAddr("2001:db8::1"), MTU: 1500}
		}, 1430},
		{"encrypted", func(v *View) { *v = sealedView() }, 1500 - 60 - 70},
		{"encrypted, IPv6 underlay", func(v *View) {
			*v = sealedView()
			v.Nodes[nodeA] = overlay.NodeRecord{DataPath6: netip.MustParseAddr("2001:db8::1"), MTU: 1500}
		}, 1500 - 80 - 70},
		{"option", func(v *View) {
			n := v.Networks[blue]
			n.Options = map[string]string{"mtu": "1300"}
			v.Networks[blue] = n
		}, 1300},
		{"nothing known", func(v *View) { v.Nodes = nil }, 1450},
		{"too little for IPv6", func(v *View) { v.Nodes[nodeC] = overlay.NodeRecord{MTU: 1320} }, 1280},
		{"too little for IPv6, without it", func(v *View) {
			v.Nodes[nodeC] = overlay.NodeRecord{MTU: 1320}
			n := v.Networks[blue]
			n.IPv6 = false
			v.Networks[blue] = n
		}, 1270},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			v := view()
			tc.change(&v)
			if got := MTU(v.Networks[blue], v); got != tc.want {
				t.Errorf("MTU = %d, want %d", got, tc.want)
			}
		})
	}
}
