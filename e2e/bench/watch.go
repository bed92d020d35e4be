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
	seen map[string][]time.Time // by MAC
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
	w := &watcher{quit: make(chan struct{}), done: make(chan struct{}), seen: map[string][]time.Time{}}
	err := lab.InNetNS(path, func() (err error) {
		w.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
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
		for _, mac := range newEntries(buf[:n]) {
			w.seen[mac] = append(w.seen[mac], at)
		}
		w.mu.Unlock()
	}
}

// newEntries are the MACs of the RTM_NEWNEIGH messages in a datagram: struct nlmsghdr, struct
// ndmsg, attributes (rtnetlink(7)).
func newEntries(b []byte) (macs []string) {
	for len(b) >= 16 {
		size := int(binary.NativeEndian.Uint32(b))
		if size < 16 || size > len(b) {
			return macs
		}
		if binary.NativeEndian.Uint16(b[4:]) == unix.RTM_NEWNEIGH && size >= 28 {
			for a := b[28:size]; len(a) >= 4; {
				n := int(binary.NativeEndian.Uint16(a))
				if n < 4 || n > len(a) {
					break
				}
				if binary.NativeEndian.Uint16(a[2:]) == unix.NDA_LLADDR {
					macs = append(macs, net.HardwareAddr(a[4:n]).String())
				}
				a = a[min(len(a), (n+3)&^3):]
			}
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return macs
}

func (w *watcher) times(mac string) []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]time.Time(nil), w.seen[mac]...)
}

// entries is how many announcements one endpoint makes on another node: its MAC in the VXLAN
// device and in the bridge, and a neighbour for each of two addresses.
const entries = 4

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
