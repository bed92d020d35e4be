package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

var (
	broadcast = datapath.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes  = datapath.MAC{0x33, 0x33, 0, 0, 0, 1} // of ff02::1
)

// announce sends the entry to the ports of its bridge that take broadcast and multicast: the
// workloads' of this node.
func (k *Kernel) announce(n datapath.Neighbor) error {
	h, i, err := k.linkIn(n.NS, n.Link)
	if err != nil {
		return err
	}
	if h.packets == 0 {
		err = netns.Do(h.file, func() (err error) {
			h.packets, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			return err
		})
		if err != nil {
			h.packets = 0
			return fmt.Errorf("open packet socket: %w", err)
		}
	}
	frame, to := gratuitousARP(n.IP, n.MAC), broadcast
	if n.IP.Is6() {
		frame, to = unsolicitedNA(n.IP, n.MAC), allNodes
	}
	at := &unix.SockaddrLinklayer{Ifindex: int(i), Halen: 6}
	copy(at.Addr[:], to[:])
	err = unix.Sendto(h.packets, frame, 0, at)
	if errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENOBUFS) { // nobody is there to hear it
		return nil
	}
	return err
}

func ethernet(to, from datapath.MAC, proto uint16) []byte {
	return binary.BigEndian.AppendUint16(append(to[:len(to):len(to)], from[:]...), proto)
}

// gratuitousARP is an ARP request for the address by its owner (RFC 826, RFC 5227).
func gratuitousARP(ip netip.Addr, mac datapath.MAC) []byte {
	b := ethernet(broadcast, mac, unix.ETH_P_ARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, request
	b = append(append(b, mac[:]...), ip.AsSlice()...)
	return append(append(b, make([]byte, 6)...), ip.AsSlice()...)
}

// unsolicitedNA is a neighbour advertisement to all nodes that overrides what they have (RFC
// 4861, section 4.4).
func unsolicitedNA(ip netip.Addr, mac datapath.MAC) []byte {
	const override = 0x20
	from, to := ip.As16(), netip.MustParseAddr("ff02::1").As16()
	body := append([]byte{136, 0, 0, 0, override, 0, 0, 0}, from[:]...)
	body = append(append(body, 2, 1), mac[:]...) // target link-layer address
	pseudo := append(append(append([]byte{}, from[:]...), to[:]...), 0, 0, 0, byte(len(body)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	binary.BigEndian.PutUint16(body[2:], checksum(append(pseudo, body...)))
	b := ethernet(allNodes, mac, unix.ETH_P_IPV6)
	b = append(b, 0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, 255)
	return append(append(append(b, from[:]...), to[:]...), body...)
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
