//go:build linux

package probe

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// ping [-c 1] [-i 100ms] [-w 1s] ADDR: sends ICMP echo requests, the first at once, each
// after a fixed interval whether or not answers come, and fails unless all are answered. -w
// is how long to wait after the last one. With -c 0 it goes on until SIGINT. It prints one
// line: how many were sent and answered, and the longest time without an answer.
func ping(args []string) error {
	f := flag.NewFlagSet("ping", flag.ExitOnError)
	count := f.Int("c", 1, "how many; 0 is until SIGINT")
	interval := f.Duration("i", 100*time.Millisecond, "between two")
	wait := f.Duration("w", time.Second, "after the last")
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
	answers := make(chan uint16, 1024)
	go p.listen(answers)
	return p.run(*count, *interval, *wait, answers)
}

type pinger struct {
	addr    netip.Addr
	conn    *net.IPConn
	id      uint16
	request byte // ICMP types
	reply   byte
}

func dialEcho(addr netip.Addr) (*pinger, error) {
	p := &pinger{addr: addr, id: uint16(os.Getpid()), request: 8, reply: 0}
	network := "ip4:icmp"
	if addr.Is6() {
		network, p.request, p.reply = "ip6:ipv6-icmp", 128, 129
	}
	var err error
	p.conn, err = net.DialIP(network, nil, &net.IPAddr{IP: addr.AsSlice(), Zone: addr.Zone()})
	return p, err
}

func (p *pinger) listen(answers chan<- uint16) {
	buf := make([]byte, 1500)
	for {
		n, _, err := p.conn.ReadFromIP(buf) // without the IP header
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && n >= 8 && buf[0] == p.reply && binary.BigEndian.Uint16(buf[4:]) == p.id {
			answers <- binary.BigEndian.Uint16(buf[6:])
		}
	}
}

func (p *pinger) send(seq uint16) {
	m := make([]byte, 64)
	m[0] = p.request
	binary.BigEndian.PutUint16(m[4:], p.id)
	binary.BigEndian.PutUint16(m[6:], seq)
	if p.addr.Is4() { // the kernel sums ICMPv6 itself
		binary.BigEndian.PutUint16(m[2:], checksum(m))
	}
	_, _ = p.conn.Write(m) // a failed one is one without an answer
}

func (p *pinger) run(count int, interval, wait time.Duration, answers <-chan uint16) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGINT, unix.SIGTERM)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var (
		sent, got int
		begin     = time.Now()
		seen      = map[uint16]bool{}
		last      = begin // when the last answer came
		gap       time.Duration
		end       <-chan time.Time
	)
	next := func() {
		p.send(uint16(sent))
		if sent++; sent == count {
			tick.Stop()
			end = time.After(wait)
		}
	}
	next()
	for done := false; !done; {
		select {
		case <-tick.C:
			if end == nil {
				next()
			}
		case <-stop:
			tick.Stop()
			if end == nil {
				end = time.After(wait)
			}
		case seq := <-answers:
			if seen[seq] {
				continue
			}
			seen[seq] = true
			got++
			gap, last = max(gap, time.Since(last)), time.Now()
			done = end != nil && got == sent
		case <-end:
			done = true
		}
		if len(seen) > 60000 { // sequence numbers wrap; these answers are long counted
			clear(seen)
		}
	}
	if got < sent {
		gap = max(gap, time.Since(last))
	}
	fmt.Printf("sent %d, answered %d, longest gap %s\n", sent, got, gap.Round(time.Millisecond))
	if got < sent {
		return fmt.Errorf("%s: %d of %d echo requests have no answer", p.addr, sent-got, sent)
	}
	return nil
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
