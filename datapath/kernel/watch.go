package kernel

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath/netns"
)

const (
	chainSettle = 100 * time.Millisecond // from a change until it is looked at, with what came along
	hostSettle  = 500 * time.Millisecond
	hostSweep   = 30 * time.Second // in case a notification was lost
	nfgenmsg    = 4                // bytes of nf_tables' own header
)

// WatchChains calls changed when it has begun, and when others have made or removed chains of the
// host's firewall, as a container engine does at its start, until ctx ends. Any goroutine may
// call it.
func (k *Kernel) WatchChains(ctx context.Context, changed func()) error {
	w := watching{protocol: unix.NETLINK_NETFILTER, groups: []uint{unix.NFNLGRP_NFTABLES}, relevant: othersChain, settle: chainSettle}
	if err := k.watch(ctx, w, changed); err != nil {
		return fmt.Errorf("watch nf_tables: %w", err)
	}
	return nil
}

// othersChain says whether a message tells of a chain in a table that is not heddle's.
func othersChain(m syscall.NetlinkMessage) bool {
	const subsystem = unix.NFNL_SUBSYS_NFTABLES << 8
	if t := m.Header.Type; t != subsystem|unix.NFT_MSG_NEWCHAIN && t != subsystem|unix.NFT_MSG_DELCHAIN || len(m.Data) < nfgenmsg {
		return false
	}
	for t, v := range attributes(m.Data[nfgenmsg:]) {
		if t == unix.NFTA_CHAIN_TABLE {
			return !strings.HasPrefix(text(v), tableName)
		}
	}
	return true
}

// WatchHost calls changed when it has begun, when links, addresses or routes of the host have
// changed, and now and then, until ctx ends. Any goroutine may call it.
func (k *Kernel) WatchHost(ctx context.Context, changed func()) error {
	w := watching{
		protocol: unix.NETLINK_ROUTE, settle: hostSettle, sweep: hostSweep,
		groups:   []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE},
		relevant: func(syscall.NetlinkMessage) bool { return true },
	}
	if err := k.watch(ctx, w, changed); err != nil {
		return fmt.Errorf("watch the host's addresses: %w", err)
	}
	return nil
}

// watching says which of the kernel's notifications count.
type watching struct {
	protocol int
	groups   []uint
	relevant func(syscall.NetlinkMessage) bool
	settle   time.Duration
	sweep    time.Duration // 0 is never
}

// watch calls changed when it listens, after relevant notifications in the host's namespace, and
// after any that were lost, until ctx ends.
func (k *Kernel) watch(ctx context.Context, w watching, changed func()) error {
	f, err := netns.Open(k.hostPath(), 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var s *nl.NetlinkSocket
	if err := netns.Do(f, func() (err error) { s, err = nl.Subscribe(w.protocol, w.groups...); return err }); err != nil {
		return err
	}
	ended, news := make(chan error, 1), make(chan struct{}, 1)
	go func() { ended <- w.read(s, news) }()
	defer func() { s.Close(); <-ended }()
	var sweep <-chan time.Time
	if w.sweep > 0 {
		t := time.NewTicker(w.sweep)
		defer t.Stop()
		sweep = t.C
	}
	for {
		changed()
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			ended <- err
			return err
		case <-sweep:
		case <-news:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(w.settle):
			}
			select { // what came meanwhile
			case <-news:
			default:
			}
		}
	}
}

// read signals news until the socket is closed.
func (w watching) read(s *nl.NetlinkSocket, news chan<- struct{}) error {
	for {
		messages, _, err := s.Receive()
		lost := errors.Is(err, unix.ENOBUFS) // what was lost must be looked up
		if err != nil && !lost {
			return err
		}
		for _, m := range messages {
			lost = lost || w.relevant(m)
		}
		if lost {
			select {
			case news <- struct{}{}:
			default:
			}
		}
	}
}
