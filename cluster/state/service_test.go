package state

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/overlay"
)

func asking(c CreateService, vips ...string) CreateService {
	for _, a := range vips {
		c.Spec.VIPs = append(c.Spec.VIPs, addr(a))
	}
	return c
}

func TestServiceAddresses(t *testing.T) {
	w := cluster3(t)
	both := network46("blue")
	both.Spec.Subnets = []overlay.Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Range: netip.MustParsePrefix("10.1.0.0/25")}, {Prefix: netip.MustParsePrefix("fd00::/64")}}
	w.do(both)
	named := changed(service("dns"), func(c *CreateService) { c.Spec.Mode = overlay.ModeDNSRR })
	for _, tc := range []struct {
		what string
		c    CreateService
		want string
	}{
		{"the top of what addresses come from", service("a"), "[10.1.0.127 fd00::ffff:ffff:ffff:ffff]"},
		{"the next", service("b"), "[10.1.0.126 fd00::ffff:ffff:ffff:fffe]"},
		{"as asked", asking(service("c"), "fd00::5", "10.1.0.200"), "[10.1.0.200 fd00::5]"},
		{"one family asked", asking(service("d"), "10.1.0.125"), "[10.1.0.125 fd00::ffff:ffff:ffff:fffd]"},
		{"none for a name alone", named, "[]"},
	} {
		s := w.do(tc.c).(ServiceResult).Service
		if got := fmt.Sprint(s.VIPs); got != tc.want || s.Created != w.index || s.Updated != w.index || s.ID != tc.c.ID {
			t.Errorf("%s: %s, %+v", tc.what, got, s)
		}
	}
	_, err := w.try(Grant{Network: netID("blue"), Node: nid("w1"), Addrs: []netip.Addr{addr("10.1.0.126")}})
	wantErr(t, err, overlay.Exists, "10.1.0.126 of network blue is that of service b")
	w.do(Grant{Network: netID("blue"), Node: nid("w1"), Want: 1000})
	if got := grantsText(w.leaseOf("blue", "w1")); !strings.HasPrefix(got, "10.1.0.2-10.1.0.124 fd00::2-fd00::4 fd00::6-fd00::") {
		t.Errorf("a lease of all there is has %s", got)
	}
	_, err = w.try(service("e"))
	wantErr(t, err, overlay.Exhausted, "no IPv4 address left")
	w.do(RemoveService{servID("b")}, Grant{Network: netID("blue"), Node: nid("w2"), Want: 1})
	if got := grantsText(w.leaseOf("blue", "w2")); !strings.HasPrefix(got, "10.1.0.126-10.1.0.126 ") {
		t.Errorf("after its removal a service's address is not free: %s", got)
	}
}

func TestServiceAddressesThatRest(t *testing.T) {
	w := cluster3(t)
	w.do(network4("blue", "10.1.0.0/29"), Grant{Network: netID("blue"), Node: nid("w1"), Want: 5, Now: now}) // .2 to .6
	grant := w.leaseOf("blue", "w1").Grants[0]
	release := func(first, last string) Release {
		return Release{giveBack("w1", overlay.Grant{First: addr(first), Last: addr(last), Index: grant.Index}), now}
	}
	w.do(release("10.1.0.4", "10.1.0.5"))
	_, err := w.try(asking(service("a"), "10.1.0.5"))
	wantErr(t, err, overlay.Exists, "10.1.0.5 of network blue was an endpoint's a moment ago, and others may still take it for that; take another, or try again in 60 s")
	_, err = w.try(asking(service("a"), "10.1.0.2"))
	wantErr(t, err, overlay.Exists, "leased to node w1")
	if s := w.do(service("a")).(ServiceResult).Service; s.VIPs[0] != addr("10.1.0.5") { // nothing else is left
		t.Errorf("it got %v", s.VIPs)
	}
	later := asking(service("b"), "10.1.0.4")
	later.Now = now + 60
	w.do(later)
	_, err = w.try(Grant{Network: netID("blue"), Node: nid("w2"), Now: now + 500}) // what rested is not free for that
	wantErr(t, err, overlay.Exhausted, "no IPv4 address left")
}

func TestPublishedPorts(t *testing.T) {
	w := cluster3(t)
	w.do(network4("blue"), network4("red"))
	ports := func(c Command) string {
		t.Helper()
		var out []string
		for _, p := range w.do(c).(ServiceResult).Service.Publish {
			out = append(out, fmt.Sprintf("%d/%s/%s", p.Port, p.Proto, p.Mode))
		}
		return strings.Join(out, " ")
	}
	want := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	local := func(name string, p ...uint16) CreateService {
		c := published(name, p...)
		for i := range c.Spec.Publish {
			c.Spec.Publish[i].Mode = overlay.PublishLocal
		}
		return c
	}
	want("chosen, around what it names", ports(published("a", 0, 30000, 0)), "30001/tcp/ingress 30000/tcp/ingress 30002/tcp/ingress")
	want("chosen, around others", ports(published("b", 0)), "30003/tcp/ingress")
	want("named", ports(published("c", 443)), "443/tcp/ingress")
	want("another protocol", ports(changed(published("d", 443), func(c *CreateService) { c.Spec.Publish[0].Proto = "udp" })), "443/udp/ingress")
	want("local", ports(local("e", 80, 0)), "80/tcp/local 30004/tcp/local")
	want("local beside local", ports(local("f", 80)), "80/tcp/local")
	for what, c := range map[string]CreateService{
		"port 443/tcp is published by service blue/c already; take another, or leave it open for a free one": changed(published("x", 443), func(c *CreateService) { c.Network = netID("red") }),
		"port 443/tcp is published by service blue/c":                                                        local("x", 443),
		"port 80/tcp is published by service blue/e":                                                         published("x", 80),
		"port 5377/tcp is where node m1 answers other nodes":                                                 published("x", 5377),
		"port 5378/tcp is where node":                                                                        local("x", 5378),
		"port 4789/udp is where nodes receive VXLAN":                                                         changed(published("x", 4789), func(c *CreateService) { c.Spec.Publish[0].Proto = "udp" }),
	} {
		_, err := w.try(c)
		wantErr(t, err, overlay.Exists, what)
	}
	want("its own ports stay", ports(UpdateService{servID("a"), overlay.ServiceUpdate{DropPublish: []overlay.ProtoPort{{Proto: "tcp", Port: 30000}}}}), "30001/tcp/ingress 30002/tcp/ingress")
	want("the lowest is chosen again", ports(published("g", 0)), "30000/tcp/ingress")
	_, err := w.try(UpdateService{servID("g"), overlay.ServiceUpdate{Publish: []overlay.Publish{{Port: 30002, Target: 1, Proto: "tcp", Mode: overlay.PublishIngress}}}})
	wantErr(t, err, overlay.Exists, "published by service blue/a")
	w.do(RemoveService{servID("c")})
	want("a removed one's", ports(published("h", 443)), "443/tcp/ingress")
}

func TestNoPortIsLeft(t *testing.T) {
	w := cluster3(t)
	w.do(network4("blue", "10.0.0.0/16"))
	n := overlay.LastDynamicPort - overlay.FirstDynamicPort + 1
	for i := 0; n > 0; i++ {
		some := min(n, 256)
		w.do(published(fmt.Sprint("s", i), make([]uint16, some)...))
		n -= some
	}
	_, err := w.try(published("x", 0))
	wantErr(t, err, overlay.Exhausted, "all tcp ports from 30000 to 32767 are published; name another one")
}

func TestServicesRefused(t *testing.T) {
	w := cluster3(t)
	w.do(network4("blue", "10.1.0.0/29"), network4("red"), Grant{Network: netID("blue"), Node: nid("w2")}, service("web"))
	w.do(changed(service("other"), func(c *CreateService) { c.Network = netID("red"); c.Spec.Name = "web" })) // one name, two networks
	for _, tc := range []struct {
		name string
		cmd  Command
		kind overlay.Kind
		part string
	}{
		{"ID malformed", changed(service("x"), func(c *CreateService) { c.ID = "1" }), overlay.Invalid, "no service ID"},
		{"ID taken", changed(service("x"), func(c *CreateService) { c.ID = servID("web") }), overlay.Exists, "draw another"},
		{"no network", changed(service("x"), func(c *CreateService) { c.Network = netID("x") }), overlay.NotFound, "no network"},
		{"name taken", changed(service("x"), func(c *CreateService) { c.Spec.Name = "web" }), overlay.Exists, "`heddle service rm blue/web`"},
		{"malformed", changed(service("x"), func(c *CreateService) { c.Spec.Mode = "" }), overlay.Invalid, "endpoint mode"},
		{"address outside", asking(service("x"), "10.2.0.1"), overlay.Invalid, "in no subnet of network blue"},
		{"a family that the network has not", asking(service("x"), "fd00::1"), overlay.Invalid, "in no subnet"},
		{"the gateway", asking(service("x"), "10.1.0.1"), overlay.Invalid, "gateway"},
		{"broadcast", asking(service("x"), "10.1.0.7"), overlay.Invalid, "own"},
		{"another service's", asking(service("x"), "10.1.0.6"), overlay.Exists, "that of service web"},
		{"leased", asking(service("x"), "10.1.0.2"), overlay.Exists, "leased to node w2; take another, or `heddle node rm w2`"},
		{"update nobody", UpdateService{servID("x"), overlay.ServiceUpdate{DropLabels: []string{"a"}}}, overlay.NotFound, "no service"},
		{"update nothing", UpdateService{ID: servID("web")}, overlay.Invalid, "changes nothing"},
		{"update to nonsense", UpdateService{servID("web"), overlay.ServiceUpdate{DropPorts: []overlay.ProtoPort{{Proto: "tcp", Port: 1}}}}, overlay.NotFound, "no port 1/tcp"},
		{"remove nobody", RemoveService{servID("x")}, overlay.NotFound, "no service"},
		{"remove its network", RemoveNetwork{netID("blue")}, overlay.InUse, "network blue has the services web; remove them first with `heddle service rm`"},
	} {
		before := asJSON(t, w.s.FactsFor(nid("m1")))
		_, err := w.try(tc.cmd)
		if wantErr(t, err, tc.kind, tc.part); asJSON(t, w.s.FactsFor(nid("m1"))) != before {
			t.Errorf("%s: the refused command changed something", tc.name)
		}
	}
	red := *w.s.t.networks.m[netID("red")]
	red.def.Driver = "host"
	w.s.t.networks.edit()[netID("red")] = &red
	_, err := w.try(changed(service("x"), func(c *CreateService) { c.Network = netID("red") }))
	wantErr(t, err, overlay.Invalid, "services need an overlay network")
}

// TestWhoSeesServices pins what a delta has for a participant, for a bystander and for who comes
// and goes, and that it adds up to what they may see.
func TestWhoSeesServices(t *testing.T) {
	w := cluster3(t)
	w.do(network4("blue"), Grant{Network: netID("blue"), Node: nid("w1")})
	for i := range 20 {
		w.do(service(fmt.Sprint("s", i)))
	}
	have := map[string]*overlay.Facts{}
	for _, node := range []string{"m1", "w1", "w2"} {
		have[node] = w.s.FactsFor(nid(node))
	}
	// step does something, and says what each of m1, w1 and w2 is told of it.
	step := func(what string, want string, cs ...Command) {
		t.Helper()
		w.do(cs...)
		var told []string
		for _, node := range []string{"m1", "w1", "w2"} {
			d, ok := w.s.Since(have[node].Revision, nid(node))
			if !ok {
				t.Fatal(what)
			}
			told = append(told, fmt.Sprintf("%d-%d,%d-%d", len(d.Services), len(d.GoneServs), len(d.Networks), len(d.GoneNets)))
			have[node] = d.Apply(have[node])
			if got, want := asJSON(t, have[node]), asJSON(t, w.s.FactsFor(nid(node))); got != want {
				t.Errorf("%s: %s has\n%s\nbut may see\n%s", what, node, got, want)
			}
		}
		if got := strings.Join(told, " "); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	rm := func(name string) Command { return RemoveService{servID(name)} }
	publishing := func(name string, p uint16) Command {
		return UpdateService{servID(name), overlay.ServiceUpdate{Publish: published("x", p).Spec.Publish}}
	}
	hiding := func(name string, p uint16) Command {
		return UpdateService{servID(name), overlay.ServiceUpdate{DropPublish: []overlay.ProtoPort{{Proto: "tcp", Port: p}}}}
	}
	step("one is made", "1-0,0-0 1-0,0-0 0-0,0-0", service("a"))
	step("one is removed", "0-1,0-0 0-1,0-0 0-0,0-0", rm("s0"))
	step("one comes to all nodes, with its network", "1-0,0-0 1-0,0-0 1-0,1-0", published("b", 80))
	step("a second one", "1-0,0-0 1-0,0-0 1-0,0-0", publishing("s1", 81))
	step("it changes", "1-0,0-0 1-0,0-0 1-0,0-0", publishing("s1", 82))
	step("the network changes", "0-0,1-0 0-0,1-0 0-0,1-0", UpdateNetwork{ID: netID("blue"), Labels: map[string]string{"a": "b"}})
	step("it is with its network alone", "1-0,0-0 1-0,0-0 0-1,0-0", hiding("s1", 81), hiding("s1", 82))
	step("the last of all nodes is removed", "0-1,0-0 0-1,0-0 0-1,0-1", rm("b"))
	step("made and removed", "0-1,0-0 0-1,0-0 0-0,0-0", service("c"), rm("c"))
	step("a node comes in", "0-0,0-0 0-0,0-0 20-0,1-0", Grant{Network: netID("blue"), Node: nid("w2")})
	step("and knows the next", "1-0,0-0 1-0,0-0 1-0,0-0", published("d", 80))
	for _, s := range w.s.View().Services() {
		w.do(RemoveService{s.ID})
	}
	step("all goes", "0-21,0-1 0-21,0-1 0-21,0-1", RemoveNetwork{netID("blue")})
	step("and comes again to who was in it", "1-0,1-0 1-0,1-0 1-0,1-0", network4("blue"), published("e", 80))
}

func TestServicesInASnapshot(t *testing.T) {
	w := cluster3(t)
	w.do(network4("blue", "10.1.0.0/29"), network4("red"), Grant{Network: netID("blue"), Node: nid("w1")}, asking(published("web", 80, 0), "10.1.0.6"))
	good := string(snapshot(t, w.s))
	restored := New()
	if err := restored.Restore(strings.NewReader(good)); err != nil || string(snapshot(t, restored)) != good {
		t.Fatalf("%v: %s", err, snapshot(t, restored))
	}
	_, err := restored.Apply(w.index+1, mustEncode(t, asking(published("x", 443), "10.1.0.6")))
	wantErr(t, err, overlay.Exists, "service web")
	_, err = restored.Apply(w.index+2, mustEncode(t, published("x", 30000)))
	wantErr(t, err, overlay.Exists, "blue/web")
	for _, tc := range []struct{ name, old, new, part string }{
		{"of no network", `"network":"` + string(netID("blue")) + `","name":"web"`, `"network":"` + string(netID("x")) + `","name":"web"`, "in no network"},
		{"under another ID", `"services":{"`, `"services":{"x`, "another ID"},
		{"nothing", `"services":{`, `"services":{"x":null,`, "is nothing"},
		{"malformed", `"mode":"vip"`, `"mode":"x"`, "endpoint mode"},
		{"a leased address", `"10.1.0.6"`, `"10.1.0.2"`, "another's"},
		{"an address outside", `"10.1.0.6"`, `"10.9.0.6"`, "no address of its network"},
		{"an open port", `"port":30000,`, ``, "is open"},
	} {
		if !strings.Contains(good, tc.old) {
			t.Fatalf("%s: the snapshot is %s", tc.name, good)
		}
		err := New().Restore(strings.NewReader(strings.Replace(good, tc.old, tc.new, 1)))
		if !Fatal(err) || !strings.Contains(err.Error(), tc.part) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func mustEncode(t *testing.T, c Command) []byte {
	t.Helper()
	e, err := Encode(Level, "", c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestManyServicesInOneNetwork looks at what one more costs everybody.
func TestManyServicesInOneNetwork(t *testing.T) {
	w := cluster3(t)
	w.do(network4("blue", "10.1.0.0/16"), Grant{Network: netID("blue"), Node: nid("w1")})
	for i := range 1000 {
		w.do(published(fmt.Sprint("s", i), 0))
	}
	if n := len(w.s.t.pools[netID("blue")].used.Ranges()); n > 4 {
		t.Errorf("the addresses of many services lie in %d runs", n)
	}
	old := w.s.FactsFor(nid("w1"))
	w.do(RemoveService{servID("s7")}, service("more"))
	d, ok := w.s.Since(old.Revision, nid("w1"))
	if !ok || len(d.Services) != 1 || len(d.GoneServs) != 1 || d.Full != nil {
		t.Errorf("one more and one less of many make %+v", d)
	}
	if !slices.Equal(d.Services[0].VIPs[:1], []netip.Addr{addr("10.1.255.247")}) || bytes.Contains(snapshot(t, w.s), []byte(`"name":"s7"`)) {
		t.Errorf("it has %v", d.Services[0].VIPs)
	}
}
