package kernel

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/datapathtest"
)

// TestAnAddressChangesHands: a workload that remembers who had an address learns at once who
// has it now, wherever the old and the new one are, and also when it stood empty meanwhile.
func TestAnAddressChangesHands(t *testing.T) {
	n := newNode(t)
	ns := n.Workload(t, "w1")
	local := datapathtest.Endpoint{N: 1, NS: ns}
	remote := datapathtest.Endpoint{N: 2, VTEP: n.o.Members[0]}
	n.o.Endpoints = []datapathtest.Endpoint{local, remote}
	n.apply(t, local.Owner(), remote.Owner())
	ips := []netip.Addr{remote.IPv4(), remote.IPv6()}
	remembers := func(mac datapath.MAC) bool {
		for _, a := range ips {
			if out := ip(t, n.path(ns), "neigh", "show", a.String(), "dev", "eth0"); !strings.Contains(out, mac.String()) {
				return false
			}
		}
		return true
	}
	for _, a := range ips {
		ip(t, n.path(ns), "neigh", "replace", a.String(), "dev", "eth0", "lladdr", remote.MAC().String(), "nud", "reachable")
	}
	gone := n.o
	gone.Endpoints = []datapathtest.Endpoint{local}
	last := remote.MAC()
	for i, step := range []struct {
		what string
		over datapathtest.Overlay // that stands in between
	}{{"replaced", n.o}, {"gone, then there again", gone}} {
		c := step.over.Config()
		if err := n.loop.Wait(t.Context(), n.loop.Set(c), local.Owner()); err != nil {
			t.Fatal(err)
		}
		mac := datapath.MAC{2, 9, 9, 9, 9, byte(i)}
		c = n.o.Config()
		for j := range c.Neighbors {
			if slices.Contains(ips, c.Neighbors[j].IP) {
				c.Neighbors[j].MAC = mac
			}
		}
		for j := range c.FDB {
			if c.FDB[j].MAC == remote.MAC() {
				c.FDB[j].MAC = mac
			}
		}
		if !remembers(last) {
			t.Fatalf("%s: the workload had forgotten it anyway", step.what)
		}
		if err := n.loop.Wait(t.Context(), n.loop.Set(c), local.Owner()); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(2 * time.Second); !remembers(mac); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: the workload has\n%s", step.what, ip(t, n.path(ns), "neigh"))
			}
		}
		last = mac
	}
}
