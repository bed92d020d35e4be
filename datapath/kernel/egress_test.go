package kernel

import (
	"bytes"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/datapath/datapathtest"
)

// TestRouterAdvertisements: a host that forwards for its workloads goes on taking router
// advertisements on every link that took them, also on links that come later or get their first
// address by one. When the last workload is gone all is as it was.
func TestRouterAdvertisements(t *testing.T) {
	h := newHost(t)
	path := hostPath(h)
	set := func(s sysctl) {
		t.Helper()
		inside(t, path, func() error { return os.WriteFile(s.file(), []byte(s.value), 0) })
	}
	want := func(when string, values map[string]string) {
		t.Helper()
		for name, want := range values {
			s := acceptRA(name, want)
			inside(t, path, func() error {
				b, err := os.ReadFile(s.file())
				if got := strings.TrimSpace(string(b)); got != want {
					t.Errorf("%s: accept_ra of %s is %s, want %s", when, name, got, want)
				}
				return err
			})
		}
	}
	forwards := func(want string) {
		t.Helper()
		inside(t, path, func() error {
			if !(sysctl{"net/ipv6/conf/all/forwarding", want}).holds() {
				t.Errorf("forwarding is not %s", want)
			}
			return nil
		})
	}
	link := func(name string) { ip(t, path, "link", "add", name, "type", "bridge") }
	for name, ra := range map[string]string{"global": "1", "bare": "1", "always": "2", "never": "0"} {
		link(name)
		set(acceptRA(name, ra))
	}
	ip(t, path, "link", "set", "global", "up")
	ip(t, path, "addr", "add", "2001:db8::1/64", "dev", "global", "nodad")
	e := datapathtest.Overlay{ID: "n1"}.Open().Egress

	must(t, h.setEgress(e))
	link("later")
	forwarding := map[string]string{"global": "2", "bare": "2", "always": "2", "never": "0", "default": "2", "later": "2"}
	want("while it forwards", forwarding)
	ip(t, path, "addr", "del", "2001:db8::1/64", "dev", "global")
	set(acceptRA("bare", "1"))
	if got, err := h.readEgress(e); err != nil || got == e {
		t.Errorf("accept_ra of a link was set back, and it stands: %v", err)
	}
	must(t, h.setEgress(e))
	want("after a repair, with no address left", forwarding)
	if got, err := h.readEgress(e); err != nil || got != e {
		t.Errorf("it does not stand: %+v %v", got, err)
	}

	must(t, h.delEgress())
	want("after the last workload", map[string]string{"global": "1", "bare": "1", "always": "2", "never": "0", "default": "1", "later": "1"})
	forwards("0")

	// Who forwards already has chosen what the host does with advertisements.
	set(sysctl{"net/ipv6/conf/all/forwarding", "1"})
	must(t, h.setEgress(e))
	want("where others forward", map[string]string{"global": "1", "bare": "1", "default": "1"})
	must(t, h.delEgress())
	forwards("1")
}

// What a workload sends to its own network by way of the gateway never takes the uplink, also while
// the bridge is without its addresses.
func TestNothingForTheNetworkLeavesIt(t *testing.T) {
	n := newNode(t)
	e := datapathtest.Endpoint{N: 1, NS: n.Workload(t, "w")}
	n.o.Endpoints = []datapathtest.Endpoint{e}
	must(t, n.loop.Wait(t.Context(), n.loop.Set(n.o.Open()), "n1", e.Owner()))
	n.stop() // nobody repairs
	ns, uplink := n.dir.Path("heddle-n1"), capture(t, hostPath(n.host), "hd-n1")
	for _, way := range []struct{ from, to, subnet, gateway string }{
		{e.IPv4().String(), "10.64.0.77", "10.64.0.0/16", "10.64.255.254"}, {e.IPv6().String(), "fd00:64::77", "fd00:64::/64", "fd00:64::ffff"},
	} {
		ip(t, e.NS.Path, "neigh", "replace", way.gateway, "lladdr", n.o.Config().Links[0].MAC.String(), "dev", "eth0", "nud", "permanent")
		ip(t, e.NS.Path, "route", "add", way.to, "via", way.gateway)
		ip(t, ns, "addr", "flush", "dev", "br0", "to", way.subnet)
		c := udp(t, e.NS.Path, netip.AddrPortFrom(netip.MustParseAddr(way.from), 0))
		seen := func() (leaked int) {
			_, _ = c.WriteToUDPAddrPort([]byte(canary), netip.AddrPortFrom(netip.MustParseAddr(way.to), testPort)) // may be told that there is no way
			for _, f := range uplink() {
				if bytes.Contains(f, []byte(canary)) {
					leaked++
				}
			}
			return leaked
		}
		if leaked := seen(); leaked != 0 {
			t.Errorf("%d packets to %s have left the network", leaked, way.to)
		}
		ip(t, ns, "route", "del", "unreachable", way.subnet)
		if seen() == 0 {
			t.Errorf("nothing to %s is seen to leave without the guard: the test is blind", way.to)
		}
	}
}
