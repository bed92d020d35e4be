//go:build linux

package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// Captured is what capture prints: of the frames that a link has sent and got, on whatever port,
// how many there were, how many had the text, how many were fragments of IP packets, and how many
// came too fast to be looked at.
type Captured struct {
	Frames, Found, Fragments, Missed int
}

// capture [-dev eth0] -find TEXT: looks at all frames of a link until SIGINT. It prints a line when
// it has begun and, at the end, a Captured as JSON.
func capture(args []string) error {
	f := flag.NewFlagSet("capture", flag.ExitOnError)
	dev := f.String("dev", "eth0", "link")
	text := f.String("find", "", "what to look for")
	_ = f.Parse(args)
	stop, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer cancel()
	s, err := openPackets(*dev)
	if err != nil {
		return err
	}
	fmt.Println("capturing")
	var c Captured
	if err := s.each(stop, func(frame []byte, _ bool) {
		c.Frames++
		if *text != "" && bytes.Contains(frame, []byte(*text)) {
			c.Found++
		}
		if isFragment(frame) {
			c.Fragments++
		}
	}); err != nil {
		return err
	}
	st, err := unix.GetsockoptTpacketStats(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return err
	}
	c.Missed = int(st.Drops)
	return json.NewEncoder(os.Stdout).Encode(c)
}

// packets is a packet socket of a link.
type packets struct{ fd int }

func openPackets(dev string) (packets, error) {
	link, err := net.InterfaceByName(dev)
	if err != nil {
		return packets{}, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // nothing yet
	if err != nil {
		return packets{}, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000})
	}
	if err == nil {
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
	}
	return packets{fd}, err
}

// each calls fn with every frame, and whether it leaves, until stop, and then with those that wait;
// there may always be more to come.
func (p packets) each(stop context.Context, fn func(frame []byte, leaves bool)) error {
	buf := make([]byte, 1<<17)
	var end time.Time
	for {
		n, from, err := unix.Recvfrom(p.fd, buf, 0)
		switch err {
		case nil:
			link, ok := from.(*unix.SockaddrLinklayer)
			fn(buf[:n], ok && link.Pkttype == unix.PACKET_OUTGOING)
		case unix.EAGAIN, unix.EINTR, unix.ENETDOWN:
		default:
			return err
		}
		switch stopped := stop.Err() != nil; {
		case stopped && end.IsZero():
			end = time.Now().Add(50 * time.Millisecond)
		case stopped && (err == unix.EAGAIN || time.Now().After(end)):
			return nil
		}
	}
}

// isFragment says whether an Ethernet frame has the first part of an IP packet to a port of a
// tunnel's: VXLAN's or WireGuard's.
func isFragment(f []byte) bool {
	const ethernet = 14
	if len(f) < ethernet+20 {
		return false
	}
	ip, udp := f[ethernet:], 0
	switch binary.BigEndian.Uint16(f[12:]) {
	case unix.ETH_P_IP:
		if binary.BigEndian.Uint16(ip[6:])&0x3fff == 0x2000 && ip[9] == unix.IPPROTO_UDP { // more come, and this is at 0
			udp = int(ip[0]&0x0f) * 4
		}
	case unix.ETH_P_IPV6:
		const header = 40
		if len(ip) > header+8 && ip[6] == unix.IPPROTO_FRAGMENT && ip[header] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(ip[header+2:])&0xfff9 == 1 {
			udp = header + 8
		}
	}
	if udp == 0 || len(ip) < udp+4 {
		return false
	}
	port := binary.BigEndian.Uint16(ip[udp+2:])
	return port == vxlanPort || port == wireguardPort
}

const vxlanPort, wireguardPort = 4789, 5379
