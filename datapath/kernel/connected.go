package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

// States of TCP (net/tcp_states.h) in which a connection may still carry what one of its ends waits
// for: also those in which what was sent before the end is not acknowledged yet.
const busyStates = 1<<1 | // established
	1<<3 | // a SYN was answered
	1<<4 | // closed here, and not all was acknowledged
	1<<8 | // closed by the other side alone
	1<<9 | // closed by both, and not all was acknowledged
	1<<11 // the same, closed at the same time

// What sock_diag(7) has for the sockets of the internet families (linux/inet_diag.h).
const (
	sockDiagByFamily = 20
	inetDiagBytecode = 1
	inetDiagSource   = 7  // INET_DIAG_BC_S_COND
	inetDiagRequest  = 56 // bytes of struct inet_diag_req_v2
	inetDiagUnread   = 56 // where struct inet_diag_msg has the bytes that wait to be read
)

// Connected says whether a TCP connection stands in a namespace that has one of the addresses at its
// end there, or a UDP packet waits there to be read. Any goroutine may ask.
func (k *Kernel) Connected(ns datapath.NS, ips []netip.Addr) (is bool, err error) {
	path := k.pathOf(ns)
	f, err := netns.Open(path, ns.Inode)
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = netns.Do(f, func() error {
		if len(ips) == 0 {
			return nil
		}
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			if err := unread(family, func() { is = true }); err != nil {
				return fmt.Errorf("look for unread packets in %s: %w", path, err)
			}
		}
		for _, ip := range ips {
			for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} { // a socket of IPv6 may have an IPv4 connection
				if is || ip.Is6() && family == unix.AF_INET {
					continue
				}
				if err := connections(family, ip, func() { is = true }); err != nil {
					return fmt.Errorf("look for connections of %s in %s: %w", ip, path, err)
				}
			}
		}
		return nil
	})
	return is, err
}

// unread calls found for a socket of UDP in the calling thread's namespace that has something to be
// read. Most are bound to no address.
func unread(family uint8, found func()) error {
	body := make([]byte, inetDiagRequest)
	body[0], body[1] = family, unix.IPPROTO_UDP
	binary.NativeEndian.PutUint32(body[4:], ^uint32(0)) // in any state
	r := nl.NewNetlinkRequest(sockDiagByFamily, unix.NLM_F_DUMP)
	r.AddRawData(body)
	err := r.ExecuteIter(unix.NETLINK_INET_DIAG, 0, func(m []byte) bool {
		waits := len(m) >= inetDiagUnread+4 && binary.NativeEndian.Uint32(m[inetDiagUnread:]) > 0
		if waits {
			found()
		}
		return !waits
	})
	if errors.Is(err, unix.ENOENT) { // this kernel can't tell
		return nil
	}
	return err
}

// connections calls found for connections of the calling thread's namespace, until the first one:
// the kernel picks those with the address.
func connections(family uint8, ip netip.Addr, found func()) error {
	body := make([]byte, inetDiagRequest)
	body[0], body[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(body[4:], busyStates)
	m := request(sockDiagByFamily, 0, body).bytes(inetDiagBytecode, ofAddress(ip))
	r := nl.NewNetlinkRequest(int(m.typ), unix.NLM_F_DUMP)
	r.AddRawData(m.b)
	return r.ExecuteIter(unix.NETLINK_INET_DIAG, 0, func([]byte) bool { found(); return false })
}

// ofAddress is a program of one instruction for the kernel, which picks sockets with the address at
// their own end: struct inet_diag_bc_op and inet_diag_hostcond.
func ofAddress(ip netip.Addr) []byte {
	family := uint8(unix.AF_INET)
	if ip.Is6() {
		family = unix.AF_INET6
	}
	const anyPort = 0xffffffff
	size := 12 + ip.BitLen()/8
	b := []byte{inetDiagSource, uint8(size)}                 // with the address, go on behind it: the end
	b = binary.NativeEndian.AppendUint16(b, uint16(size+4))  // else go further: no
	b = append(b, family, uint8(ip.BitLen()), 0, 0)          // the whole address
	b = binary.NativeEndian.AppendUint32(b, uint32(anyPort)) // at any port
	return append(b, ip.AsSlice()...)
}
