package kernel

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/datapathtest"
	"github.com/heddle-net/heddle/datapath/netns"
	"github.com/heddle-net/heddle/datapath/wireguard"
)

// becomes waits until something holds.
func becomes(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not seen within 10 s:", what)
		}
	}
}

// TestSealedRestart: a daemon that starts again under traffic adopts devices, processes and sessions,
// and touches nothing.
func TestSealedRestart(t *testing.T) {
	s := startSealed(t, underlay(t, 2))
	s.pass(t, 0, 1) // when both sides begin a session at the same time, WireGuard tries again after 5 s
	n := s.nodes[0]
	flows := []*flow{s.stream(t, 0, 1, time.Millisecond), s.stream(t, 1, 0, time.Millisecond)}
	becomes(t, "traffic", func() bool { return flows[0].got.Load() > 10 && flows[1].got.Load() > 10 })
	paths := []string{hostPath(n.host), n.dir.Path("heddle-n1"), n.dir.Path(datapathtest.Tunnels.Name), s.endpoints[0].NS.Path}
	var events []func() int
	var before []uint32
	for _, p := range paths {
		events = append(events, watch(t, p))
		before = append(before, generation(t, p))
	}
	process, _ := wireguard.Find(n.o.Tunnel(0))
	for range 10 {
		n.stop()
		n.Close()
		h := &host{Kernel: New(Config{Host: hostPath(n.host), Netns: n.dir}), dir: n.dir, lab: n.lab}
		t.Cleanup(h.Close)
		n = startNode(t, h, n.o)
		s.nodes[0] = n
		s.apply(t, 0, s.config(0))
		if st := n.loop.Status(); st.Ops != 0 {
			t.Errorf("%d operations", st.Ops)
		}
	}
	for i, p := range paths {
		if c := events[i](); c != 0 {
			t.Errorf("%d events in %s", c, p)
		}
		if g := generation(t, p); g != before[i] {
			t.Errorf("the rules of %s were touched", p)
		}
	}
	if again, _ := wireguard.Find(n.o.Tunnel(0)); again.PID != process.PID {
		t.Errorf("another process: %s, before %s", again, process)
	}
	for _, f := range flows {
		if lost := f.lost(); lost != 0 {
			t.Errorf("%d of %d packets are lost", lost, f.sent.Load())
		}
	}
}

// generation is what nf_tables counts its transactions by.
func generation(t *testing.T, path string) (id uint32) {
	t.Helper()
	nft(t, path, func(c *nftables.Conn) {
		gen, err := c.GetGen()
		must(t, err)
		id = gen.ID
	})
	return id
}

// A peer that moved is where it was last heard, whatever was wanted before.
func TestHeardElsewhere(t *testing.T) {
	s := startSealed(t, underlay(t, 2))
	s.pass(t, 0, 1)
	moved := netip.MustParseAddr("10.99.0.102")
	other := hostPath(s.nodes[1].host)
	ip(t, other, "addr", "add", moved.String()+"/24", "dev", "eth0")
	ip(t, other, "addr", "del", vtep(1).String()+"/24", "dev", "eth0")
	ip(t, other, "addr", "replace", moved.String()+"/24", "dev", "eth0") // the first may have gone as a secondary
	f := s.stream(t, 1, 0, time.Millisecond)
	n, c := s.nodes[0], s.config(0)
	at := func() netip.AddrPort {
		k := New(Config{Host: hostPath(n.host), Netns: n.dir})
		defer k.Close()
		st, err := k.Read(t.Context(), &c)
		must(t, err)
		return st.WGPeers[c.WGPeers[0].ID()].Endpoint
	}
	becomes(t, "the peer at its new address", func() bool { return at().Addr() == moved })
	for what, ops := range map[string][]datapath.Op{"one that starts": n.wrong(t, &c), "one that runs": nil} {
		if len(ops) > 0 {
			t.Errorf("%s would do %v", what, ops)
		}
	}
	done := n.loop.Status().Ops
	n.loop.Doubt()
	must(t, n.loop.Wait(t.Context(), n.loop.Set(c), datapathtest.Tunnels.Owner))
	if st := n.loop.Status(); st.Ops != done || at().Addr() != moved {
		t.Errorf("%d operations more, the peer at %s", st.Ops-done, at())
	}
	f.stop()
	s.pass(t, 0, 1)
}

// TestSealedForged: what a node sends that is a peer, but has no lease in the network, is dropped and
// counted; what it sends by another's address is dropped by WireGuard.
func TestSealedForged(t *testing.T) {
	s := startSealed(t, underlay(t, 3))
	c := s.config(0)
	c.Filters[0].Allowed = slices.DeleteFunc(c.Filters[0].Allowed, func(a datapath.Allow) bool { return a.Source == inner(2) })
	s.apply(t, 0, c)
	e, victim := s.endpoints[0], s.nodes[0]
	to := udp(t, e.NS.Path, netip.AddrPortFrom(e.IPv4(), testPort))
	forger := s.nodes[2].dir.Path(datapathtest.Tunnels.Name)
	send := func(from netip.Addr, vni uint32, text string) {
		socket := udp(t, forger, netip.AddrPortFrom(from, 0))
		defer socket.Close()
		raw, err := socket.SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) { // what root of that node can do, past the rule that keeps its users from it
			must(t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, hostPriority))
		}))
		_, err = socket.WriteToUDPAddrPort(vxlanPacket(vni, innerFrame(e, text)), netip.AddrPortFrom(inner(0), c.Links[1].VXLAN.Port))
		must(t, err)
	}
	denied := func(want uint64) {
		t.Helper()
		becomes(t, fmt.Sprintf("%d dropped frames", want), func() bool {
			n, _, err := victim.Denied()
			must(t, err)
			return n == want
		})
	}
	denied(0)
	send(inner(2), victim.o.VNI, "without a lease")
	denied(1)
	s.nodes[2].stop()
	ip(t, forger, "addr", "add", inner(1).String()+"/128", "dev", s.nodes[2].o.Tunnel(0), "nodad")
	send(inner(1), victim.o.VNI, "by another's address")
	ip(t, forger, "addr", "del", inner(1).String()+"/128", "dev", s.nodes[2].o.Tunnel(0))
	send(inner(2), victim.o.VNI, "after it by the same way")
	denied(2)
	b := make([]byte, 100)
	to.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, _, err := to.ReadFromUDPAddrPort(b); err == nil {
		t.Errorf("the endpoint got %q", b[:n])
	}
}

// Keys are replaced under traffic both ways: the routes flip to the other device, the idle one gets
// another key, and so on.
func TestKeysAreReplaced(t *testing.T) {
	s := startSealed(t, underlay(t, 2))
	configs := []datapath.Config{s.config(0), s.config(1)}
	change := func(i int, fn func(c *datapath.Config)) {
		c := configs[i]
		c.Links, c.WGPeers, c.Routes = slices.Clone(c.Links), slices.Clone(c.WGPeers), slices.Clone(c.Routes)
		fn(&c)
		configs[i] = c
		s.apply(t, i, c)
	}
	// sessions are those of a device.
	sessions := func(i, device int) []Session {
		all, err := s.nodes[i].Sessions(datapathtest.Tunnels.NS())
		must(t, err)
		return slices.DeleteFunc(all, func(x Session) bool { return x.Link != s.nodes[i].o.Tunnel(device) })
	}
	// stand waits until both have a session of a device that has begun since.
	stand := func(device int, since time.Time) {
		t.Helper()
		for i := range 2 {
			becomes(t, "a session", func() bool {
				x := sessions(i, device)
				return len(x) == 1 && x[0].Handshake.After(since) && x[0].Routed == (configs[i].Routes[0].Link == x[0].Link)
			})
		}
	}
	// rest waits until nothing comes by a device any more: what is under way when its key changes is lost.
	rest := func(device int) {
		t.Helper()
		for i := range 2 {
			last := ^uint64(0)
			becomes(t, "a device at rest", func() bool {
				before := last
				last = sessions(i, device)[0].Received
				return last == before
			})
		}
	}
	// When both sides begin a session at the same time, WireGuard tries again after 5 s.
	s.pass(t, 0, 1)
	for d := range 2 {
		stand(d, time.Time{})
	}
	flows := []*flow{s.stream(t, 0, 1, time.Millisecond), s.stream(t, 1, 0, time.Millisecond)}
	begin, rounds := time.Now(), 0
	for generation := 1; generation <= 15; generation++ {
		for idle := range 2 {
			for i := range 2 { // one after the other: for a while each sends by another device
				change(i, func(c *datapath.Config) { c.Routes[0].Link = s.nodes[i].o.Tunnel(1 - idle) })
			}
			rest(idle)
			for i := range 2 {
				made, key, old := time.Now(), tunnelKey(i, idle, generation), public(tunnelKey(i, idle, generation-1))
				change(i, func(c *datapath.Config) { c.Links[len(c.Links)-2+idle].WireGuard.Key = key })
				change(1-i, func(c *datapath.Config) {
					for j := range c.WGPeers {
						if p := &c.WGPeers[j]; p.Key == old {
							p.Key = public(key)
						}
					}
				})
				stand(idle, made)
			}
			rounds++
		}
	}
	t.Logf("%d keys of each of two nodes replaced in %v", rounds, time.Since(begin).Round(time.Millisecond))
	for i, f := range flows {
		lost := f.lost()
		t.Logf("%d of %d packets lost from %d", lost, f.sent.Load(), i)
		if lost != 0 {
			t.Error("packets are lost")
		}
	}
}

// A port that somebody has is named with who has it; when it is free, the device comes up.
func TestWireGuardPortIsTaken(t *testing.T) {
	hosts := underlay(t, 2)
	c := udp(t, hostPath(hosts[0]), netip.MustParseAddrPort("0.0.0.0:5379"))
	o := datapathtest.Overlay{ID: "n1", VNI: datapathtest.MinVNI + 1, Local: inner(0), Members: []netip.Addr{inner(1)}}
	n := startNode(t, hosts[0], o)
	gen := n.loop.Set(o.Sealed())
	err := n.loop.Wait(t.Context(), gen, datapathtest.Tunnels.Owner)
	if datapath.FaultOf(err) != datapath.Taken || !strings.Contains(err.Error(), fmt.Sprintf("(PID %d)", os.Getpid())) {
		t.Errorf("got %v; want who has it", err)
	}
	c.Close()
	becomes(t, "the device", func() bool { return n.loop.Wait(t.Context(), gen, datapathtest.Tunnels.Owner) == nil })
}

// A process that hangs is replaced.
func TestProcessHangs(t *testing.T) {
	s := startSealed(t, underlay(t, 2))
	n := s.nodes[0]
	p, there := wireguard.Find(n.o.Tunnel(0))
	if !there {
		t.Skip("this kernel has WireGuard: there is no process")
	}
	if !slices.Contains(n.children, p.PID) || slices.Contains(n.children, -1) { // which is all children, whoever waits for them
		t.Errorf("it takes note of the ends of %v, but started %d", n.children, p.PID)
	}
	must(t, unix.Kill(p.PID, unix.SIGSTOP))
	becomes(t, "another process", func() bool {
		again, there := wireguard.Find(n.o.Tunnel(0))
		return there && again.PID != p.PID
	})
	s.apply(t, 0, s.config(0))
	s.pass(t, 0, 1)
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", p.PID)); err == nil {
		t.Errorf("%s is still there", p)
	}
}

// A process that carries packets while it owes an answer does not hang.
func TestASlowProcessLives(t *testing.T) {
	s := startSealed(t, underlay(t, 2))
	n := s.nodes[0]
	name := n.o.Tunnel(0)
	p, there := wireguard.Find(name)
	if !there {
		t.Skip("this kernel has WireGuard: there is no process")
	}
	f, err := netns.Open(n.dir.Path(datapathtest.Tunnels.Name), 0)
	must(t, err)
	defer f.Close()
	tun, err := openTunnels(f, n.cfg.WireGuard)
	must(t, err)
	defer tun.close()
	tun.idle = 500 * time.Millisecond
	s.pass(t, 0, 1)
	flow := s.stream(t, 0, 1, time.Millisecond)
	before := flow.got.Load()
	must(t, tun.ask(name, func() error {
		becomes(t, "some seconds' traffic", func() bool { return flow.got.Load() > before+3000 })
		return nil
	}))
	if again, there := wireguard.Find(name); !there || again.PID != p.PID {
		t.Errorf("it was %s and is %s", p, again)
	}
}

// What a host encrypts by is found out by trying, and an error says what to do.
func TestEncryption(t *testing.T) {
	needRoot(t)
	if got := encryption(); got != "kernel, <nil>" && got != "wireguard-go, <nil>" {
		t.Errorf("got %s", got)
	}
	without := exec.Command("unshare", "--mount", "sh", "-c", `mount -t tmpfs none /dev/net && exec "$0" encryption`, os.Args[0])
	out, err := without.CombinedOutput()
	if got := string(out); err != nil || got != "kernel, <nil>\n" && !strings.Contains(got, "load the module wireguard, or give the host /dev/net/tun") {
		t.Errorf("without /dev/net/tun: %s, %v", got, err)
	}
}

// No process of a device outlives it, and none is left unburied.
func TestNoProcessIsLeft(t *testing.T) {
	s := startSealed(t, underlay(t, 2))
	n := s.nodes[0]
	var all []wireguard.Process
	for i := range 2 {
		if p, there := wireguard.Find(n.o.Tunnel(i)); there {
			all = append(all, p)
		}
	}
	must(t, n.loop.Wait(t.Context(), n.loop.Set(datapath.Config{})))
	for _, p := range all {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", p.PID)); err == nil {
			t.Errorf("%s is still there", p)
		}
	}
	if names, err := netns.Dir(n.dir).List(); err != nil || len(names) > 0 {
		t.Errorf("namespaces %v are left, %v", names, err)
	}
}
