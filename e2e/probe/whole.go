//go:build linux

package probe

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// whole -size N ADDR: sends an ICMP echo request as an IP packet of N bytes that nobody may take
// apart, and fails unless it is answered within a second. Where the packet is too long for what
// the host knows of the way, the error says so ("message too long").
func whole(args []string) error {
	f := flag.NewFlagSet("whole", flag.ExitOnError)
	size := f.Int("size", 0, "bytes of the IP packet, its header included")
	_ = f.Parse(args)
	addr, err := netip.ParseAddr(f.Arg(0))
	if err != nil {
		return err
	}
	p, err := dialEcho(addr)
	if err != nil {
		return err
	}
	defer p.conn.Close()
	header, level, option, value := 20, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	if addr.Is6() {
		header, level, option, value = 40, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1
	}
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), level, option, value) }); err != nil || set != nil {
		return errors.Join(err, set)
	}
	if err := p.sendOf(*size-header, 0); err != nil {
		return err
	}
	_ = p.conn.SetReadDeadline(time.Now().Add(time.Second))
	answer := make([]byte, 1<<16)
	for {
		n, _, err := p.conn.ReadFromIP(answer)
		if late, is := errors.AsType[net.Error](err); is && late.Timeout() {
			return fmt.Errorf("%s: no answer to a packet of %d bytes", addr, *size)
		}
		if err != nil {
			return err
		}
		if n == *size-header && answer[0] == p.reply {
			return nil
		}
	}
}
