//go:build linux

package probe

import (
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// forge -to HOST:4789 -vni N -src-mac M -dst-mac M -src A -dst A -port P [-n 10]: sends VXLAN
// frames (RFC 7348) with a UDP packet inside, from a plain socket of this host.
func forge(args []string) error {
	f := flag.NewFlagSet("forge", flag.ExitOnError)
	to := f.String("to", "", "VTEP to send to, ADDR:PORT")
	vni := f.Uint("vni", 0, "VXLAN network identifier")
	srcMAC, dstMAC := f.String("src-mac", "02:00:00:00:00:01", ""), f.String("dst-mac", "", "")
	src, dst := f.String("src", "", "inner IPv4"), f.String("dst", "", "inner IPv4")
	port := f.Uint("port", 7777, "inner UDP port")
	n := f.Int("n", 10, "how many")
	_ = f.Parse(args)
	inner, err := udpFrame(*srcMAC, *dstMAC, *src, *dst, uint16(*port))
	if err != nil {
		return err
	}
	conn, err := net.Dial("udp", *to)
	if err != nil {
		return err
	}
	defer conn.Close()
	frame := make([]byte, 8, 8+len(inner))
	frame[0] = 0x08 // the VNI is valid
	binary.BigEndian.PutUint32(frame[4:], uint32(*vni)<<8)
	frame = append(frame, inner...)
	for range *n {
		if _, err := conn.Write(frame); err != nil {
			return err
		}
	}
	return nil
}

func udpFrame(srcMAC, dstMAC, src, dst string, port uint16) ([]byte, error) {
	sm, err := net.ParseMAC(srcMAC)
	if err != nil {
		return nil, err
	}
	dm, err := net.ParseMAC(dstMAC)
	if err != nil {
		return nil, err
	}
	s, err := netip.ParseAddr(src)
	if err != nil {
		return nil, err
	}
	d, err := netip.ParseAddr(dst)
	if err != nil {
		return nil, err
	}
	if !s.Is4() || !d.Is4() {
		return nil, fmt.Errorf("forge: %s and %s must be IPv4", s, d)
	}
	payload := []byte("forged")
	ip := make([]byte, 28, 28+len(payload)) // IPv4 and UDP headers, RFC 791 and 768
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(payload)))
	copy(ip[12:], s.AsSlice())
	copy(ip[16:], d.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], checksum(ip[:20]))
	binary.BigEndian.PutUint16(ip[20:], port)
	binary.BigEndian.PutUint16(ip[22:], port)
	binary.BigEndian.PutUint16(ip[24:], uint16(8+len(payload))) // no UDP checksum
	ip = append(ip, payload...)
	return append(append(append(dm, sm...), 0x08, 0x00), ip...), nil
}

// count [-port 7777] [-for 1s]: prints how many UDP packets come in that time. It prints a
// line first when it listens.
func count(args []string) error {
	f := flag.NewFlagSet("count", flag.ExitOnError)
	port := f.Int("port", 7777, "UDP port")
	long := f.Duration("for", time.Second, "how long")
	_ = f.Parse(args)
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: *port})
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprintln(os.Stderr, "listening")
	_ = conn.SetReadDeadline(time.Now().Add(*long))
	got, buf := 0, make([]byte, 2048)
	for {
		if _, err := conn.Read(buf); err != nil {
			fmt.Println(got)
			return nil
		}
		got++
	}
}
