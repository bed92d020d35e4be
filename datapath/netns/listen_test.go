package netns

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// A socket is where it was opened: who is elsewhere finds it free. Its address need not be there yet.
func TestListen(t *testing.T) {
	d := newDir(t)
	if err := d.Make("a", nothing); err != nil {
		t.Fatal(err)
	}
	ns, err := Open(d.Path("a"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	want, err := InodeOf(ns)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"10.99.0.1:53", "[fd00:99::1]:53"} {
		for _, proto := range []string{"udp", "tcp"} {
			f, err := Listen(ns, proto, netip.MustParseAddrPort(at))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if got, err := OfSocket(f); err != nil || got != want {
				t.Errorf("%s %s is in %d (%v), want %d", proto, at, got, err, want)
			}
			var bound string
			if proto == "udp" {
				c, err := net.FilePacketConn(f)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				bound = c.LocalAddr().String()
				_ = c.SetReadDeadline(time.Unix(1, 0)) // works on what does not block
				if _, _, err := c.ReadFrom(make([]byte, 1)); err == nil {
					t.Error("something was read")
				}
			} else {
				l, err := net.FileListener(f)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				bound = l.Addr().String()
			}
			if bound != at {
				t.Errorf("%s is bound to %s, want %s", proto, bound, at)
			}
			if _, err := Listen(ns, proto, netip.MustParseAddrPort(at)); err == nil {
				t.Errorf("%s %s was opened twice", proto, at)
			}
		}
	}
}
