package kernel

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/datapathtest"
	"github.com/heddle-net/heddle/datapath/netns"
)

// inside runs fn in a namespace.
func inside(t testing.TB, path string, fn func() error) {
	t.Helper()
	f, err := netns.Open(path, 0)
	must(t, err)
	defer f.Close()
	must(t, netns.Do(f, fn))
}

func nft(t *testing.T, path string, fn func(c *nftables.Conn)) {
	t.Helper()
	inside(t, path, func() error {
		c, err := nftables.New(nftables.AsLasting())
		if err != nil {
			return err
		}
		defer c.CloseLasting()
		fn(c)
		return c.Flush()
	})
}

func hostPath(h *host) string { return h.lab.Path("host") }

func newNode(t *testing.T) *node {
	o := datapathtest.Overlay{ID: "n1", VNI: datapathtest.MinVNI + 1, Local: vtep(0), Members: []netip.Addr{vtep(1)}}
	return startNode(t, underlay(t, 1)[0], o)
}

// TestWhatStandsInTheWay: one line that names it; what others made is left as it is, and
// when they have removed it the network comes up.
func TestWhatStandsInTheWay(t *testing.T) {
	table := &nftables.Table{Name: "heddle", Family: nftables.TableFamilyINet}
	for _, tt := range []struct {
		name        string
		fault       datapath.Fault
		words       string
		put, remove func(t *testing.T, n *node)
	}{
		{
			"a table of our name", datapath.Foreign, "inet heddle",
			func(t *testing.T, n *node) {
				nft(t, hostPath(n.host), func(c *nftables.Conn) { c.CreateTable(table) })
			},
			func(t *testing.T, n *node) { nft(t, hostPath(n.host), func(c *nftables.Conn) { c.DelTable(table) }) },
		},
		{
			"a VXLAN device with our VNI", datapath.Taken, "VNI 8388609 on UDP port 4789",
			func(t *testing.T, n *node) {
				ip(t, hostPath(n.host), "link", "add", "other", "type", "vxlan", "id", "8388609", "dstport", "4789")
			},
			func(t *testing.T, n *node) { ip(t, hostPath(n.host), "link", "del", "other") },
		},
		{
			"a namespace of our name", datapath.Foreign, "heddle-n1",
			func(t *testing.T, n *node) { must(t, n.dir.Make("heddle-n1", func() error { return nil })) },
			func(t *testing.T, n *node) { must(t, n.dir.Remove("heddle-n1")) },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			tt.put(t, n)
			err := n.loop.Wait(t.Context(), n.loop.Set(n.o.Config()), "n1")
			if datapath.FaultOf(err) != tt.fault || !strings.Contains(err.Error(), tt.words) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v; want a fault %q that names %q", err, tt.fault, tt.words)
			}
			t.Log(err)
			tt.remove(t, n) // fails if it is not as it was made
			n.apply(t)
		})
	}
}

func TestUDPPortTaken(t *testing.T) {
	n := newNode(t)
	c := udp(t, hostPath(n.host), netip.AddrPortFrom(netip.IPv4Unspecified(), datapathtest.Port))
	err := n.loop.Wait(t.Context(), n.loop.Set(n.o.Config()), "n1")
	if me := fmt.Sprintf("(PID %d)", os.Getpid()); datapath.FaultOf(err) != datapath.Taken || !strings.Contains(err.Error(), me) {
		t.Errorf("got %v; want it to name %s", err, me)
	}
	t.Log(err)
	c.Close()
	n.apply(t)
}

// TestFilterIsRepaired: whatever somebody does to the table, the next reading finds it.
func TestFilterIsRepaired(t *testing.T) {
	n := newNode(t)
	n.apply(t)
	table := &nftables.Table{Name: "heddle", Family: nftables.TableFamilyINet}
	input := &nftables.Chain{Name: "input", Table: table}
	accept := func() *nftables.Rule {
		return &nftables.Rule{Table: table, Chain: input, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}}
	}
	for name, change := range map[string]func(c *nftables.Conn){
		"flushed":     func(c *nftables.Conn) { c.FlushTable(table) },
		"a rule more": func(c *nftables.Conn) { c.InsertRule(accept()) },
		"a chain flushed": func(c *nftables.Conn) {
			c.FlushChain(input)
			c.AddRule(accept())
		},
		"deleted":    func(c *nftables.Conn) { c.DelTable(table) },
		"no members": func(c *nftables.Conn) { c.FlushSet(newRuleset(0, 0).sets[0]) },
	} {
		nft(t, hostPath(n.host), change)
		n.loop.Doubt()
		n.apply(t)
		k := New(Config{Host: hostPath(n.host)})
		f, _, err := k.readFilter(datapath.NS{})
		k.Close()
		if err != nil || f.Port != datapathtest.Port || f.MinVNI != datapathtest.MinVNI || len(f.Allowed) != 1 {
			t.Errorf("%s: filter %+v, %v", name, f, err)
		}
	}
}

// TestWorkloadWithoutIPv6: a runtime has switched IPv6 off by default, as Docker does.
func TestWorkloadWithoutIPv6(t *testing.T) {
	n := newNode(t)
	ns := n.Workload(t, "w1")
	inside(t, ns.Path, func() error {
		return writeSysctls([]sysctl{{"net/ipv6/conf/default/disable_ipv6", "1"}, {"net/ipv6/conf/all/disable_ipv6", "1"}})
	})
	e := datapathtest.Endpoint{N: 1, NS: ns}
	n.o.Endpoints = []datapathtest.Endpoint{e}
	n.apply(t, e.Owner())
	if out := ip(t, ns.Path, "-6", "addr", "show", "dev", "eth0"); !strings.Contains(out, "fd00:64::1/64") || strings.Contains(strings.Split(out, "fe80")[0], "tentative") {
		t.Errorf("IPv6 address is not usable:\n%s", out)
	}
}

func TestNamespaceSettings(t *testing.T) {
	n := newNode(t)
	n.apply(t)
	path := n.dir.Path("heddle-n1")
	spoil := []sysctl{{"net/ipv4/ip_forward", "1"}, {"net/bridge/bridge-nf-call-iptables", "1"}}
	inside(t, path, func() error { return writeSysctls(spoil) })
	n.loop.Doubt()
	n.apply(t)
	inside(t, path, func() error {
		for _, s := range namespaceSysctls {
			if !s.holds() {
				t.Errorf("%s is not %s", s.path, s.value)
			}
		}
		return nil
	})
	if d := n.loop.Status().Drift; d["namespace"] != 1 {
		t.Errorf("drift %v", d)
	}
}

// TestNothingIsPinned: a namespace that others made ends when they let it go.
func TestNothingIsPinned(t *testing.T) {
	n := newNode(t)
	ns := n.Workload(t, "w1")
	e := datapathtest.Endpoint{N: 1, NS: ns}
	n.o.Endpoints = []datapathtest.Endpoint{e}
	n.apply(t, e.Owner())
	links, err := filepath.Glob("/proc/self/fd/*")
	must(t, err)
	for _, l := range links {
		if to, _ := os.Readlink(l); to == fmt.Sprintf("net:[%d]", ns.Inode) || to == ns.Path {
			t.Errorf("%s holds %s", l, to)
		}
	}
	if len(n.guests) > 0 {
		t.Errorf("%d open handles", len(n.guests))
	}
}

func TestHostAddresses(t *testing.T) {
	n := newNode(t)
	path := hostPath(n.host)
	n.apply(t)
	ip(t, path, "link", "set", "eth0", "mtu", "1480")
	ip(t, path, "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
	ip(t, path, "link", "add", "name", "br-x", "type", "bridge")
	ip(t, path, "addr", "add", "172.18.0.1/16", "dev", "br-x")
	got, err := n.GlobalAddrs()
	must(t, err)
	want := []HostAddr{{vtep(0), "eth0", 1480}, {netip.MustParseAddr("2001:db8::1"), "eth0", 1480}}
	if !slices.Equal(got, want) {
		t.Errorf("addresses %v, want %v", got, want)
	}
	if name, mtu, err := n.LinkMTU(vtep(0)); name != "eth0" || mtu != 1480 || err != nil {
		t.Errorf("link of %s: %s %d %v", vtep(0), name, mtu, err)
	}
	if names, err := n.LinkNames(datapath.NS{}); err != nil || !slices.Equal(names, []string{"lo", "eth0", "br-x"}) {
		t.Errorf("links %v, %v", names, err)
	}
	if _, err := n.LinkNames(datapath.NS{Path: "/nonexistent"}); datapath.FaultOf(err) != datapath.NoNamespace {
		t.Errorf("links of no namespace: %v", err)
	}
	if _, _, err := n.LinkMTU(vtep(9)); err == nil {
		t.Error("a link has an address that nobody has")
	}
}

func TestFeatures(t *testing.T) {
	needRoot(t)
	for _, f := range Features() {
		if f.Err != nil {
			t.Errorf("%s: %v", f.Name, f.Err)
		}
	}
}

// TestFarEndChangesHands: after a restart another endpoint wants the interface name that
// the old one's still has.
func TestFarEndChangesHands(t *testing.T) {
	n := newNode(t)
	ns := n.Workload(t, "w1")
	old := datapathtest.Endpoint{N: 1, NS: ns}
	n.o.Endpoints = []datapathtest.Endpoint{old}
	n.apply(t, old.Owner())
	n.stop()
	n.Close()
	h := &host{Kernel: New(Config{Host: hostPath(n.host), Netns: n.dir}), dir: n.dir, lab: n.lab}
	t.Cleanup(h.Close) // after the loop has ended
	again := startNode(t, h, n.o)
	next := datapathtest.Endpoint{N: 2, NS: ns}
	again.o.Endpoints = []datapathtest.Endpoint{next}
	again.apply(t, next.Owner())
	again.o.Endpoints = []datapathtest.Endpoint{next, old} // two for one name: the first keeps it
	gen := again.loop.Set(again.o.Config())
	must(t, again.loop.Wait(t.Context(), gen, next.Owner()))
	if err := again.loop.Wait(t.Context(), gen, old.Owner()); err == nil {
		t.Error("two endpoints have one interface name")
	}
	if l := ip(t, ns.Path, "link", "show", "eth0"); !strings.Contains(l, next.MAC().String()) {
		t.Errorf("the first one's interface is gone:\n%s", l)
	}
	again.stop()
}

// TestKernelWithoutADevice: a kind of link that no kernel has stands for one that this
// kernel lacks; the refusal is the kernel's own.
func TestKernelWithoutADevice(t *testing.T) {
	needRoot(t)
	err := netns.Temporary(func() error {
		c, err := dial()
		if err != nil {
			return err
		}
		defer c.close()
		return c.tryLink("t-none", "heddle-none", nil)
	})
	if datapath.FaultOf(err) != datapath.Unsupported || !strings.Contains(err.Error(), "load the module heddle-none") {
		t.Errorf("a device that no kernel makes: %v", err)
	}
	n := newNode(t)
	err = n.explainAdd(datapath.Link{Kind: datapath.VXLAN, Name: "vxlan0"}, nil, nil, unix.EOPNOTSUPP)
	if datapath.FaultOf(err) != datapath.Unsupported || !strings.Contains(err.Error(), "cannot make vxlan devices") {
		t.Errorf("a kernel without vxlan: %v", err)
	}
}

// The host may have links of any name: ours are in other namespaces. Linux before 6.2 looks the name
// of a link that is made elsewhere up in the namespace of the request.
func TestTheHostHasALinkOfTheDevicesName(t *testing.T) {
	n := newNode(t)
	ip(t, hostPath(n.host), "link", "add", n.o.Config().Links[1].Name, "type", "bridge")
	n.apply(t)
	ip(t, hostPath(n.host), "link", "del", n.o.Config().Links[1].Name) // fails if it is not as it was made
}
