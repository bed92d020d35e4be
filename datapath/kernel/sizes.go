package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

const (
	echoHead  = 8 // bytes of an echo request before its data (RFC 792, RFC 4443)
	echoEvery = 200 * time.Millisecond
)

// Sizes says which packets of these sizes, in bytes with their IP header, reach an address in one
// piece: echo requests that nobody may cut. It waits for answers until ctx ends. Any goroutine may
// call it.
func (k *Kernel) Sizes(ctx context.Context, to netip.Addr, sizes []int) (passed []int, err error) {
	var c *net.IPConn
	err = k.visit(datapath.NS{}, func() (err error) {
		c, err = dialEcho(netip.Addr{}, to)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a socket for echo requests to %s: %w", to, err)
	}
	defer c.Close()
	if err := neverCut(c, to); err != nil {
		return nil, err
	}
	return echoes(ctx, c, to, sizes), nil
}

// dialEcho opens a socket for echo requests in the calling thread's namespace.
func dialEcho(from, to netip.Addr) (*net.IPConn, error) {
	network := "ip4:icmp"
	if to.Is6() {
		network = "ip6:ipv6-icmp"
	}
	return dialIP(network, from, to)
}

func dialIP(network string, from, to netip.Addr) (*net.IPConn, error) {
	var local *net.IPAddr
	if from.IsValid() {
		local = &net.IPAddr{IP: from.AsSlice()}
	}
	return net.DialIP(network, local, &net.IPAddr{IP: to.AsSlice(), Zone: to.Zone()})
}

// echoes sends echo requests of each size until all are answered or ctx ends, and returns the sizes
// that were, sorted.
func echoes(ctx context.Context, c *net.IPConn, to netip.Addr, sizes []int) (passed []int) {
	request, reply, head := byte(8), byte(0), 20
	if to.Is6() {
		request, reply, head = 128, 129, 40
	}
	id := uint16(rand.N(1 << 16))
	send := func() {
		for i, size := range sizes {
			if slices.Contains(passed, size) {
				continue
			}
			m := make([]byte, max(size-head, echoHead))
			m[0] = request
			binary.BigEndian.PutUint16(m[4:], id)
			binary.BigEndian.PutUint16(m[6:], uint16(i))
			if to.Is4() { // the kernel sums ICMPv6 itself
				binary.BigEndian.PutUint16(m[2:], checksum(append(slices.Clip(m), make([]byte, len(m)%2)...)))
			}
			_, _ = c.Write(m) // one that is too long for the link does not pass
		}
	}
	answers(ctx, c, send, func(b []byte) bool {
		if len(b) >= echoHead && b[0] == reply && binary.BigEndian.Uint16(b[4:]) == id {
			if i := int(binary.BigEndian.Uint16(b[6:])); i < len(sizes) && !slices.Contains(passed, sizes[i]) {
				passed = append(passed, sizes[i])
			}
		}
		return len(passed) == len(sizes)
	})
	slices.Sort(passed)
	return passed
}

// answers sends, now and again, and hands what comes in to enough, without an IPv4 header, until
// that is content or ctx ends. With an error that is no timeout it hands over nothing; it returns
// the last one.
func answers(ctx context.Context, c net.Conn, send func(), enough func(b []byte) bool) (last error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, raw := c.(*net.IPConn)
	buf := make([]byte, 1<<16)
	for ctx.Err() == nil {
		send()
		_ = c.SetReadDeadline(time.Now().Add(echoEvery))
		for ctx.Err() == nil {
			n, err := c.Read(buf)
			if t, is := err.(net.Error); is && t.Timeout() {
				break
			}
			if err != nil {
				last = err // what an ICMP message says of something sent
			}
			b := buf[:n]
			if raw && n > 0 && b[0]>>4 == 4 && c.RemoteAddr().(*net.IPAddr).IP.To4() != nil {
				b = b[min(n, int(b[0]&0xf)*4):]
			}
			if enough(b) {
				return last
			}
		}
	}
	return last
}

// neverCut makes a socket send whole packets alone, whatever is known of the path.
func neverCut(c *net.IPConn, to netip.Addr) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var opt error
	err = raw.Control(func(fd uintptr) {
		if to.Is4() {
			opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		} else {
			opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		}
	})
	if err == nil && opt != nil {
		err = fmt.Errorf("forbid to cut echo requests: %w", opt)
	}
	return err
}
