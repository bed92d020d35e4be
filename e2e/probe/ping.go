//go:build linux

package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ping [-c 1] [-i 100ms] [-w 1s] ADDR...: sends ICMP echo requests to each address, the first at
// once, each after a fixed interval whether or not answers come, and fails unless all are answered.
// -w is how long to wait after the last one. With -c 0 it goes on until SIGINT. It prints a line for
// each address: how many were sent and answered, and the longest time without an answer; and one
// for each time without answers.
func ping(args []string) error {
	f := flag.NewFlagSet("ping", flag.ExitOnError)
	count := f.Int("c", 1, "how many; 0 is until SIGINT")
	interval := f.Duration("i", 100*time.Millisecond, "between two")
	wait := f.Duration("w", time.Second, "after the last")
	_ = f.Parse(args)
	stop, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer cancel()
	errs := make([]error, f.NArg())
	said := make([]string, f.NArg())
	var all sync.WaitGroup
	for i, arg := range f.Args() {
		addr, err := netip.ParseAddr(arg)
		if err != nil {
			return err
		}
		p, err := dialEcho(addr)
		if err != nil {
			return err
		}
		defer p.conn.Close()
		all.Go(func() {
			p.run(stop, *count, *interval, *wait)
			said[i], errs[i] = p.report()
			if f.NArg() > 1 {
				said[i] = arg + ": " + said[i]
			}
		})
	}
	all.Wait()
	fmt.Print(strings.Join(said, ""))
	return errors.Join(errs...)
}

type pinger struct {
	addr    netip.Addr
	conn    *net.IPConn
	id      uint16
	request byte // ICMP types
	reply   byte

	sent     []time.Time // of each request
	answered []time.Time // of its first answer; zero: none
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
	_ = p.sendOf(64, seq) // a failed one is one without an answer
}

// sendOf sends a request of so many bytes, without the IP header.
func (p *pinger) sendOf(size int, seq uint16) error {
	m := make([]byte, size)
	m[0] = p.request
	binary.BigEndian.PutUint16(m[4:], p.id)
	binary.BigEndian.PutUint16(m[6:], seq)
	if p.addr.Is4() { // the kernel sums ICMPv6 itself
		binary.BigEndian.PutUint16(m[2:], checksum(m))
	}
	_, err := p.conn.Write(m)
	return err
}

func (p *pinger) run(stop context.Context, count int, interval, wait time.Duration) {
	answers := make(chan uint16, 1024)
	go p.listen(answers)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var end <-chan time.Time
	quit, got := stop.Done(), 0
	finish := func() {
		tick.Stop()
		quit, end = nil, time.After(wait)
	}
	next := func() {
		p.sent, p.answered = append(p.sent, time.Now()), append(p.answered, time.Time{})
		p.send(uint16(len(p.sent) - 1))
		if len(p.sent) == count {
			finish()
		}
	}
	next()
	for end == nil || got < len(p.sent) {
		select {
		case <-tick.C:
			if end == nil {
				next()
			}
		case <-quit:
			finish()
		case seq := <-answers:
			last := len(p.sent) - 1
			i := last - int(uint16(last)-seq) // sequence numbers wrap
			if i >= 0 && p.answered[i].IsZero() {
				p.answered[i] = time.Now()
				got++
			}
		case <-end:
			return
		}
	}
}

// report tells what came back, and is an error unless everything did.
func (p *pinger) report() (string, error) {
	var (
		lines   strings.Builder
		got     int
		longest time.Duration
		last    = p.sent[0] // when the last answer came
	)
	for i := 0; i < len(p.sent); i++ {
		if at := p.answered[i]; !at.IsZero() {
			got++
			longest, last = max(longest, at.Sub(last)), at
			continue
		}
		first, until := i, time.Now()
		for i+1 < len(p.sent) && p.answered[i+1].IsZero() {
			i++
		}
		if i+1 < len(p.sent) {
			until = p.sent[i+1]
		} else {
			longest = max(longest, until.Sub(last))
		}
		fmt.Fprintf(&lines, "no answers from %s for %s (%d requests)\n",
			p.sent[first].Format("15:04:05.000"), until.Sub(p.sent[first]).Round(time.Millisecond), i-first+1)
	}
	said := fmt.Sprintf("sent %d, answered %d, longest gap %s\n%s", len(p.sent), got, longest.Round(time.Millisecond), lines.String())
	if got < len(p.sent) {
		return said, fmt.Errorf("%s: %d of %d echo requests have no answer", p.addr, len(p.sent)-got, len(p.sent))
	}
	return said, nil
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
