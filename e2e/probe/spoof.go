//go:build linux

package probe

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/e2e/frames"
)

// spoof -me STATION -other STATION -gateway STATION [-dev eth0]: sends each honest and each forged
// frame once from a raw socket of this workload, and prints how many there are of each kind as
// JSON. A STATION is MAC,IP4,IP6; an address that is missing is empty.
func spoof(args []string) error {
	f := flag.NewFlagSet("spoof", flag.ExitOnError)
	var stations [3]frames.Station
	for i, name := range []string{"me", "other", "gateway"} {
		f.Func(name, "MAC,IP4,IP6", func(s string) (err error) {
			stations[i], err = parseStation(s)
			return err
		})
	}
	dev := f.String("dev", "eth0", "interface")
	_ = f.Parse(args)
	link, err := net.InterfaceByName(*dev)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	kinds := map[string]int{}
	for _, frame := range frames.From(stations[0], stations[1], stations[2]) {
		if err := unix.Sendto(fd, frame.Bytes, 0, &unix.SockaddrLinklayer{Ifindex: link.Index, Halen: 6}); err != nil {
			return fmt.Errorf("send %s: %w", frame.Name, err)
		}
		kinds[frame.Kind]++
	}
	return json.NewEncoder(os.Stdout).Encode(kinds)
}

func parseStation(s string) (out frames.Station, err error) {
	parts := strings.Split(s, ",")
	if len(parts) != 3 {
		return out, errors.New("a station is MAC,IP4,IP6")
	}
	out.MAC, err = net.ParseMAC(parts[0])
	for i, ip := range []*netip.Addr{&out.IP4, &out.IP6} {
		if a := parts[1+i]; a != "" && err == nil {
			*ip, err = netip.ParseAddr(a)
		}
	}
	return out, err
}
