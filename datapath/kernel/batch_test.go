package kernel

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/datapathtest"
)

// sent is how many requests went to the kernel so far, and how many of them were dumps. The loop
// must be idle.
func (k *Kernel) sent() (requests, dumps int) {
	handles := []*handle{k.host}
	for _, h := range k.own {
		handles = append(handles, h)
	}
	for _, h := range handles {
		requests, dumps = requests+h.requests, dumps+h.dumps
	}
	return requests, dumps
}

// settled waits until all news of what was done was looked at.
func (n *node) settled(t *testing.T) {
	t.Helper()
	time.Sleep(4 * 50 * time.Millisecond) // the loop waits so long for news to settle
}

func (n *node) remote(from, to int) {
	for i := from; i < to; i++ {
		n.o.Endpoints = append(n.o.Endpoints, datapathtest.Endpoint{N: 1000 + i, VTEP: vtep(1)})
	}
}

// 10,000 remote endpoints are there soon, and one more costs a request for its forwarding entry
// and one for each address, whatever is there. What the kernel then tells of its 40,000 changes
// is no reason to read it.
func TestTenThousand(t *testing.T) {
	n := newNode(t)
	n.apply(t)
	read := n.loop.Status().Read
	n.remote(0, 10000)
	begin := time.Now()
	n.apply(t)
	took := time.Since(begin)
	t.Logf("10,000 endpoints in %s", took)
	if took > 2*time.Second {
		t.Errorf("10,000 endpoints took %s", took)
	}
	n.settled(t)
	all := n.o.Endpoints
	for _, c := range []struct {
		name     string
		change   func()
		requests int
	}{
		{"one more", func() { n.remote(10000, 10001) }, 3},
		{"one less", func() { n.o.Endpoints = all }, 3},
		{"one moved", func() { n.o.Endpoints[5000].VTEP = vtep(2) }, 1},
	} {
		requests, dumps := n.sent()
		c.change()
		n.apply(t)
		n.settled(t)
		if r, d := n.sent(); r-requests != c.requests || d != dumps {
			t.Errorf("%s: %d requests and %d dumps, want %d requests", c.name, r-requests, d-dumps, c.requests)
		}
	}
	if n.loop.Status().Read != read {
		t.Error("the kernel was read because of what heddle has done itself")
	}
	c := n.o.Config()
	if ops := n.wrong(t, &c); len(ops) > 0 {
		t.Errorf("%d operations are still to do, the first: %v", len(ops), ops[0])
	}
}

// Of many operations at once each has its own error, and those that follow are done all the same.
func TestRefusedAmongMany(t *testing.T) {
	n := newNode(t)
	n.apply(t)
	n.stop()
	have := datapathtest.Endpoint{N: 1, VTEP: vtep(1)}
	ns := n.o.NS()
	set := func(link string, mac datapath.MAC) datapath.Op {
		return datapath.SetFDB{FDBEntry: datapath.FDBEntry{NS: ns, Link: link, MAC: mac, VTEP: vtep(1), Owner: have.Owner()}}
	}
	ops := []datapath.Op{
		set("vx0", datapath.MAC{2, 0, 0, 0, 0, 1}),
		set("vx0", datapath.MAC{}), // no address of anybody
		set("vx0", datapath.MAC{2, 0, 0, 0, 0, 3}),
		datapath.DelNeighbor{Neighbor: datapath.Neighbor{NS: ns, Link: "br0", IP: have.IPv6()}}, // is not there
		set("none", datapath.MAC{2, 0, 0, 0, 0, 5}),
		datapath.SetNeighbor{Neighbor: datapath.Neighbor{NS: ns, Link: "br0", IP: have.IPv4(), MAC: have.MAC()}},
	}
	for i, err := range n.ApplyEntries(t.Context(), ops) {
		if bad := i == 1 || i == 4; (err != nil) != bad {
			t.Errorf("%s: %v", ops[i], err)
		} else if bad && !strings.Contains(err.Error(), ops[i].String()) {
			t.Errorf("%q does not say what failed", err)
		}
	}
	c := n.o.Config()
	s, err := n.Read(t.Context(), &c)
	must(t, err)
	if len(s.FDB) != 2 || len(s.Neighbors) != 1 {
		t.Errorf("the kernel holds\n%s", s)
	}
}

// What is changed while the kernel can't tell of it, as no room is left for its notifications, is
// found as soon as it is known that some were lost.
func TestLostNews(t *testing.T) {
	n := newNode(t)
	n.remote(0, 500)
	n.apply(t)
	n.settled(t)
	ns, w := n.dir.Path("heddle-n1"), n.own["heddle-n1"].watcher
	for _, s := range w.sockets {
		small(t, s)
	}
	w.mu.Lock() // whoever reads the notifications is held up
	ip(t, ns, "neigh", "flush", "dev", "br0", "nud", "permanent")
	mac := datapathtest.Endpoint{N: 1499}.MAC().String()
	run(t, ns, "bridge", "fdb", "del", mac, "dev", "vx0", "self")
	w.mu.Unlock()
	begin := time.Now()
	c := n.o.Config()
	for ops := n.wrong(t, &c); len(ops) > 0; ops = n.wrong(t, &c) {
		if time.Since(begin) > 5*time.Second {
			t.Fatalf("%d operations are still to do, the first: %v", len(ops), ops[0])
		}
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("repaired after %s", took)
	}
	if !dropped(run(t, ns, "cat", "/proc/net/netlink")) {
		t.Error("no notification was lost, so that nothing was tried")
	}
}

// small leaves room for a few notifications in a socket.
func small(t *testing.T, s *os.File) {
	raw, err := s.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) }))
	must(t, err)
}

// dropped says whether a line of the table of netlink sockets counts notifications that a socket
// had no room for.
func dropped(table string) bool {
	const drops = 8 // the column
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) > drops && f[drops] != "0" && f[drops] != "Drops" {
			return true
		}
	}
	return false
}
