package state

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"testing"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/ipam"
	"pgregory.net/rapid"
)

var (
	someNodes    = []string{"m1", "n1", "n2", "n3", "n4"}
	someNetworks = []string{"a", "b", "c"}
	someTokens   = []string{"t1", "t2", "t3"}
	someServices = []string{"s1", "s2", "s3", "s4"}
)

// anyCommand draws a command over few names, so that they meet.
func anyCommand(t *rapid.T) Command {
	node := rapid.SampledFrom(someNodes).Draw(t, "node")
	network := rapid.SampledFrom(someNetworks).Draw(t, "network")
	tok := rapid.SampledFrom(someTokens).Draw(t, "token")
	role := rapid.SampledFrom([]overlay.Role{overlay.Worker, overlay.Worker, overlay.Manager}).Draw(t, "role")
	newToken := changed(token(tok, role), func(n *NewToken) { n.Uses = rapid.IntRange(0, 2).Draw(t, "uses") })
	switch k := rapid.IntRange(0, 44).Draw(t, "kind"); k {
	case 0:
		return CreateToken{newToken}
	case 1:
		return RevokeToken{tok}
	case 2:
		return RotateTokens{newToken}
	case 3, 4, 5:
		j := join(node, tok)
		j.Now = now + rapid.SampledFrom([]int64{1, 2, 3600}).Draw(t, "now")
		return j
	case 6:
		return SetRole{nid(node), role}
	case 7:
		return SetAvailability{nid(node), rapid.SampledFrom([]overlay.Availability{overlay.Active, overlay.Active, overlay.Drain}).Draw(t, "availability")}
	case 8:
		return UpdateNode{Node: nid(node), Control: netip.AddrPortFrom(addr("192.0.2.1"), rapid.Uint16Range(1, 3).Draw(t, "port"))}
	case 9:
		return RemoveNode{Node: nid(node), Consent: rapid.Bool().Draw(t, "consent"), Force: rapid.Bool().Draw(t, "force"), Now: sometime(t)}
	case 10, 11, 12:
		c := network4(network)
		if rapid.Bool().Draw(t, "small") {
			c = network4(network, "10.1.0.0/29")
		}
		c.Spec.IPv6 = rapid.Bool().Draw(t, "ipv6")
		return c
	case 13:
		return RemoveNetwork{netID(network)}
	case 14, 15, 16, 17:
		return Release{anyRelease(t, node, network), sometime(t)}
	case 18:
		return Unfence{nid(node), sometime(t)}
	case 19, 20:
		u := UpdateNetwork{ID: netID(network), Labels: map[string]string{tok: node}, DropLabels: []string{tok}}
		if more := rapid.SampledFrom([]string{"", "10.2.0.0/29", "10.1.0.8/29", "10.64.0.0/24", "fd00:9::/64"}).Draw(t, "subnet"); more != "" {
			u.Subnets = []overlay.Subnet{{Prefix: netip.MustParsePrefix(more)}}
		}
		return u
	case 21:
		return UpdateParams{AddPools: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(63, 130).Draw(t, "pool")), 0, 0}), 16)}}
	case 22:
		return SetLevel{rapid.IntRange(1, Level).Draw(t, "level")}
	case 23, 24, 25, 26, 27:
		return anyService(t, network)
	case 28, 29, 30:
		u := overlay.ServiceUpdate{Publish: anyPublish(t), Labels: map[string]string{tok: node}, DropLabels: []string{tok}}
		for port := range uint16(4) {
			if rapid.Bool().Draw(t, "drop") {
				u.DropPublish = append(u.DropPublish, overlay.ProtoPort{Proto: "tcp", Port: rapid.SampledFrom([]uint16{80, overlay.FirstDynamicPort}).Draw(t, "port") + port%2})
			}
		}
		return UpdateService{servID(rapid.SampledFrom(someServices).Draw(t, "service")), u}
	case 31, 32, 33:
		return RemoveService{servID(rapid.SampledFrom(someServices).Draw(t, "service"))}
	default:
		g := Grant{Network: netID(network), Node: nid(node), Want: rapid.IntRange(0, 3).Draw(t, "want"), Spare: rapid.Bool().Draw(t, "spare"), Now: sometime(t)}
		for range rapid.IntRange(0, 2).Draw(t, "named") {
			g.Addrs = append(g.Addrs, netip.AddrFrom4([4]byte{10, 1, 0, byte(rapid.IntRange(0, 8).Draw(t, "host"))}))
		}
		return g
	}
}

func anyService(t *rapid.T, network string) CreateService {
	name := rapid.SampledFrom(someServices).Draw(t, "service")
	c := CreateService{servID(name), netID(network), overlay.ServiceSpec{Name: rapid.SampledFrom(someServices).Draw(t, "name"), Mode: overlay.ModeVIP, Publish: anyPublish(t)}, sometime(t)}
	if rapid.IntRange(0, 3).Draw(t, "dnsrr") == 0 {
		c.Spec.Mode = overlay.ModeDNSRR
	} else if rapid.Bool().Draw(t, "asked") {
		c.Spec.VIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(rapid.IntRange(0, 16).Draw(t, "vip"))})}
	}
	return c
}

func anyPublish(t *rapid.T) (out []overlay.Publish) {
	for range rapid.IntRange(0, 2).Draw(t, "published") {
		out = append(out, overlay.Publish{
			Port: rapid.SampledFrom([]uint16{0, 80, 81}).Draw(t, "port"), Target: 8080, Proto: "tcp",
			Mode: rapid.SampledFrom([]overlay.PublishMode{overlay.PublishIngress, overlay.PublishLocal}).Draw(t, "mode"),
		})
	}
	return out
}

// sometime is a manager's clock, which may go back.
func sometime(t *rapid.T) int64 { return now + int64(rapid.IntRange(0, 3).Draw(t, "time"))*restTime/2 }

// anyRelease gives back runs that the node may have, or had, or never had.
func anyRelease(t *rapid.T, node, network string) overlay.Signed {
	r := overlay.Release{V: 1, Place: initCmd().Place, Network: netID(network), Node: nid(node)}
	for range rapid.IntRange(0, 3).Draw(t, "runs") {
		first := rapid.IntRange(0, 15).Draw(t, "first")
		last := rapid.IntRange(first, 15).Draw(t, "last")
		r.Grants = append(r.Grants, overlay.Grant{
			First: netip.AddrFrom4([4]byte{10, 1, 0, byte(first)}), Last: netip.AddrFrom4([4]byte{10, 1, 0, byte(last)}),
			Index: uint64(rapid.IntRange(5, 90).Draw(t, "index")),
		})
	}
	s, err := overlay.Sign(overlay.DomainRelease, key32(node), r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestAnyHistory applies random commands and checks, after each, what must hold ever; at
// the end, that the same log gives the same bytes, from the start and from a snapshot in the
// middle, and that every node's differences add up to what it may see.
func TestAnyHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		begin := initCmd()
		begin.Level = rapid.IntRange(1, Level).Draw(t, "begins at level")
		w.do(begin, CreateToken{token("t1", overlay.Worker)}, join("n1", "t1"), join("n2", "t1"), network4("a", "10.1.0.0/28"))
		follow := map[string]seen{}
		middle, restored := 0, New()
		n := rapid.IntRange(20, 80).Draw(t, "commands")
		for i := range n {
			req := ""
			if rapid.IntRange(0, 9).Draw(t, "with ID") == 0 {
				req = fmt.Sprint("r", rapid.IntRange(0, 30).Draw(t, "req"))
			}
			before, c := w.s.View(), anyCommand(t)
			if _, err := Encode(before.Level, req, c); err != nil {
				continue // not at this level
			}
			_, err := w.tryReq(req, c)
			if rev := w.s.View().Revision; err != nil && rev != before.Revision {
				t.Fatalf("a refused command made revision %d", rev)
			}
			if level := w.s.Level(); level < before.Level {
				t.Fatalf("%s made level %d of %d", c.kind(), level, before.Level)
			}
			soundness(t, w)
			serviceSoundness(t, w.s)
			for _, name := range someNodes {
				if rapid.IntRange(0, 3).Draw(t, "asks") == 0 {
					follow[name] = catchUp(t, w.s, name, follow[name])
				}
			}
			if i == n/2 {
				middle = len(w.log)
				if err := restored.Restore(bytes.NewReader(snapshot(t, w.s))); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, name := range someNodes {
			catchUp(t, w.s, name, follow[name])
		}
		again := New()
		for i, e := range w.log {
			a, errA := again.Apply(uint64(i+1), e)
			if i < middle {
				continue
			}
			b, errB := restored.Apply(uint64(i+1), e)
			if asJSON(t, a) != asJSON(t, b) || fmt.Sprint(errA) != fmt.Sprint(errB) {
				t.Fatalf("after a restore, entry %d gives %v %v, not %v %v", i+1, b, errB, a, errA)
			}
		}
		want := snapshot(t, w.s)
		if got := snapshot(t, again); !bytes.Equal(got, want) {
			t.Fatalf("the same log gave %s, then %s", want, got)
		}
		if got := snapshot(t, restored); !bytes.Equal(got, want) {
			t.Fatalf("without a restore %s, with one %s", want, got)
		}
	})
}

// seen is what a node was given, and what it looked like then.
type seen struct {
	f    *overlay.Facts
	text string
}

// catchUp brings what a node holds up to date as its stream would, and compares it.
func catchUp(t *rapid.T, s *State, name string, had seen) seen {
	old, whole := had.f, s.FactsFor(nid(name))
	now := seen{whole, asJSON(t, whole)}
	if old == nil {
		return now
	}
	if asJSON(t, old) != had.text {
		t.Fatalf("the facts of revision %d changed after they were given", old.Revision)
	}
	d, ok := s.Since(old.Revision, nid(name))
	if !ok {
		d.Full = whole
	}
	row, member := whole.Nodes[nid(name)]
	for _, l := range d.Leases {
		if _, in := whole.Leases[l.Network][nid(name)]; member && row.Role == overlay.Worker && !in {
			t.Fatalf("%s is told of a lease of a network that it is not in", name)
		}
	}
	if got, want := asJSON(t, d.Apply(old)), now.text; got != want {
		t.Fatalf("%s from revision %d by %s gets\n%s\nbut it may see\n%s", name, old.Revision, asJSON(t, d), got, want)
	}
	return now
}

// soundness checks the rows against each other: no address is in two leases, or in one and
// fenced, resting or a service's, and no name, number, VNI or port of all nodes is given twice.
func soundness(t *rapid.T, w *world) {
	v := w.s.View()
	tr := trust(w)
	vnis, names, numbers := map[uint32]bool{}, map[string]bool{}, map[uint32]bool{}
	for _, n := range v.Nodes {
		if names["node "+n.Name] || numbers[n.Number] {
			t.Fatalf("node %s: name or number twice", n.Name)
		}
		names["node "+n.Name], numbers[n.Number] = true, true
		if _, err := tr.CheckIdentity(n.Identity); err != nil {
			t.Fatal(err)
		}
	}
	if len(v.Managers()) == 0 {
		t.Fatal("no manager is left")
	}
	for _, n := range v.Networks() {
		if vnis[n.VNI] || names["network "+n.Name] || n.VNI < overlay.MinVNI || n.VNI > overlay.MaxVNI {
			t.Fatalf("network %s: name or VNI %d twice", n.Name, n.VNI)
		}
		vnis[n.VNI], names["network "+n.Name] = true, true
		if err := n.Validate(); err != nil {
			t.Fatal(err)
		}
		var taken ipam.Set
		for _, s := range n.Subnets {
			for _, r := range ipam.Reserved(s).Ranges() {
				taken.Add(r)
			}
		}
		var all []overlay.Grant
		for node, s := range v.Leases(n.ID) {
			l, err := tr.CheckLease(s)
			if err != nil || l.Node != node || l.Network != n.ID {
				t.Fatalf("lease of %s: %+v %v", node, l, err)
			}
			all = append(all, l.Grants...)
		}
		for _, grants := range v.networks[n.ID].fenced {
			all = append(all, grants...)
		}
		for _, r := range v.networks[n.ID].resting {
			all = append(all, overlay.Grant{First: r.First, Last: r.Last})
		}
		for _, s := range v.Services() {
			for _, a := range s.VIPs {
				if s.Network == n.ID {
					all = append(all, overlay.Grant{First: a, Last: a})
				}
			}
		}
		for _, g := range all {
			r := ipam.Range{First: g.First, Last: g.Last}
			if s, in := n.SubnetOf(g.First); !in || !s.Prefix.Contains(g.Last) || taken.Free(r) != r.Len() {
				t.Fatalf("network %s: %s-%s is granted twice, reserved or outside", n.Name, g.First, g.Last)
			}
			taken.Add(r)
		}
		if p := w.s.t.pools[n.ID]; fmt.Sprint(p.used.Ranges()) != fmt.Sprint(taken.Ranges()) {
			t.Fatalf("network %s: %v is marked used, %v is", n.Name, p.used.Ranges(), taken.Ranges())
		}
	}
}

// serviceSoundness checks the services' rows against each other, and the look-ups against them.
func serviceSoundness(t *rapid.T, s *State) {
	names, ingress := map[serviceName]bool{}, map[overlay.NetworkID]int{}
	ports := map[overlay.ProtoPort]map[overlay.ServiceID]overlay.PublishMode{}
	for _, row := range s.View().Services() {
		if err := row.Validate(); err != nil || names[serviceName{row.Network, row.Name}] {
			t.Fatalf("service %s is there twice, or not valid: %v", row.Name, err)
		}
		names[serviceName{row.Network, row.Name}] = true
		if row.Ingress() {
			ingress[row.Network]++
		}
		for _, p := range row.Publish {
			if p.Port == 0 {
				t.Fatalf("service %s leaves a port open", row.Name)
			}
			if ports[at(p)] == nil {
				ports[at(p)] = map[overlay.ServiceID]overlay.PublishMode{}
			}
			ports[at(p)][row.ID] = p.Mode
		}
	}
	for p, by := range ports {
		for _, mode := range by {
			if mode == overlay.PublishIngress && len(by) > 1 {
				t.Fatalf("port %v is that of all nodes, and of %v", p, by)
			}
		}
	}
	if !reflect.DeepEqual(ports, s.t.ports) || !reflect.DeepEqual(ingress, s.t.ingress) || len(names) != len(s.t.servName) {
		t.Fatalf("the look-ups are %v, %v, %v; the rows say %v, %v, %v", s.t.ports, s.t.ingress, s.t.servName, ports, ingress, names)
	}
}
