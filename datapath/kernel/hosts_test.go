package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/datapathtest"
	"github.com/heddle-net/heddle/datapath/netns"
	"github.com/heddle-net/heddle/datapath/reconcile"
)

// underlay joins hosts by a bridge in a namespace of its own; the Nth has 10.99.0.N+1.
func underlay(t testing.TB, n int) []*host {
	t.Helper()
	needRoot(t)
	lab := namedDir(t)
	must(t, lab.Make("switch", func() error { return nil }))
	sw := lab.Path("switch")
	ip(t, sw, "link", "add", "name", "sw0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
	ip(t, sw, "link", "set", "sw0", "up")
	var hosts []*host
	for i := range n {
		h := newHost(t)
		port := fmt.Sprintf("p%d", i)
		ip(t, sw, "link", "add", port, "master", "sw0", "type", "veth", "peer", "name", "eth0", "netns", h.lab.Path("host"))
		ip(t, sw, "link", "set", port, "up")
		ip(t, h.lab.Path("host"), "addr", "add", fmt.Sprintf("%s/24", vtep(i)), "dev", "eth0")
		ip(t, h.lab.Path("host"), "link", "set", "eth0", "up")
		hosts = append(hosts, h)
	}
	return hosts
}

func vtep(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, 0, byte(i + 1)}) }

// node is a host with its reconciler running.
type node struct {
	*host
	loop *reconcile.Loop
	stop func()
	o    datapathtest.Overlay
}

func startNode(t testing.TB, h *host, o datapathtest.Overlay) *node {
	t.Helper()
	loop, err := reconcile.New(h.Kernel, reconcile.Config{}, slog.New(slog.DiscardHandler))
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := loop.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return &node{h, loop, stop, o}
}

// apply sets the node's network as it stands, and waits for it.
func (n *node) apply(t testing.TB, owners ...datapath.Owner) {
	t.Helper()
	must(t, n.loop.Wait(t.Context(), n.loop.Set(n.o.Config()), append(owners, "n1")...))
}

func twoNodes(t testing.TB, hosts []*host) (a, b *node) {
	o := func(local, other int) datapathtest.Overlay {
		return datapathtest.Overlay{ID: "n1", VNI: datapathtest.MinVNI + 1, Local: vtep(local), Members: []netip.Addr{vtep(other)}}
	}
	return startNode(t, hosts[0], o(0, 1)), startNode(t, hosts[1], o(1, 0))
}

// udp opens a socket inside a namespace.
func udp(t testing.TB, path string, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	f, err := netns.Open(path, 0)
	must(t, err)
	defer f.Close()
	var c *net.UDPConn
	must(t, netns.Do(f, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}))
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(time.Minute))
	return c
}

// exchange sends one packet and its answer; each must come at once.
func exchange(t *testing.T, from, to *net.UDPConn, dst netip.AddrPort) (ok bool) {
	t.Helper()
	if _, err := from.WriteToUDPAddrPort([]byte("ping"), dst); err != nil {
		t.Errorf("send to %s: %v", dst, err)
		return false
	}
	b := make([]byte, 100)
	to.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	_, src, err := to.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Errorf("first packet to %s: %v", dst, err)
		return false
	}
	if _, err := to.WriteToUDPAddrPort([]byte("pong"), src); err != nil {
		t.Error(err)
		return false
	}
	from.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	if _, _, err := from.ReadFromUDPAddrPort(b); err != nil {
		t.Errorf("answer of %s: %v", dst, err)
		return false
	}
	return true
}

const testPort = 7000

// capture collects the frames that pass a link, both ways.
func capture(t testing.TB, path, name string) (frames func() [][]byte) {
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
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	}))
	t.Cleanup(func() { unix.Close(fd) })
	return func() (out [][]byte) {
		b := make([]byte, 1<<16)
		for {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				return out
			}
			out = append(out, slices.Clone(b[:n]))
		}
	}
}

// sniff collects the inner frames of the VXLAN packets that pass a link of the underlay.
func sniff(t testing.TB, path, name string) (frames func() [][]byte) {
	all := capture(t, path, name)
	return func() (out [][]byte) {
		for _, b := range all() {
			const inner = 14 + 20 + 8 + 8
			if len(b) > inner && b[12] == 8 && b[13] == 0 && b[23] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(b[36:]) == datapathtest.Port {
				out = append(out, b[inner:])
			}
		}
		return out
	}
}

// TestFirstPackets attaches 100 workloads, and counts first packets each way, both
// families: no retry, no wait, no address resolution between nodes.
func TestFirstPackets(t *testing.T) {
	a, b := twoNodes(t, underlay(t, 2))
	first := datapathtest.Endpoint{N: 1, NS: a.Workload(t, "w1")}
	beside := datapathtest.Endpoint{N: 2, NS: a.Workload(t, "w2")}
	a.o.Endpoints = []datapathtest.Endpoint{first, beside}
	b.o.Endpoints = []datapathtest.Endpoint{{N: 1, VTEP: vtep(0)}, {N: 2, VTEP: vtep(0)}}
	a.apply(t, first.Owner(), beside.Owner())
	b.apply(t)
	sockets := func(e datapathtest.Endpoint) (v4, v6 *net.UDPConn) {
		return udp(t, e.NS.Path, netip.AddrPortFrom(e.IPv4(), testPort)), udp(t, e.NS.Path, netip.AddrPortFrom(e.IPv6(), testPort))
	}
	c4, c6 := sockets(first)
	frames := sniff(t, a.lab.Path("host"), "eth0")
	var seen [][]byte
	passed := 0
	for i := range 100 {
		e := datapathtest.Endpoint{N: 100 + i, NS: b.Workload(t, fmt.Sprintf("w%d", i))}
		a.o.Endpoints = append(a.o.Endpoints, datapathtest.Endpoint{N: e.N, VTEP: vtep(1)})
		b.o.Endpoints = append(b.o.Endpoints, e)
		a.apply(t)
		b.apply(t, e.Owner())
		s4, s6 := sockets(e)
		if i%2 == 0 { // either side speaks first
			c4, c6, s4, s6 = s4, s6, c4, c6
			e = first
		}
		if exchange(t, c4, s4, netip.AddrPortFrom(e.IPv4(), testPort)) && exchange(t, c6, s6, netip.AddrPortFrom(e.IPv6(), testPort)) {
			passed++
		}
		if i%2 == 0 {
			c4, c6 = s4, s6
		}
		seen = append(seen, frames()...)
	}
	t.Logf("%d of 100 first packets passed, IPv4 and IPv6", passed)
	l4, l6 := sockets(beside)
	exchange(t, c4, l4, netip.AddrPortFrom(beside.IPv4(), testPort))
	exchange(t, c6, l6, netip.AddrPortFrom(beside.IPv6(), testPort))
	for _, f := range append(seen, frames()...) {
		if f[0]&1 != 0 || binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_ARP || f[12] == 0x86 && f[20] == unix.IPPROTO_ICMPV6 {
			t.Errorf("a frame that should not leave the node: % x", f)
		}
	}
	if len(seen) < 400 {
		t.Errorf("%d VXLAN packets seen; the sniffer is blind", len(seen))
	}
}

// innerFrame is an Ethernet frame with a UDP packet for an endpoint.
func innerFrame(dst datapathtest.Endpoint, payload string) []byte {
	mac, ip := dst.MAC(), dst.IPv4().As4()
	b := append(mac[:], 2, 0x64, 0, 0, 0, 99, 8, 0)
	head := []byte{0x45, 0, 0, byte(28 + len(payload)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0, 10, 64, 0, 99, ip[0], ip[1], ip[2], ip[3]}
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(head[i:]))
	}
	binary.BigEndian.PutUint16(head[10:], ^uint16(sum+sum>>16))
	b = append(b, head...)
	b = append(b, testPort>>8, testPort&0xff, testPort>>8, testPort&0xff, 0, byte(8+len(payload)), 0, 0)
	return append(b, payload...)
}

func vxlanPacket(vni uint32, inner []byte) []byte {
	return append([]byte{8, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}, inner...)
}

// TestForgedFrames: what a host sends that is no member is dropped and counted.
func TestForgedFrames(t *testing.T) {
	hosts := underlay(t, 3)
	a, b := twoNodes(t, hosts)
	e := datapathtest.Endpoint{N: 1, NS: a.Workload(t, "w1")}
	a.o.Endpoints = []datapathtest.Endpoint{e}
	a.apply(t, e.Owner())
	victim := udp(t, e.NS.Path, netip.AddrPortFrom(e.IPv4(), testPort))
	to := netip.AddrPortFrom(vtep(0), datapathtest.Port)
	member := udp(t, b.lab.Path("host"), netip.AddrPortFrom(vtep(1), 0))
	stranger := udp(t, hosts[2].lab.Path("host"), netip.AddrPortFrom(vtep(2), 0))
	expectDenied := func(want uint64) {
		t.Helper()
		if n, _, err := a.Denied(); err != nil || n != want {
			t.Errorf("%d denied, %v; want %d", n, err, want)
		}
	}
	send := func(c *net.UDPConn, vni uint32, text string) {
		_, err := c.WriteToUDPAddrPort(vxlanPacket(vni, innerFrame(e, text)), to)
		must(t, err)
	}
	vni := a.o.VNI
	b.apply(t)
	b.stop()
	_, err := member.WriteToUDPAddrPort(vxlanPacket(vni, innerFrame(e, "of a member's program")), to)
	if _, sent, derr := b.Denied(); !errors.Is(err, unix.EPERM) || sent != 1 || derr != nil {
		t.Errorf("a member's program sends VXLAN: %v; %d counted, %v", err, sent, derr)
	}
	must(t, b.delFilter(datapath.NS{})) // what follows comes from members that have been taken over
	send(stranger, vni, "forged")
	expectDenied(1)
	send(stranger, datapathtest.MinVNI-1, "other people's VNI")
	expectDenied(1)
	send(member, vni+1, "a network that the member is not in")
	expectDenied(2)
	sendFragmented(t, hosts[2].lab.Path("host"), vtep(2), vtep(0), vxlanPacket(vni, innerFrame(e, "forged in pieces")))
	expectDenied(3)
	send(member, vni, "true")
	b1 := make([]byte, 100)
	victim.SetReadDeadline(time.Now().Add(time.Second))
	n, _, err := victim.ReadFromUDPAddrPort(b1)
	if err != nil || string(b1[:n]) != "true" {
		t.Errorf("the endpoint got %q, %v; want the member's packet alone", b1[:n], err)
	}
	a.o.Members = nil
	a.apply(t)
	send(member, vni, "no longer a member")
	expectDenied(4)
}

// A workload that is the host itself sends from sockets of the host, which its frames keep.
func TestHostAsWorkload(t *testing.T) {
	a, b := twoNodes(t, underlay(t, 2))
	here, there := datapathtest.Endpoint{N: 1}, datapathtest.Endpoint{N: 2, NS: b.Workload(t, "w1")}
	a.o.Endpoints = []datapathtest.Endpoint{here, {N: 2, VTEP: vtep(1)}}
	b.o.Endpoints = []datapathtest.Endpoint{{N: 1, VTEP: vtep(0)}, there}
	b.apply(t, there.Owner())
	c := a.o.Config()
	for i := range c.Links {
		if c.Links[i].Peer.Name == "eth0" {
			c.Links[i].Peer.Name = "net0"
		}
	}
	for i := range c.Addresses {
		if c.Addresses[i].Link == "eth0" {
			c.Addresses[i].Link = "net0"
		}
	}
	c.Locks[0].Host = true
	must(t, a.loop.Wait(t.Context(), a.loop.Set(c), here.Owner(), "n1"))
	for _, at := range [][2]netip.Addr{{here.IPv4(), there.IPv4()}, {here.IPv6(), there.IPv6()}} {
		from := udp(t, a.lab.Path("host"), netip.AddrPortFrom(at[0], testPort))
		to := udp(t, there.NS.Path, netip.AddrPortFrom(at[1], testPort))
		exchange(t, from, to, netip.AddrPortFrom(at[1], testPort))
	}
}

// sendFragmented sends UDP to the VXLAN port so that the first fragment ends before the VNI.
func sendFragmented(t *testing.T, path string, src, dst netip.Addr, payload []byte) {
	t.Helper()
	f, err := netns.Open(path, 0)
	must(t, err)
	defer f.Close()
	datagram := binary.BigEndian.AppendUint16(nil, 9999)
	datagram = binary.BigEndian.AppendUint16(datagram, datapathtest.Port)
	datagram = binary.BigEndian.AppendUint16(datagram, uint16(8+len(payload)))
	datagram = append(append(datagram, 0, 0), payload...)
	must(t, netns.Do(f, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, part := range []struct {
			data []byte
			frag uint16
		}{{datagram[:8], 0x2000}, {datagram[8:], 1}} {
			p := []byte{0x45, 0, 0, 0, 0x12, 0x34, byte(part.frag >> 8), byte(part.frag), 64, unix.IPPROTO_UDP, 0, 0}
			p = append(append(append(p, src.AsSlice()...), dst.AsSlice()...), part.data...)
			binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
			if err := unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: dst.As4()}); err != nil {
				return err
			}
		}
		return nil
	}))
}

// watch collects what rtnetlink tells about links, addresses and neighbours, from the end of the
// detection of duplicate addresses on, which is told of, too.
func watch(t *testing.T, path string) (events func() int) {
	t.Helper()
	becomes(t, "the end of address detection", func() bool { return ip(t, path, "-oneline", "addr", "show", "tentative") == "" })
	f, err := netns.Open(path, 0)
	must(t, err)
	defer f.Close()
	var c *conn
	must(t, netns.Do(f, func() (err error) {
		c, err = dial()
		return err
	}))
	t.Cleanup(c.close)
	fd := c.sockets[unix.NETLINK_ROUTE].Socket.GetFd()
	for _, group := range []int{unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NSID} {
		must(t, unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group))
	}
	return func() (n int) {
		b := make([]byte, 1<<16)
		for {
			size, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
			if err != nil {
				return n
			}
			messages, err := syscall.ParseNetlinkMessage(b[:size])
			must(t, err)
			for _, m := range messages {
				if _, _, state, ok := parseNeighbor(m.Data); m.Header.Type == unix.RTM_NEWNEIGH && ok && state&unix.NUD_PERMANENT == 0 {
					continue // address resolution goes its way
				}
				n++
			}
		}
	}
}

// TestRestart: a daemon that starts again touches nothing that is right.
func TestRestart(t *testing.T) {
	hosts := underlay(t, 2)
	a, _ := twoNodes(t, hosts)
	e := datapathtest.Endpoint{N: 1, NS: a.Workload(t, "w1")}
	a.o.Endpoints = []datapathtest.Endpoint{e, {N: 2, Make: "w2"}, {N: 3, VTEP: vtep(1)}}
	a.apply(t, e.Owner())
	a.stop()
	a.Close()

	paths := []string{a.lab.Path("host"), a.dir.Path("heddle-n1"), a.dir.Path("w2"), e.NS.Path}
	var events []func() int
	for _, p := range paths {
		events = append(events, watch(t, p))
	}
	before := ruleset4(t, a.host)
	locksBefore := run(t, a.dir.Path("heddle-n1"), "nft", "-a", "list", "ruleset") // a rule written anew has another handle
	h := &host{Kernel: New(Config{Host: a.lab.Path("host"), Netns: a.dir}), dir: a.dir, lab: a.lab}
	t.Cleanup(h.Close) // after the loop has ended
	again := startNode(t, h, a.o)
	again.apply(t, e.Owner())
	if s := again.loop.Status(); s.Ops != 0 {
		t.Errorf("%d operations", s.Ops)
	}
	for i, n := range events {
		if n := n(); n != 0 {
			t.Errorf("%d events in %s", n, paths[i])
		}
	}
	if locks := run(t, a.dir.Path("heddle-n1"), "nft", "-a", "list", "ruleset"); locks != locksBefore {
		t.Errorf("the rules of the network were\n%s\nand are\n%s", locksBefore, locks)
	}
	if after := ruleset4(t, a.host); !bytes.Equal(before, after) {
		t.Errorf("the filter changed:\n%s\n%s", before, after)
	}
	again.o.Endpoints = nil
	again.apply(t)
	must(t, again.loop.Wait(t.Context(), again.loop.Set(datapath.Config{})))
	if names, _ := h.dir.List(); len(names) > 0 {
		t.Errorf("an empty Config leaves namespaces %v", names)
	}
	if s, err := h.Read(t.Context(), &datapath.Config{}); err != nil || s.String() != "\n" {
		t.Errorf("an empty Config leaves\n%s%v", s, err)
	}
}

// ruleset4 is what nf_tables says about its generation: it changes with every transaction.
func ruleset4(t *testing.T, h *host) []byte {
	t.Helper()
	k := New(Config{Host: h.lab.Path("host"), Netns: h.dir})
	defer k.Close()
	f, _, err := k.readFilter(datapath.NS{})
	must(t, err)
	gen, err := k.nft.GetGen()
	must(t, err)
	return fmt.Appendf(nil, "generation %d %v", gen.ID, f)
}
