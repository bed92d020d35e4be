package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/services"
)

// passages prints what leads where, of an entrance.
func passages(p datapath.Passages) string {
	var out []string
	for _, port := range p.Ports {
		at := port.At.String()
		out = append(out, fmt.Sprintf("%s %s %d %v", port.Proto, at, port.Port, port.To))
	}
	for _, s := range p.Sources {
		out = append(out, fmt.Sprintf("%s sees %s", s.Of, s.As))
	}
	return strings.Join(out, "\n")
}

// entranceOf are the inner and the host's entrance of a view with one network.
func entranceOf(t *testing.T, v View) (inner, host datapath.Entrance) {
	t.Helper()
	c := Build(v)
	if len(c.Entrances) != 2 || c.Entrances[1].NS != (datapath.NS{}) {
		t.Fatalf("entrances %v", c.Entrances)
	}
	return c.Entrances[0], c.Entrances[1]
}

func same(t *testing.T, what, got, want string) {
	t.Helper()
	if want = strings.ReplaceAll(strings.TrimSpace(want), "\t", ""); got != want {
		t.Errorf("%s:\n%s\nwant\n%s", what, got, want)
	}
}

func TestPublishedPortsOfWorkloads(t *testing.T) {
	v := view()
	v.Local[0].Publish = []overlay.Publish{
		{Port: 8080, Target: 80, Proto: "tcp"},
		{Addr: netip.MustParseAddr("192.0.2.1"), Port: 8443, Target: 443, Proto: "tcp"},
		{Addr: netip.MustParseAddr("::"), Port: 53, Target: 53, Proto: "udp"},
	}
	inner, host := entranceOf(t, v)
	same(t, "inside", passages(inner.Workloads), `
		tcp 169.254.128.15 8080 [{10.20.0.2:80 false}]
		tcp fd68:6564:646c:65::f 8080 [{[fd00:20::2]:80 false}]
		tcp 169.254.128.15 50853 [{10.20.0.2:443 false}]
		udp fd68:6564:646c:65::f 881 [{[fd00:20::2]:53 false}]`)
	same(t, "on the host", passages(host.Workloads), `
		tcp 0.0.0.0 8080 [{169.254.128.15:8080 false}]
		tcp :: 8080 [{[fd68:6564:646c:65::f]:8080 false}]
		tcp 192.0.2.1 8443 [{169.254.128.15:50853 false}]
		udp :: 53 [{[fd68:6564:646c:65::f]:881 false}]`)

	v.Local[0].Leaves = true
	if inner, host := entranceOf(t, v); !inner.Workloads.Ports[0].To[0].Leaves || !host.Workloads.Ports[0].To[0].Leaves {
		t.Error("new flows come to what leaves")
	}
}

// Who answers elsewhere than to its gateway sees the gateway.
func TestAnswersByAnotherNetwork(t *testing.T) {
	const red = overlay.NetworkID("d2000000000000000000000000000000")
	v := view()
	n := v.Networks[blue]
	n.ID, n.Name, n.VNI = red, "red", n.VNI+1
	v.Networks[red] = n
	e := v.Local[0]
	e.ID, e.Network, e.IfName, e.Priority = db, red, "eth1", 1
	v.Local = append(v.Local, e)
	seen := func(id overlay.NetworkID) string {
		for _, e := range Build(v).Entrances {
			if e.Owner == datapath.Owner(id) {
				return passages(e.Workloads)
			}
		}
		return "no entrance"
	}
	gateways := n.Subnets
	want := fmt.Sprintf("10.20.0.2 sees %s\nfd00:20::2 sees %s", gateways[0].Gateway, gateways[1].Gateway)
	if got := seen(blue); got != want {
		t.Errorf("by the network without the default route: %s, want %s", got, want)
	}
	if got := seen(red); got != "" {
		t.Errorf("by the network of the default route: %s", got)
	}
	n.Internal = true
	v.Networks[red] = n
	if got := seen(blue); got != "" {
		t.Errorf("an internal network takes the default route: %s", got)
	}
	if got := seen(red); got != "no entrance" {
		t.Errorf("an internal network: %s", got)
	}
}

// ingress is a view in which a service of blue has a backend here and one on node B.
func ingress(mode overlay.PublishMode) View {
	v := view()
	v.Numbers = map[overlay.NodeID]uint32{nodeA: 1, nodeB: 300}
	backend := func(id overlay.EndpointID, node overlay.NodeID, ips []netip.Addr) services.Backend {
		return services.Backend{Endpoint: id, Node: node, IPs: ips, Used: true}
	}
	v.Services = map[overlay.NetworkID][]*services.Service{blue: {{
		Service: overlay.Service{ID: "s1", Network: blue, ServiceSpec: overlay.ServiceSpec{
			Name: "web", Publish: []overlay.Publish{{Port: 80, Target: 8080, Proto: "tcp", Mode: mode}},
		}},
		Backends: []services.Backend{backend(web, nodeA, v.Local[0].IPs), backend(db, nodeB, v.Remote[blue][0].Record.IPs)},
	}}}
	return v
}

func TestPublishedPortsOfServices(t *testing.T) {
	v := ingress(overlay.PublishIngress)
	inner, host := entranceOf(t, v)
	same(t, "ingress", passages(inner.Services), `
		tcp 169.254.128.15 80 [{10.20.0.2:8080 false} {10.20.0.9:8080 false}]
		tcp fd68:6564:646c:65::f 80 [{[fd00:20::2]:8080 false} {[fd00:20::9]:8080 false}]
		10.20.0.9 sees 100.64.0.1
		fd00:20::9 sees fd68:6564:646c:74::1`)
	same(t, "ingress on the host", passages(host.Services), `
		tcp 0.0.0.0 80 [{169.254.128.15:80 false}]
		tcp :: 80 [{[fd68:6564:646c:65::f]:80 false}]`)
	c := Build(v)
	routes := 0
	for _, r := range c.Routes {
		if r.Link == BridgeName && (r.Via == netip.MustParseAddr("100.64.1.44") && r.Prefix.String() == "10.20.0.9/32" || !r.Via.IsValid() && r.Prefix.String() == "100.64.1.44/32") {
			routes++
		}
	}
	if routes != 2 {
		t.Errorf("%d routes to the other's namespace and through it, want 2", routes)
	}
	router := datapath.FDBEntry{NS: inner.NS, Link: DeviceName, MAC: routerMAC(nodeB), VTEP: netip.MustParseAddr("192.0.2.2"), Owner: inner.Owner}
	if !slices.Contains(c.FDB, router) {
		t.Errorf("no entry for the other's router in %v", c.FDB)
	}

	inner, _ = entranceOf(t, ingress(overlay.PublishLocal))
	same(t, "local", passages(inner.Services), `
		tcp 169.254.128.15 80 [{10.20.0.2:8080 false}]
		tcp fd68:6564:646c:65::f 80 [{[fd00:20::2]:8080 false}]`)

	v.Services[blue][0].Backends[0].Used, v.Services[blue][0].Backends[0].Out = false, services.Leaving
	v.Services[blue][0].Backends[1].Used, v.Services[blue][0].Backends[1].Out = false, services.Unhealthy
	inner, host = entranceOf(t, v)
	same(t, "one leaves, the other is sick", passages(inner.Services), `
		tcp 169.254.128.15 80 [{10.20.0.2:8080 true}]
		tcp fd68:6564:646c:65::f 80 [{[fd00:20::2]:8080 true}]`)
	if to := host.Services.Ports[0].To; len(to) != 1 || !to[0].Leaves {
		t.Errorf("the host leads to %v", to)
	}

	v = ingress(overlay.PublishIngress) // on a node without an endpoint
	v.Local, v.Linger = nil, map[overlay.NetworkID]bool{blue: true}
	if inner, _ := entranceOf(t, v); len(inner.Services.Ports) != 2 {
		t.Errorf("without an endpoint: %s", passages(inner.Services))
	}
}

// Each port has a way of its own through the uplink, whatever addresses of the host have it, in whatever
// order they are named; and another port more changes none of the others, but where two want one.
func TestSlots(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		addr := rapid.SampledFrom([]netip.Addr{{}, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1")})
		ports := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) overlay.Publish {
			return overlay.Publish{Addr: addr.Draw(t, "addr"), Port: uint16(rapid.IntRange(1, 40).Draw(t, "port")), Proto: rapid.SampledFrom([]string{"tcp", "udp"}).Draw(t, "proto")}
		}), 1, 60, func(p overlay.Publish) overlay.Publish { return p }).Draw(t, "ports")
		of := func(ports []overlay.Publish) map[overlay.Publish]uint16 {
			var all []opened
			for _, p := range ports {
				all = append(all, opened{Publish: p})
			}
			slots(all)
			out := map[overlay.Publish]uint16{}
			for _, o := range all {
				out[o.Publish] = o.slot
			}
			return out
		}
		got, taken := of(ports), map[string]bool{}
		for p, slot := range got {
			key := fmt.Sprint(p.Proto, slot)
			if slot == 0 || taken[key] || !p.Addr.IsValid() && slot != p.Port {
				t.Fatalf("%s goes by %d", p, slot)
			}
			taken[key] = true
		}
		slices.Reverse(ports)
		if again := of(ports); fmt.Sprint(again) != fmt.Sprint(got) {
			t.Fatalf("in another order: %v, %v", got, again)
		}
	})
}
