package kernel

import (
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/datapathtest"
)

// wrong is what another reading of the kernel finds to do.
func (n *node) wrong(t *testing.T, c *datapath.Config) []datapath.Op {
	t.Helper()
	k := New(Config{Host: hostPath(n.host), Netns: n.dir})
	defer k.Close()
	s, err := k.Read(t.Context(), c)
	must(t, err)
	return datapath.Diff(s, c)
}

// What is changed by hand is repaired within a second of it, whatever it is. What heddle has done
// itself is no reason to read the kernel.
func TestRepairedAtOnce(t *testing.T) {
	n := newNode(t)
	n.o.Endpoints = []datapathtest.Endpoint{{N: 1, NS: n.Workload(t, "w1")}, {N: 2, Make: "made"}}
	for i := range 200 {
		n.o.Endpoints = append(n.o.Endpoints, datapathtest.Endpoint{N: 10 + i, VTEP: vtep(1)})
	}
	port := datapathtest.Published{Proto: "tcp", Port: 8080, Target: 80, Ns: []int{1, 2}}
	c := n.o.Publish(port)
	must(t, n.loop.Wait(t.Context(), n.loop.Set(c), "n1", "endpoint1", "endpoint2"))
	quiet := func(what string) {
		t.Helper()
		before := n.loop.Status().Read
		time.Sleep(4 * 50 * time.Millisecond) // the loop waits so long for news to settle
		if n.loop.Status().Read != before {
			t.Errorf("%s: the kernel was read because of what heddle has done itself", what)
		}
	}
	quiet("after the first reading")
	n.o.Endpoints = append(n.o.Endpoints, datapathtest.Endpoint{N: 300, VTEP: vtep(1)}, datapathtest.Endpoint{N: 301, Make: "late"})
	c = n.o.Publish(port)
	must(t, n.loop.Wait(t.Context(), n.loop.Set(c), "n1", "endpoint301"))
	quiet("after more endpoints")

	ns, host, made := n.dir.Path("heddle-n1"), hostPath(n.host), n.dir.Path("made")
	mac := datapathtest.Endpoint{N: 10}.MAC().String()
	table := &nftables.Table{Name: "heddle", Family: nftables.TableFamilyINet}
	do := func(path string, args ...string) func() { return func() { ip(t, path, args...) } }
	var took []time.Duration
	for _, d := range []struct {
		name   string
		damage func()
	}{
		{"fdb self", func() { run(t, ns, "bridge", "fdb", "del", mac, "dev", "vx0", "self") }},
		{"fdb master", func() { run(t, ns, "bridge", "fdb", "del", mac, "dev", "vx0", "master") }},
		{"fdb to another host", func() {
			run(t, ns, "bridge", "fdb", "replace", mac, "dev", "vx0", "dst", "10.99.0.9", "self", "permanent")
		}},
		{"a strange fdb entry", func() {
			run(t, ns, "bridge", "fdb", "add", "02:00:00:00:00:99", "dev", "vx0", "dst", "10.99.0.9", "self", "permanent")
		}},
		{"neighbour", do(ns, "neigh", "del", "10.64.0.10", "dev", "br0")},
		{"neighbour, IPv6", do(ns, "neigh", "del", datapathtest.Endpoint{N: 10}.IPv6().String(), "dev", "br0")},
		{"neighbour's MAC", do(ns, "neigh", "replace", "10.64.0.10", "lladdr", "02:00:00:00:00:98", "dev", "br0", "nud", "permanent")},
		{"neighbour not permanent", do(ns, "neigh", "replace", "10.64.0.10", "lladdr", mac, "dev", "br0", "nud", "reachable")},
		{"VXLAN device", do(ns, "link", "del", "vx0")},
		{"bridge", do(ns, "link", "del", "br0")},
		{"endpoint's port", do(ns, "link", "del", "e1")},
		{"device down", do(ns, "link", "set", "vx0", "down")},
		{"device's MTU", do(ns, "link", "set", "vx0", "mtu", "1300")},
		{"device out of its bridge", do(ns, "link", "set", "vx0", "nomaster")},
		{"port flags", func() { run(t, ns, "bridge", "link", "set", "dev", "vx0", "flood", "on", "neigh_suppress", "off") }},
		{"learning", func() { run(t, ns, "bridge", "link", "set", "dev", "vx0", "learning", "on") }},
		{"a strange link", do(ns, "link", "add", "odd", "type", "bridge")},
		{"gateway", do(ns, "addr", "del", "10.64.255.254/16", "dev", "br0")},
		{"route", do(ns, "route", "flush", "default")},
		{"address of a workload in a namespace of heddle's", do(made, "addr", "flush", "dev", "eth0")},
		{"its interface down", do(made, "link", "set", "eth0", "down")},
		{"its MTU", do(made, "link", "set", "eth0", "mtu", "1300")},
		{"its name", func() { ip(t, made, "link", "set", "eth0", "down"); ip(t, made, "link", "set", "eth0", "name", "eth7") }},
		{"loopback down", do(ns, "link", "set", "lo", "down")},
		{"uplink's far end", do(host, "link", "set", "hd-n1", "down")},
		{"the allow-set's table", func() { nft(t, host, func(c *nftables.Conn) { c.DelTable(table) }) }},
		{"its rules", func() { run(t, host, "nft", "flush", "chain", "inet", "heddle", "input") }},
		{"a member of the allow-set", func() { run(t, host, "nft", "flush", "set", "inet", "heddle", "members4") }},
		{"a lock's rules", func() { run(t, ns, "nft", "flush", "chain", "netdev", "heddle-e1", "ingress") }},
		{"a rule before a lock's", func() { run(t, ns, "nft", "insert", "rule", "netdev", "heddle-e1", "ingress", "accept") }},
		{"a lock", func() { run(t, ns, "nft", "delete", "table", "netdev", "heddle-e1") }},
		{"a lock too many", func() { run(t, ns, "nft", "add", "table", "netdev", "heddle-e99") }},
		{"a port of the host", func() { run(t, host, "nft", "flush", "chain", "inet", "heddle-publish", "ports") }},
		{"backends of a port", func() { run(t, ns, "nft", "delete", "table", "inet", "heddle-publish") }},
		{"all rules of the host", func() { run(t, host, "nft", "flush", "ruleset") }},
		{"all rules of the network", func() { run(t, ns, "nft", "flush", "ruleset") }},
		{"a namespace's name", func() { must(t, n.dir.Remove("made")) }},
		{"the network's namespace", func() { must(t, n.dir.Remove("heddle-n1")) }},
	} {
		t.Run(d.name, func(t *testing.T) {
			d.damage()
			begin := time.Now()
			if len(n.wrong(t, &c)) == 0 && d.name != "its name" {
				t.Log("repaired before anybody could look")
			}
			for {
				ops := n.wrong(t, &c)
				if len(ops) == 0 {
					break
				}
				if time.Since(begin) > 5*time.Second {
					t.Fatalf("%d operations are still to do, the first: %v", len(ops), ops[0])
				}
			}
			took = append(took, time.Since(begin))
		})
	}
	slices.Sort(took)
	t.Logf("repaired within %s at the median, %s at most", took[len(took)/2], took[len(took)-1])
	if most := took[len(took)-1]; most > time.Second {
		t.Errorf("the slowest repair took %s", most)
	}
}
