package kernel

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/datapathtest"
	"github.com/heddle-net/heddle/datapath/netns"
	"github.com/heddle-net/heddle/e2e/frames"
)

// rawSocket sends and receives the frames of a link.
func rawSocket(t testing.TB, path, name string) int {
	t.Helper()
	f, err := netns.Open(path, 0)
	must(t, err)
	defer f.Close()
	var fd int
	must(t, netns.Do(f, func() error {
		i, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	}))
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// sees waits until a frame comes, or for as long as it is given.
func sees(fd int, frame []byte, wait time.Duration) bool {
	buf := make([]byte, 2000)
	for end := time.Now().Add(wait); ; {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case err == nil && bytes.Equal(buf[:n], frame):
			return true
		case err == unix.EAGAIN && time.Now().After(end):
			return false
		}
	}
}

func station(e datapathtest.Endpoint) frames.Station {
	mac := e.MAC()
	return frames.Station{MAC: mac[:], IP4: e.IPv4(), IP6: e.IPv6()}
}

// pair is a node with two endpoints that have found each other.
func pair(t *testing.T) (n *node, one, two datapathtest.Endpoint) {
	n = newNode(t)
	one, two = datapathtest.Endpoint{N: 1, NS: n.Workload(t, "w1")}, datapathtest.Endpoint{N: 2, NS: n.Workload(t, "w2")}
	n.o.Endpoints = []datapathtest.Endpoint{one, two}
	n.apply(t, one.Owner(), two.Owner())
	return n, one, two
}

func (n *node) dropped(t *testing.T, port string) map[datapath.Forgery]uint64 {
	t.Helper()
	all, err := n.Dropped(n.o.NS())
	must(t, err)
	return all[port]
}

// What a workload forges comes nowhere and is counted by its kind; what is its own passes, and
// counts as nothing.
func TestForgeries(t *testing.T) {
	n, one, two := pair(t)
	from, to := rawSocket(t, one.NS.Path, "eth0"), rawSocket(t, two.NS.Path, "eth0")
	bridge := rawSocket(t, n.dir.Path("heddle-n1"), "br0")
	gateway := frames.Station{MAC: net.HardwareAddr{2, 0x64, 0xff, 0, 0, 1}, IP4: netip.MustParseAddr("10.64.255.254"), IP6: netip.MustParseAddr("fd00:64::ffff")}
	want := n.dropped(t, "e1")
	for kind, packets := range want {
		if packets > 0 {
			t.Errorf("%d frames of the kind %s were dropped before any was forged", packets, kind)
		}
	}
	kinds := map[string]int{}
	for _, f := range frames.From(station(one), station(two), gateway) {
		kinds[f.Kind]++
		_, err := unix.Write(from, f.Bytes)
		must(t, err)
		at := to
		if bytes.Equal(f.Bytes[:6], gateway.MAC) {
			at = bridge
		}
		honest := f.Kind == ""
		if wait := map[bool]time.Duration{true: time.Second}[honest]; sees(at, f.Bytes, wait) != honest {
			t.Errorf("%s (%q): passed is %v", f.Name, f.Kind, !honest)
		}
		if !honest {
			want[datapath.Forgery(f.Kind)]++
		}
		if got := n.dropped(t, "e1"); !maps.Equal(got, want) {
			t.Errorf("%s: counters %v, want %v", f.Name, got, want)
			want = got
		}
	}
	for kind := range want {
		if kinds[string(kind)] == 0 {
			t.Errorf("no frame is of the kind %s", kind)
		}
	}
	t.Logf("frames by kind: %v", kinds)
	if others := n.dropped(t, "e2"); fmt.Sprint(others) != fmt.Sprint(map[datapath.Forgery]uint64{"mac": 0, "ip": 0, "arp": 0, "nd": 0, "ra": 0, "dhcp": 0, "vlan": 0, "other": 0}) {
		t.Errorf("the other's port counts %v", others)
	}
}

// An endpoint whose addresses change may use the new ones, and the old ones no longer.
func TestLockFollowsAddresses(t *testing.T) {
	n, one, two := pair(t)
	from, to := rawSocket(t, one.NS.Path, "eth0"), rawSocket(t, two.NS.Path, "eth0")
	c := n.o.Config()
	second := netip.MustParseAddr("fd00:64::77:1")
	c.Locks[0].IPs = []netip.Addr{netip.MustParseAddr("10.64.0.77"), second, one.IPv6()}
	must(t, n.loop.Wait(t.Context(), n.loop.Set(c), one.Owner()))
	for _, at := range []struct {
		ip4, ip6 netip.Addr
		passes4  bool
	}{{one.IPv4(), one.IPv6(), false}, {c.Locks[0].IPs[0], second, true}} {
		s := frames.Station{MAC: station(one).MAC, IP4: at.ip4, IP6: at.ip6}
		for _, f := range frames.From(s, station(two), station(two)) {
			if f.Name != "IPv4" && f.Name != "IPv6" && f.Name != "an answer" && f.Name != "an answer by ARP" {
				continue
			}
			_, err := unix.Write(from, f.Bytes)
			must(t, err)
			want := at.passes4 || f.Name == "IPv6" || f.Name == "an answer"
			if sees(to, f.Bytes, map[bool]time.Duration{true: time.Second}[want]) != want {
				t.Errorf("%s from %s, %s: passed is %v", f.Name, at.ip4, at.ip6, !want)
			}
		}
	}
}

// Locks that stand are known by a number in their comments: whoever changes the rules must raise
// lockVersion, or nodes keep the old ones when heddle is upgraded, and then write here what this
// test says.
func TestLockVersion(t *testing.T) {
	const version, rules = 1, "8f0a2df2903255a3"
	all := sha256.New()
	for _, r := range lockRules(datapath.Lock{MAC: datapath.MAC{2, 3, 4, 5, 6, 7}, IPs: []netip.Addr{vtep(0), netip.MustParseAddr("fd00::7")}}) {
		for _, e := range r.exprs() {
			b, err := expr.Marshal(unix.NFPROTO_NETDEV, e)
			must(t, err)
			all.Write(b)
		}
	}
	if got := fmt.Sprintf("%x", all.Sum(nil)[:8]); got != rules || lockVersion != version {
		t.Errorf("the rules of lockVersion %d are %s; those of version %d are %s", lockVersion, got, version, rules)
	}
}
