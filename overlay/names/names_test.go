package names

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

const (
	self = overlay.NodeID("a1")
	peer = overlay.NodeID("b2")
	blue = overlay.NetworkID("b0")
	red  = overlay.NetworkID("e0")
)

func network(id overlay.NetworkID, name, prefix string) Network {
	p := netip.MustParsePrefix(prefix)
	return Network{Network: overlay.Network{ID: id, NetworkSpec: overlay.NetworkSpec{Name: name, Subnets: []overlay.Subnet{
		{Prefix: p, Gateway: p.Addr().Next()}, {Prefix: netip.MustParsePrefix("fd00::/64"), Gateway: netip.MustParseAddr("fd00::1")},
	}}}}
}

func ips(all ...string) (out []netip.Addr) {
	for _, s := range all {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func claim(id, owner, workload string, at []netip.Addr, aliases ...string) *overlay.Claim {
	return &overlay.Claim{Record: overlay.Record{
		Endpoint: overlay.EndpointID(id), Owner: overlay.NodeID(owner), Workload: workload, IPs: at, Names: append([]string{workload}, aliases...),
	}}
}

func own(id string, n overlay.NetworkID, workload string, at ...string) Endpoint {
	return Endpoint{ID: overlay.EndpointID(id), Network: n, Workload: workload, IPs: ips(at...), Named: true, Namespace: datapath.NS{Path: "/run/netns/" + workload}, Make: workload}
}

func backend(workload, ip string, used bool) services.Backend {
	return services.Backend{Workload: workload, IPs: ips(ip), Used: used}
}

// world has two networks; "here" is in both, and its default route goes through blue.
func world() Input {
	b, r := network(blue, "blue", "10.1.0.0/24"), network(red, "red", "10.2.0.0/24")
	b.Claims = []*overlay.Claim{
		claim("01", "b2", "far", ips("10.1.0.9", "fd00::9"), "db", "a.b"),
		claim("02", "a1", "mine", ips("10.1.0.99")), // of this node: what it says of itself counts
		claim("03", "b2", "twin", ips("10.1.0.11")),
		claim("04", "c3", "Twin", ips("10.1.0.12")),
		claim("05", "d4", "dead", ips("10.1.0.13")),
		claim("06", "b2", "left", ips("10.1.0.14")),
		claim("07", "b2", "both", ips("10.1.0.15")),
	}
	b.Claims[5].Record.Health = overlay.HealthLeaving
	b.Services = []*services.Service{
		{Service: overlay.Service{ServiceSpec: overlay.ServiceSpec{
			Name: "web", Mode: overlay.ModeVIP, VIPs: ips("10.1.0.200", "fd00::200"), Ports: []overlay.ServicePort{{Name: "http", Proto: "tcp", Port: 80, Target: 8080}, {Proto: "udp", Port: 1, Target: 2}},
		}}, Backends: []services.Backend{backend("w1", "10.1.0.21", true), backend("w1", "10.1.0.22", true), backend("w3", "10.1.0.23", false)}},
		{Service: overlay.Service{ServiceSpec: overlay.ServiceSpec{
			Name: "RR", Mode: overlay.ModeDNSRR, Ports: []overlay.ServicePort{{Name: "Http", Proto: "tcp", Port: 80, Target: 8080}},
		}}, Backends: []services.Backend{backend("w1", "10.1.0.21", true), backend("w1", "10.1.0.22", true), backend("w4", "10.1.0.24", true), backend("w3", "10.1.0.23", false)}},
		{Service: overlay.Service{ServiceSpec: overlay.ServiceSpec{Name: "down", Mode: overlay.ModeDNSRR}}, Backends: []services.Backend{backend("w3", "10.1.0.23", false)}},
	}
	r.Claims = []*overlay.Claim{claim("17", "b2", "both", ips("10.2.0.15")), claim("18", "b2", "redhost", ips("10.2.0.16")), claim("19", "b2", "dead", ips("10.2.0.17"))}
	return Input{
		Self: self, Networks: []Network{r, b}, Out: map[overlay.NodeID]bool{"d4": true},
		Own: []Endpoint{own("91", red, "here", "10.2.0.5"), own("92", blue, "here", "10.1.0.5", "fd00::5"), own("93", red, "redder", "10.2.0.6")},
	}
}

func strs[T fmt.Stringer](all []T) string {
	var s []string
	for _, a := range all {
		s = append(s, a.String())
	}
	slices.Sort(s)
	return strings.Join(s, " ")
}

func TestNamesHaveAddresses(t *testing.T) {
	table := (*Table)(nil).Next(world())
	here, redder := table.Asker(blue, netip.MustParseAddr("fd00::5")), table.Asker(red, netip.MustParseAddr("10.2.0.6"))
	for _, tc := range []struct {
		what, name, want string
		known            bool
		by               *Asker
	}{
		{"a workload elsewhere", "far", "10.1.0.9 fd00::9", true, here},
		{"its alias", "db", "10.1.0.9 fd00::9", true, here},
		{"an alias with a dot", "a.b", "10.1.0.9 fd00::9", true, here},
		{"with its network", "far.blue", "10.1.0.9 fd00::9", true, here},
		{"an alias with a dot, with its network", "a.b.blue", "10.1.0.9 fd00::9", true, here},
		{"with another network of the asker", "far.red", "", false, here},
		{"of a network that the asker is not in", "far", "", false, redder},
		{"the same, in full", "far.blue", "", false, redder},
		{"itself", "here", "10.1.0.5 fd00::5", true, here},
		{"itself in the other network", "here.red", "10.2.0.5", true, here},
		{"one that this node does not say", "mine", "", false, here},
		{"two of a name", "twin", "10.1.0.11 10.1.0.12", true, here},
		{"on a node that is out", "dead", "10.2.0.17", true, here},
		{"the same in its network", "dead.blue", "", true, here},
		{"one that leaves", "left", "", false, here},
		{"in both networks", "both", "10.1.0.15", true, here},
		{"in both networks, for one that is in one", "both", "10.2.0.15", true, redder},
		{"in the second network", "redhost", "10.2.0.16", true, here},
		{"a service", "web", "10.1.0.200 fd00::200", true, here},
		{"its backends", "tasks.web", "10.1.0.21 10.1.0.22", true, here},
		{"its backends, in full", "tasks.web.blue", "10.1.0.21 10.1.0.22", true, here},
		{"a service without an address", "rr", "10.1.0.21 10.1.0.22 10.1.0.24", true, here},
		{"one without a backend in rotation", "down", "", true, here},
		{"nobody", "nobody", "", false, here},
		{"nothing", "", "", false, here},
	} {
		t.Run(tc.what, func(t *testing.T) {
			got, known := tc.by.Addrs(tc.name)
			if strs(got) != tc.want || known != tc.known {
				t.Errorf("%q has %q, known %v; want %q, %v", tc.name, strs(got), known, tc.want, tc.known)
			}
		})
	}
}

func TestStrangersAreNoAskers(t *testing.T) {
	table := (*Table)(nil).Next(world())
	for _, s := range []source{{blue, netip.MustParseAddr("10.1.0.9")}, {blue, netip.MustParseAddr("10.2.0.5")}, {"x", netip.MustParseAddr("10.1.0.5")}} {
		if a := table.Asker(s.network, s.ip); a != nil {
			t.Errorf("%v is %v", s, a)
		}
	}
	if (*Table)(nil).Asker(blue, netip.MustParseAddr("10.1.0.5")) != nil {
		t.Error("nothing knows somebody")
	}
}

func TestTheOrderOfNetworksIsThatOfTheDefaultRoutes(t *testing.T) {
	in := world()
	in.Own[0].Priority = 1 // red
	table := (*Table)(nil).Next(in)
	if got, _ := table.Asker(blue, netip.MustParseAddr("10.1.0.5")).Addrs("both"); strs(got) != "10.2.0.15" {
		t.Errorf("both has %s", got)
	}
}

func TestAddressesHaveNames(t *testing.T) {
	table := (*Table)(nil).Next(world())
	here := table.Asker(blue, netip.MustParseAddr("10.1.0.5"))
	for ip, want := range map[string]string{
		"10.1.0.9": "far.blue.heddle.internal true", "10.1.0.200": "web.blue.heddle.internal true", "10.1.0.77": " true", "10.1.0.13": " true",
		"10.2.0.15": "both.red.heddle.internal true", "192.0.2.1": " false",
	} {
		got, ours := here.Names(netip.MustParseAddr(ip))
		if s := fmt.Sprint(strings.Join(got, ","), " ", ours); s != want {
			t.Errorf("%s is %q, want %q", ip, s, want)
		}
	}
}

func TestPortsAreWhereTheServiceIs(t *testing.T) {
	table := (*Table)(nil).Next(world())
	here := table.Asker(blue, netip.MustParseAddr("10.1.0.5"))
	for name, want := range map[string]string{
		"http.tcp.web":       "[{web.blue.heddle.internal 80 [10.1.0.200 fd00::200]}] true",
		"http.tcp.tasks.web": "[{w1.blue.heddle.internal 8080 [10.1.0.21 10.1.0.22]}] true",
		"http.tcp.rr.blue":   "[{w1.blue.heddle.internal 8080 [10.1.0.21 10.1.0.22]} {w4.blue.heddle.internal 8080 [10.1.0.24]}] true",
		"http.udp.web":       "[] true",
		".udp.web":           "[] true",
		"http.tcp.nobody":    "[] false",
	} {
		parts := strings.SplitN(name, ".", 3)
		got, known := here.Ports(parts[0], parts[1], parts[2])
		if s := fmt.Sprint(got, " ", known); s != want {
			t.Errorf("%s is at %s, want %s", name, s, want)
		}
	}
}

// Whatever changes, the table that follows another is the one that would have been made anew, and
// the one before stays as it was.
func TestNextIsAsIfMadeAnew(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		workloads := []string{"a", "A", "b", "c.d"}
		claims := map[string]*overlay.Claim{}
		var table *Table
		step := 0
		t.Repeat(map[string]func(*rapid.T){"change": func(t *rapid.T) {
			step++
			for range rapid.IntRange(0, 3).Draw(t, "changes") {
				id, owner := rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "id"), rapid.SampledFrom([]string{"a1", "b2", "c3"}).Draw(t, "owner")
				if rapid.Bool().Draw(t, "gone") {
					delete(claims, id+owner)
					continue
				}
				c := claim(id, owner, rapid.SampledFrom(workloads).Draw(t, "workload"), ips(fmt.Sprintf("10.1.0.%d", rapid.IntRange(10, 15).Draw(t, "ip"))), "alias")
				if rapid.Bool().Draw(t, "leaving") {
					c.Record.Health = overlay.HealthLeaving
				}
				claims[id+owner] = c
			}
			in := Input{Self: self, Own: []Endpoint{own("92", blue, "here", "10.1.0.5")}, Networks: []Network{network(blue, "blue", "10.1.0.0/24")}}
			if rapid.Bool().Draw(t, "another") {
				in.Own = append(in.Own, own("93", blue, rapid.SampledFrom(workloads).Draw(t, "mine"), "10.1.0.6"))
			}
			for _, c := range claims {
				in.Networks[0].Claims = append(in.Networks[0].Claims, c)
			}
			slices.SortFunc(in.Networks[0].Claims, compareClaims)
			before, was := table, ""
			if before != nil {
				was = everything(before)
			}
			table = table.Next(in)
			if got, want := everything(table), everything((*Table)(nil).Next(in)); got != want {
				t.Fatalf("step %d: it is\n%s, want\n%s", step, got, want)
			}
			if before != nil && everything(before) != was {
				t.Fatalf("step %d has changed what was before", step)
			}
		}})
	})
}

// everything is what somebody can learn from a table.
func everything(t *Table) string {
	a := t.Asker(blue, netip.MustParseAddr("10.1.0.5"))
	s := ""
	for _, name := range []string{"a", "b", "c.d", "alias", "here"} {
		got, known := a.Addrs(name)
		s += fmt.Sprintln(name, strs(got), known)
	}
	for i := range 20 {
		got, _ := a.Names(netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}))
		slices.Sort(got)
		s += fmt.Sprintln(i, got)
	}
	return s
}

// BenchmarkNext is one new record among 10,000.
func BenchmarkNext(b *testing.B) {
	in := Input{Self: self, Own: []Endpoint{own("92", blue, "here", "10.1.0.5")}, Networks: []Network{network(blue, "blue", "10.0.0.0/8")}}
	for i := range 10000 {
		ip := netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})
		in.Networks[0].Claims = append(in.Networks[0].Claims, claim(fmt.Sprintf("%05d", i), "b2", fmt.Sprintf("w%d", i), []netip.Addr{ip}))
	}
	table := (*Table)(nil).Next(in)
	claims := in.Networks[0].Claims
	for i := 0; b.Loop(); i++ {
		in.Networks[0].Claims = slices.Clone(claims)
		c := *claims[i%len(claims)]
		in.Networks[0].Claims[i%len(claims)] = &c
		claims = in.Networks[0].Claims
		table = table.Next(in)
	}
}
