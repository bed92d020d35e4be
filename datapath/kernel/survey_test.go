package kernel

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/datapath"
)

func TestPathTo(t *testing.T) {
	h := underlay(t, 1)[0]
	path := hostPath(h)
	ip(t, path, "link", "add", "other", "type", "bridge")
	ip(t, path, "link", "set", "other", "up")
	ip(t, path, "route", "add", "203.0.113.0/24", "dev", "other", "mtu", "1380")
	for to, want := range map[string]Path{vtep(7).String(): {Link: "eth0"}, "203.0.113.9": {Link: "other", MTU: 1380}} {
		if got, err := h.PathTo(netip.MustParseAddr(to)); err != nil || got != want {
			t.Errorf("to %s: %+v, %v; want %+v", to, got, err, want)
		}
	}
	if p, err := h.PathTo(netip.MustParseAddr("198.51.100.1")); err == nil {
		t.Errorf("there is a path to nowhere: %+v", p)
	}
}

func TestSettings(t *testing.T) {
	h := underlay(t, 1)[0]
	const all, none = "net/ipv4/conf/all/rp_filter", "net/ipv4/conf/eth9/rp_filter"
	for _, value := range []string{"1", "2"} {
		inside(t, hostPath(h), func() error { return writeSysctls([]sysctl{{all, value}}) })
		if got, err := h.Settings(datapath.NS{}, all, none); err != nil || len(got) != 1 || got[all] != value {
			t.Errorf("settings %v, %v; want %s", got, err, value)
		}
	}
}

// What the kernel says of its neighbour tables is what stands under /proc/sys.
func TestNeighborTables(t *testing.T) {
	h := underlay(t, 1)[0]
	before, err := h.NeighborTables()
	must(t, err)
	if len(before) != 2 || before[0].Six == before[1].Six {
		t.Fatalf("tables %+v; want one of each family", before)
	}
	for _, n := range before {
		name := map[bool]string{false: "ipv4", true: "ipv6"}[n.Six]
		if b, err := os.ReadFile("/proc/sys/net/" + name + "/neigh/default/gc_thresh3"); err == nil && strings.TrimSpace(string(b)) != strconv.Itoa(n.Limit) {
			t.Errorf("%s: limit %d, and the file says %s", name, n.Limit, b)
		}
		if n.Limit == 0 {
			t.Errorf("%s has no limit", name)
		}
	}
	for i := range 50 {
		ip(t, hostPath(h), "neigh", "add", vtep(100+i).String(), "lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent")
	}
	after, err := h.NeighborTables()
	must(t, err)
	for i, n := range after {
		if !n.Six && n.Entries < 50 {
			t.Errorf("%d entries before 50 more, %d after", before[i].Entries, n.Entries)
		}
	}
}

func TestOffloads(t *testing.T) {
	h := underlay(t, 1)[0]
	got, err := h.Offloads("eth0")
	must(t, err)
	for _, name := range []string{"tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "tx-checksum-ip-generic"} {
		if o, there := got[name]; !there || !o.On || o.Fixed {
			t.Errorf("%s: %+v, %v; a veth has it", name, o, there)
		}
	}
	if o := got["tx-fcoe-segmentation"]; !o.Fixed || o.On {
		t.Errorf("tx-fcoe-segmentation: %+v; a veth can't have it", o)
	}
	if _, err := h.Offloads("eth9"); err == nil {
		t.Error("a device that is not there has offloads")
	}
}

// A device on the way takes less than the sender's: only what it takes passes, and nobody tells.
func TestSizes(t *testing.T) {
	hosts := underlay(t, 2)
	ip(t, hostPath(hosts[1]), "addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
	ip(t, hostPath(hosts[0]), "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
	sizes := []int{576, 1280, 1399, 1400, 1500, 1501}
	pass := func(to netip.Addr) []int {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
		defer cancel()
		got, err := hosts[0].Sizes(ctx, to, sizes)
		must(t, err)
		return got
	}
	for _, to := range []netip.Addr{vtep(1), netip.MustParseAddr("2001:db8::2")} {
		if got := pass(to); !slices.Equal(got, sizes[:5]) {
			t.Errorf("%s: %v pass, want all but the last", to, got)
		}
	}
	ip(t, hostPath(hosts[1]), "link", "set", "eth0", "mtu", "1400")
	for _, to := range []netip.Addr{vtep(1), netip.MustParseAddr("2001:db8::2")} {
		if got := pass(to); !slices.Equal(got, sizes[:4]) {
			t.Errorf("%s: with 1400 on the way %v pass", to, got)
		}
	}
	if got := pass(vtep(9)); len(got) > 0 {
		t.Errorf("nobody is there, and answers %v", got)
	}
}

func TestListening(t *testing.T) {
	n := newNode(t)
	n.apply(t)
	l, err := n.Listening()
	if err != nil || l.Inotify != nil || l.Buffer < l.Wanted || l.Wanted == 0 {
		t.Errorf("%+v, %v", l, err)
	}
	n.newsroom.add(nil, true)
	if more, _ := n.Listening(); more.Lost != l.Lost+1 {
		t.Errorf("lost %d times, then %d", l.Lost, more.Lost)
	}
}
