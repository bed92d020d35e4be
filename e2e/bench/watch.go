//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

// watcher notes when the kernel announces forwarding and neighbour entries of a network's
// namespace on one host.
type watcher struct {
	fd   int
	quit chan struct{}
	done chan struct{}

	mu   sync.Mutex
	seen map[string][]time.Time // new entries, by MAC
	gone map[string][]time.Time // forwarding entries that went
}

// watch starts a watcher; close ends it.
func watch(ctx context.Context, c *cluster.Cluster, h *lab.Host, network string) (*watcher, error) {
	var rows []cluster.Network
	if err := c.JSON(ctx, h, &rows, "network", "inspect", network); err != nil {
		return nil, err
	}
	if len(rows) != 1 || rows[0].Namespace == "" {
		return nil, fmt.Errorf("%s has no namespace of %s", h.Name(), network)
	}
	w, err := watchNS(h.Path("/run/netns/" + rows[0].Namespace))
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", h.Name(), err)
	}
	return w, nil
}

// watchNS watches the network namespace at a path.
func watchNS(path string) (*watcher, error) {
	w := &watcher{quit: make(chan struct{}), done: make(chan struct{}), seen: map[string][]time.Time{}, gone: map[string][]time.Time{}}
	err := lab.InNetNS(path, func() (err error) {
		w.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		_ = unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20) // thousands at once
		_ = unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
		return unix.Bind(w.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_NEIGH - 1)})
	})
	if err != nil {
		return nil, err
	}
	go w.read()
	return w, nil
}

func (w *watcher) close() {
	close(w.quit)
	<-w.done
	unix.Close(w.fd)
}

func (w *watcher) read() {
	defer close(w.done)
	buf := make([]byte, 64<<10)
	for {
		select {
		case <-w.quit:
			return
		default:
		}
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		if err != nil {
			continue // the time-out, which lets quit be seen
		}
		at := time.Now()
		w.mu.Lock()
		each(buf[:n], func(kind uint16, mac string) {
			switch kind {
			case unix.RTM_NEWNEIGH:
				w.seen[mac] = append(w.seen[mac], at)
			case unix.RTM_DELNEIGH:
				w.gone[mac] = append(w.gone[mac], at)
			}
		})
		w.mu.Unlock()
	}
}

// each calls f for the messages in a datagram that name a MAC: struct nlmsghdr, struct ndmsg,
// attributes (rtnetlink(7)).
func each(b []byte, f func(kind uint16, mac string)) {
	for len(b) >= 16 {
		size := int(binary.NativeEndian.Uint32(b))
		if size < 16 || size > len(b) {
			return
		}
		if size >= 28 {
			for a := b[28:size]; len(a) >= 4; {
				n := int(binary.NativeEndian.Uint16(a))
				if n < 4 || n > len(a) {
					break
				}
				if binary.NativeEndian.Uint16(a[2:]) == unix.NDA_LLADDR {
					f(binary.NativeEndian.Uint16(b[4:]), net.HardwareAddr(a[4:n]).String())
				}
				a = a[min(len(a), (n+3)&^3):]
			}
		}
		b = b[min(len(b), (size+3)&^3):]
	}
}

func (w *watcher) times(mac string) []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]time.Time(nil), w.seen[mac]...)
}

// entries is how many announcements one endpoint makes on another node: its MAC in the VXLAN
// device and in the bridge, and a neighbour for each of two addresses. When it goes, only the
// first two name the MAC.
const (
	entries  = 4
	removals = 2
)

// known is when the last entry of all the MACs was there, or the last of them went.
func (w *watcher) known(came, went []string) (last time.Time, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range []struct {
		macs []string
		at   map[string][]time.Time
		n    int
	}{{came, w.seen, entries}, {went, w.gone, removals}} {
		for _, mac := range c.macs {
			t := c.at[mac]
			if len(t) < c.n {
				return time.Time{}, false
			}
			if t[c.n-1].After(last) {
				last = t[c.n-1]
			}
		}
	}
	return last, true
}

// spread is the milliseconds from the MAC's last entry on its own node, before anything is
// seen elsewhere, to its last entry on the other. A node tells the others while its own kernel
// works, so that the other may be first: then it counts from the first entry on its own node,
// and can be negative.
func spread(on, at *watcher, mac string) (float64, error) {
	var near, far []time.Time
	for end := time.Now().Add(2 * time.Second); len(far) < entries || len(near) == 0; time.Sleep(time.Millisecond) {
		if near, far = on.times(mac), at.times(mac); time.Now().After(end) {
			return 0, fmt.Errorf("%d of %d entries came within 2 s, %d on the own node", len(far), entries, len(near))
		}
	}
	stands := near[0]
	for _, t := range near {
		if t.Before(far[0]) {
			stands = t
		}
	}
	return float64(far[entries-1].Sub(stands).Microseconds()) / 1000, nil
}

// wait waits until known.
func (w *watcher) wait(ctx context.Context, d time.Duration, came, went []string) (time.Time, error) {
	for end := time.Now().Add(d); ; {
		if last, ok := w.known(came, went); ok {
			return last, nil
		}
		if time.Now().After(end) {
			return time.Time{}, fmt.Errorf("not all entries of %d endpoints came, and of %d went, within %s", len(came), len(went), d)
		}
		if err := pause(ctx, time.After(5*time.Millisecond)); err != nil {
			return time.Time{}, err
		}
	}
}

// watchAll watches a network on all hosts, which take part in it. The function that it returns
// ends that.
func (b *bench) watchAll(ctx context.Context, network string) (map[*lab.Host]*watcher, func(), error) {
	all := map[*lab.Host]*watcher{}
	hangUp := func() {
		for _, w := range all {
			w.close()
		}
	}
	for _, h := range b.c.Hosts() {
		w, err := watch(ctx, b.c, h, network)
		if err != nil {
			hangUp()
			return nil, nil, err
		}
		all[h] = w
	}
	return all, hangUp, nil
}
