package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// Frames says what of a workload's packets was answered by another's. That a port is closed is an
// answer, too. Summed packets go out with their checksum; with the others it is left to the device
// at the end of the host, which some of them get wrong inside VXLAN.
type Frames struct {
	Echo                 bool
	TCP, UDP             bool
	SummedTCP, SummedUDP bool
}

const discardPort = 9 // where hardly anybody listens

// TryFrames sends from one workload's address to another's until all is answered or ctx ends. Any
// goroutine may call it.
func (k *Kernel) TryFrames(ctx context.Context, ns datapath.NS, from, to netip.Addr) (f Frames, err error) {
	family := map[bool]string{true: "4", false: "6"}[to.Is4()]
	var echo, rawUDP, rawTCP *net.IPConn
	var udp *net.UDPConn
	err = k.visit(ns, func() (err error) {
		open := func(c **net.IPConn, network string) {
			if err == nil {
				*c, err = dialIP(network, from, to)
			}
		}
		open(&rawUDP, "ip"+family+":udp")
		open(&rawTCP, "ip"+family+":tcp")
		if err == nil {
			echo, err = dialEcho(from, to)
		}
		if err == nil {
			udp, err = net.DialUDP("udp"+family, net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, discardPort)))
		}
		return err
	})
	for _, c := range []*net.IPConn{echo, rawUDP, rawTCP} {
		if c != nil {
			defer c.Close()
		}
	}
	if err != nil {
		return f, fmt.Errorf("try frames from %s to %s: %w", from, to, err)
	}
	defer udp.Close()
	var wg sync.WaitGroup
	wg.Go(func() { f.Echo = len(echoes(ctx, echo, to, []int{84})) > 0 })
	wg.Go(func() { f.UDP = answersDatagram(ctx, udp, []byte("heddle doctor")) })
	wg.Go(func() { f.SummedUDP = answersDatagram(ctx, rawUDP, summedUDP(from, to)) })
	wg.Go(func() { f.SummedTCP = answersSYN(ctx, rawTCP, from, to) })
	wg.Go(func() { f.TCP = k.connects(ctx, ns, from, to) })
	wg.Wait()
	return f, nil
}

// connects says whether a connection is taken or refused.
func (k *Kernel) connects(ctx context.Context, ns datapath.NS, from, to netip.Addr) (yes bool) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	_ = k.visit(ns, func() error {
		c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(to, discardPort).String())
		if err == nil {
			c.Close()
		}
		yes = err == nil || errors.Is(err, syscall.ECONNREFUSED)
		return nil
	})
	return yes
}

// answersDatagram says whether something comes back, be it that the port is closed.
func answersDatagram(ctx context.Context, c net.Conn, b []byte) (yes bool) {
	err := answers(ctx, c, func() { _, _ = c.Write(b) }, func(got []byte) bool { yes = len(got) > 0; return true })
	return yes || errors.Is(err, syscall.ECONNREFUSED)
}

// answersSYN says whether a first segment of TCP is answered, by the other side's kernel: this one
// knows of no connection, and ends it.
func answersSYN(ctx context.Context, c *net.IPConn, from, to netip.Addr) (yes bool) {
	b := summedSYN(from, to)
	answers(ctx, c, func() { _, _ = c.Write(b) }, func(got []byte) bool {
		yes = len(got) >= 4 && slices.Equal(got[:2], b[2:4]) && slices.Equal(got[2:4], b[:2])
		return yes
	})
	return yes
}

// summedUDP is a datagram to the discard port (RFC 768).
func summedUDP(from, to netip.Addr) []byte {
	b := append(make([]byte, 8), "heddle doctor."...)
	binary.BigEndian.PutUint16(b, anyPort())
	binary.BigEndian.PutUint16(b[2:], discardPort)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], transportChecksum(from, to, unix.IPPROTO_UDP, b))
	return b
}

// summedSYN is the first segment of a connection to the discard port (RFC 9293).
func summedSYN(from, to netip.Addr) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, anyPort())
	binary.BigEndian.PutUint16(b[2:], discardPort)
	binary.BigEndian.PutUint32(b[4:], rand.Uint32())
	b[12], b[13] = 5<<4, 0x02 // length in words; SYN
	binary.BigEndian.PutUint16(b[14:], 1024)
	binary.BigEndian.PutUint16(b[16:], transportChecksum(from, to, unix.IPPROTO_TCP, b))
	return b
}

func anyPort() uint16 { return uint16(49152 + rand.N(16384)) } // RFC 6335's dynamic ones

// transportChecksum is that of TCP and UDP, with the pseudo-header, of an even number of bytes.
func transportChecksum(from, to netip.Addr, proto byte, b []byte) uint16 {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
	pseudo = append(pseudo, 0, 0, 0, proto)
	return checksum(append(pseudo, b...))
}
