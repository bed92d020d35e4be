package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/services"
)

func judged(id string, ports []overlay.ServicePort, backends ...services.Backend) *services.Service {
	return &services.Service{Service: overlay.Service{ID: overlay.ServiceID(id), ServiceSpec: overlay.ServiceSpec{
		Name: id, Mode: overlay.ModeVIP, VIPs: []netip.Addr{netip.MustParseAddr("10.20.0." + id)}, Ports: ports,
	}}, Backends: backends}
}

func backend(n int, out services.Reason) services.Backend {
	return services.Backend{Used: out == "", Out: out, IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 20, 0, byte(n)}), netip.AddrFrom16([16]byte{0xfd, 0x20, 15: byte(n)})}}
}

var both = []overlay.ServicePort{{Proto: "tcp", Port: 80, Target: 8080}, {Proto: "udp", Port: 53, Target: 5353}}

// New connections go to those in rotation. TCP's that stand are left alone while their backend is
// there, UDP's while it is well.
func TestWhereAVIPLeads(t *testing.T) {
	last := backend(7, services.Suspended)
	last.Used = true
	for name, tc := range map[string]struct {
		backends []services.Backend
		tcp, udp string // backends by number; kept ones in brackets
	}{
		"nobody":       {nil, "", ""},
		"two":          {[]services.Backend{backend(3, ""), backend(2, "")}, "2 3", "2 3"},
		"leaving":      {[]services.Backend{backend(2, ""), backend(3, services.Leaving)}, "2 (3)", "2 (3)"},
		"draining":     {[]services.Backend{backend(2, services.Draining)}, "(2)", "(2)"},
		"unhealthy":    {[]services.Backend{backend(2, services.Unhealthy), backend(3, "")}, "3 (2)", "3"},
		"starting":     {[]services.Backend{backend(2, services.Starting)}, "(2)", ""},
		"suspended":    {[]services.Backend{backend(2, services.Suspended), backend(3, "")}, "3 (2)", "3"},
		"last resorts": {[]services.Backend{last, backend(3, services.Unhealthy)}, "7 (3)", "7"},
	} {
		t.Run(name, func(t *testing.T) {
			v := Balanced{}.Follow([]*services.Service{judged("100", both, tc.backends...)}).VIPs[0]
			for i, want := range []string{tc.tcp, tc.udp} {
				p := v.Ports[i]
				if p.Proto != both[i].Proto || p.Port != both[i].Port {
					t.Errorf("port %d is %d/%s", i, p.Port, p.Proto)
				}
				for _, six := range []bool{false, true} {
					var got []string
					for _, list := range [][]netip.AddrPort{p.Backends, p.Kept} {
						for _, b := range list {
							a := b.Addr().AsSlice()
							if b.Addr().Is6() != six {
								continue
							}
							text := fmt.Sprint(a[len(a)-1])
							if slices.Contains(p.Kept, b) {
								text = "(" + text + ")"
							}
							got = append(got, text)
							if b.Port() != both[i].Target {
								t.Errorf("%s leads to port %d", p.Proto, b.Port())
							}
						}
					}
					if text := strings.Join(got, " "); text != want {
						t.Errorf("%s, IPv6 %v: %q, want %q", p.Proto, six, text, want)
					}
				}
			}
		})
	}
}

// What leads where it did keeps its pointer, also when more is known of its backends; and the list is
// the same when nothing has changed.
func TestWhatAVIPLeadsToKeepsItsPointer(t *testing.T) {
	one, two := judged("100", both, backend(2, "")), judged("101", both, backend(3, ""))
	names := judged("102", both, backend(3, ""))
	names.Mode = overlay.ModeDNSRR
	b := Balanced{}.Follow([]*services.Service{one, two, names})
	if len(b.VIPs) != 2 {
		t.Fatalf("%d VIPs", len(b.VIPs))
	}
	said := judged("101", both, backend(3, ""))
	said.Backends[0].Detail = "more"
	next := b.Follow([]*services.Service{one, said, names})
	if &next.VIPs[0] != &b.VIPs[0] {
		t.Error("the list is another, though all lead where they did")
	}
	changed := next.Follow([]*services.Service{one, judged("101", both, backend(4, "")), names})
	if changed.VIPs[0] != b.VIPs[0] || changed.VIPs[1] == b.VIPs[1] {
		t.Error("another has changed than the one that leads elsewhere")
	}
	if got := changed.Follow(nil); len(got.VIPs) != 0 {
		t.Errorf("without services: %v", got.VIPs)
	}
}

// Every workload's namespace has a balancer, with the VIPs of its networks, each address once.
func TestBalancersOfWorkloads(t *testing.T) {
	const green = overlay.NetworkID("b2000000000000000000000000000000")
	v := view()
	g := v.Networks[blue]
	g.ID, g.Name, g.VNI = green, "green", overlay.MinVNI+8
	v.Networks[green] = g
	here := v.Local[0]
	both, other := here, here
	both.ID, both.Namespace, both.Make = "e3000000000000000000000000000000", datapath.NS{Path: "/run/netns/both"}, "both"
	other.ID, other.Network, other.IfName, other.Namespace, other.Make = "e4000000000000000000000000000000", green, "eth1", both.Namespace, both.Make
	other.Priority = 1
	host := here
	host.ID, host.Host, host.Make, host.Namespace = "e5000000000000000000000000000000", true, "", datapath.NS{}
	v.Local = []Endpoint{here, both, other, host}
	blueVIP := &datapath.VIP{Service: "2", Addrs: []netip.Addr{netip.MustParseAddr("10.20.0.100")}}
	more := &datapath.VIP{Service: "1", Addrs: []netip.Addr{netip.MustParseAddr("10.20.0.101")}}
	greenVIP := &datapath.VIP{Service: "3", Addrs: blueVIP.Addrs} // the networks have the same subnet
	v.VIPs = map[overlay.NetworkID][]*datapath.VIP{blue: {more, blueVIP}, green: {greenVIP}}
	got := map[string]string{}
	for _, b := range Build(v).Balancers {
		var ids []string
		for _, vip := range b.VIPs {
			ids = append(ids, vip.Service)
		}
		got[b.NS.Path] = strings.Join(ids, " ")
	}
	want := map[string]string{"": "1 2", "/run/netns/web": "1 2", "/run/netns/both": "1 3"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
	v.VIPs = nil
	if n := len(Build(v).Balancers); n != 3 {
		t.Errorf("%d balancers without services; what an earlier life left must go", n)
	}
}
