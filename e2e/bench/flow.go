//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/e2e/lab"
)

// The flows are sockets of this process in the workloads' namespaces, and a run of one takes
// some milliseconds: so two ways can be measured one right after the other, in far more pairs
// than with programs that must start and connect first, and what else the machine does meets
// both. iperf3 has a second's grain, and spends more on its own loop for each small packet
// than the overlay does.

// way is how one workload reaches another: by an overlay, or by what it is compared with.
type way struct {
	from, to string // paths of the workloads' network namespaces
	addr     map[family]netip.Addr
	via      map[family]netip.Addr // an address that leads to addr; zero is addr itself
	// processes says that processes carry the packets: what sends and receives leaves them room on
	// all cores, and since all is slower there are a quarter of the bytes and of the pairs.
	processes bool
}

type family string

const (
	ipv4 family = "IPv4"
	ipv6 family = "IPv6"
)

// flow is a connected pair of sockets.
type flow struct {
	out, in int // file descriptors
	send    func(out, in int) (float64, error)
}

// run sends a fixed amount and returns what arrived in a second: Gbit or 1,000 packets.
func (f flow) run() (float64, error) { return f.send(f.out, f.in) }

func (f flow) close() {
	unix.Close(f.out)
	unix.Close(f.in)
}

const (
	flowPort    = 7001
	streamBytes = 16 << 20
	streamChunk = 128 << 10
	burst       = 500 // packets, which take some 5 ms
	payload     = 64  // bytes in each
	stalled     = 5   // seconds after which a stream is given up
)

// stream opens a TCP connection.
func (w way) stream(f family) (flow, error) {
	if !w.processes {
		return w.open(f, unix.SOCK_STREAM, func(out, in int) (float64, error) { return sendStream(out, in, streamBytes, pinned) })
	}
	return w.open(f, unix.SOCK_STREAM, func(out, in int) (float64, error) { return sendStream(out, in, streamBytes/4, anywhere) })
}

// packets opens a pair of UDP sockets.
func (w way) packets(f family) (flow, error) { return w.open(f, unix.SOCK_DGRAM, sendBurst) }

func (w way) open(f family, kind int, send func(out, in int) (float64, error)) (flow, error) {
	out, in, err := w.sockets(f, kind)
	if err != nil {
		return flow{}, fmt.Errorf("open a flow to %s: %w", w.addr[f], err)
	}
	return flow{out, in, send}, nil
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: flowPort, Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: flowPort, Addr: a.As16()}
}

func domainOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (w way) sockets(f family, kind int) (out, in int, err error) {
	domain, sa, to := domainOf(w.addr[f]), sockaddr(w.addr[f]), sockaddr(w.addr[f])
	if via := w.via[f]; via.IsValid() {
		to = sockaddr(via)
	}
	in, err = socketIn(w.to, domain, kind)
	if err != nil {
		return 0, 0, err
	}
	if err = unix.Bind(in, sa); err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(in, 1)
	}
	if err == nil {
		out, err = socketIn(w.from, domain, kind)
	}
	if err != nil {
		unix.Close(in)
		return 0, 0, err
	}
	err = unix.Connect(out, to)
	if err == nil && kind == unix.SOCK_STREAM {
		listener := in
		in, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
		unix.Close(listener)
	}
	if err != nil {
		unix.Close(out)
		unix.Close(in)
	}
	return out, in, err
}

// socketIn makes a socket in a namespace, where it stays whoever uses it. It gives up after
// some seconds, and holds a whole burst.
func socketIn(ns string, domain, kind int) (fd int, err error) {
	err = lab.InNetNS(ns, func() error {
		fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return 0, err
	}
	limit := unix.Timeval{Sec: stalled}
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	if kind == unix.SOCK_DGRAM {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, burst*4096))
	}
	if err != nil {
		unix.Close(fd)
	}
	return fd, err
}

// sendStream sends on one core and reads on another, until all has arrived.
func sendStream(out, in, size int, on func(core int, step func() error) <-chan error) (float64, error) {
	cores := cores()
	begin := time.Now()
	sent := on(cores[0], func() error {
		chunk := make([]byte, streamChunk)
		for left := size; left > 0; {
			n, err := unix.Write(out, chunk[:min(left, len(chunk))])
			if err != nil && err != unix.EINTR {
				return fmt.Errorf("write: %w", err)
			}
			left -= max(n, 0)
		}
		return nil
	})
	read := on(cores[len(cores)-1], func() error {
		chunk := make([]byte, streamChunk)
		for left := size; left > 0; {
			n, err := unix.Read(in, chunk)
			if n == 0 {
				err = io.ErrUnexpectedEOF
			}
			if err != nil && err != unix.EINTR {
				return fmt.Errorf("read: %d bytes before the end: %w", left, err)
			}
			left -= max(n, 0)
		}
		return nil
	})
	err := <-read
	took := time.Since(begin)
	return 8e-9 * float64(size) / took.Seconds(), errors.Join(err, <-sent)
}

// sendBurst sends packets and counts those that stand in the receiver's queue right after the
// last: a packet's whole way, from the write to that queue, is the work of the sender's core.
func sendBurst(out, in int) (rate float64, err error) {
	err = <-pinned(cores()[0], func() error {
		packet := make([]byte, payload)
		begin := time.Now()
		for range burst {
			if _, err := unix.Write(out, packet); err != nil && err != unix.EINTR {
				return fmt.Errorf("write: %w", err)
			}
		}
		took := time.Since(begin)
		arrived := 0
		for {
			n, _, err := unix.Recvfrom(in, packet, unix.MSG_DONTWAIT)
			if err == unix.EAGAIN {
				break
			}
			if err != nil && err != unix.EINTR {
				return fmt.Errorf("read: %w", err)
			}
			if n == payload {
				arrived++
			}
		}
		rate = 1e-3 * float64(min(arrived, burst)) / took.Seconds()
		return nil
	})
	return rate, err
}

// cores are those that this process may run on.
func cores() (out []int) {
	var set unix.CPUSet
	_ = unix.SchedGetaffinity(0, &set)
	for i := 0; len(out) < set.Count(); i++ {
		if set.IsSet(i) {
			out = append(out, i)
		}
	}
	return out
}

// pinned runs a step on a core, before whatever else wants it.
func pinned(core int, step func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		var set unix.CPUSet
		set.Set(core)
		err := unix.SchedSetaffinity(0, &set)
		// Where that is not allowed, others disturb more.
		_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}, 0)
		if err == nil {
			err = step()
		}
		done <- err
	}()
	return done
}

// anywhere runs a step like any other.
func anywhere(_ int, step func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- step() }()
	return done
}

// rates are what two flows of the same kind gave, run in turns.
type rates struct{ ours, hand []float64 }

const (
	rounds = 10 // each with connections of its own, since two of the same kind can differ
	pairs  = 40 // in a round, and a quarter where processes carry the packets
)

// inTurns runs a flow of each of two ways in pairs, in alternating order.
func inTurns(ctx context.Context, pairs int, ours, hand func() (flow, error)) (r rates, err error) {
	for range rounds {
		if err := r.round(ctx, pairs, ours, hand); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *rates) round(ctx context.Context, pairs int, ours, hand func() (flow, error)) error {
	a, err := ours()
	if err != nil {
		return err
	}
	defer a.close()
	b, err := hand()
	if err != nil {
		return err
	}
	defer b.close()
	for i := range pairs + 1 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var got [2]float64
		for turn := range got {
			which := (turn + i) % 2
			if got[which], err = []flow{a, b}[which].run(); err != nil {
				return err
			}
		}
		if got[1] == 0 {
			return errors.New("nothing of a burst arrived")
		}
		if i > 0 { // the first warms up
			r.ours, r.hand = append(r.ours, got[0]), append(r.hand, got[1])
		}
	}
	return nil
}

// ratios are those within the pairs.
func (r rates) ratios() (out []float64) {
	for i := range r.ours {
		out = append(out, r.ours[i]/r.hand[i])
	}
	return out
}

// medianInterval is where the median lies at 95 %, whatever the distribution: between two of
// the sorted samples, by the binomial distribution's normal approximation.
func medianInterval(samples []float64) (low, high float64) {
	s := slices.Sorted(slices.Values(samples))
	n := float64(len(s))
	away := 1.96 * math.Sqrt(n) / 2
	return s[max(0, int(math.Floor(n/2-away)))], s[min(len(s)-1, int(math.Ceil(n/2+away)))]
}
