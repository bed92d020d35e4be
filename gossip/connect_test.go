//go:build linux

package gossip

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A SYN that is lost does not hold up a connection for the second after which the kernel sends it
// again: here a listener drops all that come while its queue is full.
func TestALostSYN(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil { // room for one
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port)).String()
	first, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()

	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if c, err := connect(short, addr); err == nil {
		c.Close()
		t.Fatal("the listener takes more than one")
	}
	begin := time.Now()
	room := time.AfterFunc(connectEvery/2, func() {
		if taken, _, err := unix.Accept(fd); err == nil {
			unix.Close(taken)
		}
	})
	defer room.Stop()
	c, err := connect(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if took := time.Since(begin); took > 800*time.Millisecond {
		t.Errorf("it took %s", took)
	}
}

// Who refuses does so at once.
func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	begin := time.Now()
	if _, err := connect(t.Context(), l.Addr().String()); err == nil || time.Since(begin) > connectEvery {
		t.Errorf("after %s: %v", time.Since(begin), err)
	}
}
