package kernel

import (
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/heddle-net/heddle/datapath"
)

// A connection counts for the address that it has, in the namespace where it is, until all that was
// sent by it has arrived.
func TestConnected(t *testing.T) {
	h := newHost(t)
	ns := h.Workload(t, "web")
	ip(t, ns.Path, "link", "set", "lo", "up")
	for _, a := range []string{"10.0.0.2/32", "10.0.0.3/32", "fd00::2/128", "fd00::3/128"} {
		ip(t, ns.Path, "addr", "add", a, "dev", "lo", "nodad")
	}
	four, six := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")
	connected := func(want bool, when string, ns datapath.NS, ips ...netip.Addr) {
		t.Helper()
		if is, err := h.Connected(ns, ips); is != want || err != nil {
			t.Errorf("%s: connected %v, %v; want %v", when, is, err, want)
		}
	}
	for _, tc := range []struct {
		name         string
		listen, from string
		at, other    netip.Addr
	}{
		{"IPv4", "10.0.0.2:80", "10.0.0.3:0", four, six},
		{"IPv4 by a socket of IPv6", "[::]:81", "10.0.0.3:0", four, six},
		{"IPv6", "[fd00::2]:82", "[fd00::3]:0", six, four},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var l net.Listener
			var near, far net.Conn
			inside(t, ns.Path, func() (err error) { l, err = net.Listen("tcp", tc.listen); return err })
			defer l.Close()
			connected(false, "who listens", ns, four, six)
			to := netip.AddrPortFrom(tc.at, uint16(l.Addr().(*net.TCPAddr).Port)).String()
			inside(t, ns.Path, func() (err error) {
				d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(tc.from))}
				near, err = d.Dial("tcp", to)
				return err
			})
			defer near.Close()
			connected(true, "nobody has accepted it yet", ns, four, six)
			far, err := l.Accept()
			must(t, err)
			defer far.Close()
			connected(true, "it stands", ns, tc.at)
			connected(false, "another address", ns, tc.other)
			connected(false, "no address", ns)
			connected(false, "another namespace", datapath.NS{}, tc.at)
			must(t, near.Close())
			connected(true, "the client has closed its side", ns, tc.at)
			_, err = io.ReadAll(far)
			must(t, err)
			must(t, far.Close())
			connected(false, "it is over", ns, four, six)
		})
	}
	t.Run("a packet of UDP", func(t *testing.T) {
		var at, from net.PacketConn
		inside(t, ns.Path, func() (err error) { at, err = net.ListenPacket("udp", ":53"); return err })
		defer at.Close()
		inside(t, ns.Path, func() (err error) { from, err = net.ListenPacket("udp", "10.0.0.3:0"); return err })
		defer from.Close()
		connected(false, "nobody has sent one", ns, four)
		_, err := from.WriteTo([]byte("?"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(four, 53)))
		must(t, err)
		connected(true, "it waits", ns, four)
		_, _, err = at.ReadFrom(make([]byte, 10))
		must(t, err)
		connected(false, "it was read", ns, four)
	})
	h.EndWorkload(t, ns)
	if _, err := h.Connected(ns, []netip.Addr{four}); datapath.FaultOf(err) != datapath.NoNamespace {
		t.Errorf("the namespace is gone: %v", err)
	}
}
