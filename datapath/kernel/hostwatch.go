package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath/netns"
)

const (
	hostSettle = 500 * time.Millisecond // from a change until it is looked at, with what came along
	hostSweep  = 30 * time.Second       // in case a notification was lost
)

// WatchHost calls changed at once, when links, addresses or routes of the host have changed, and
// now and then, until ctx ends. Any goroutine may call it.
func (k *Kernel) WatchHost(ctx context.Context, changed func()) error {
	f, err := netns.Open(k.hostPath(), 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var s *nl.NetlinkSocket
	err = netns.Do(f, func() (err error) {
		s, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("watch the host's addresses: %w", err)
	}
	ended := make(chan error, 1)
	news := make(chan struct{}, 1)
	go func() {
		for {
			_, _, err := s.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) { // what was lost is looked up
				ended <- err
				return
			}
			select {
			case news <- struct{}{}:
			default:
			}
		}
	}()
	defer func() { s.Close(); <-ended }()
	sweep := time.NewTicker(hostSweep)
	defer sweep.Stop()
	for {
		changed()
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			ended <- err
			return fmt.Errorf("watch the host's addresses: %w", err)
		case <-sweep.C:
			continue
		case <-news:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(hostSettle):
		}
		select { // what came meanwhile
		case <-news:
		default:
		}
	}
}

// Routes are the destinations that the host routes by its main table, without the default
// routes, heddle's own, and those within another, sorted by length, then address.
func (k *Kernel) Routes() ([]netip.Prefix, error) {
	h, err := openHandle(k.hostPath(), 0)
	if err != nil {
		return nil, err
	}
	defer h.close()
	links, err := h.links()
	if err != nil {
		return nil, err
	}
	ours := map[int32]bool{}
	for _, l := range links {
		ours[l.index] = l.ours()
	}
	var all []netip.Prefix
	err = h.dump(request(unix.RTM_GETROUTE, 0, make([]byte, unix.SizeofRtMsg)), func() { all = nil }, func(b []byte) {
		if len(b) < unix.SizeofRtMsg || b[1] == 0 || b[4] != unix.RT_TABLE_MAIN || b[7] != unix.RTN_UNICAST {
			return
		}
		var dst netip.Addr
		mine := false
		for t, v := range attributes(b[unix.SizeofRtMsg:]) {
			switch t {
			case unix.RTA_DST:
				dst, _ = netip.AddrFromSlice(v)
			case unix.RTA_OIF:
				mine = ours[int32(u32(v))]
			}
		}
		if dst.IsValid() && !mine && !dst.IsLinkLocalUnicast() && !dst.IsMulticast() {
			all = append(all, netip.PrefixFrom(dst, int(b[1])).Masked())
		}
	})
	return widest(all), err
}

// widest sorts prefixes by length, then address, and leaves out those within another.
func widest(all []netip.Prefix) []netip.Prefix {
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		if a.Bits() != b.Bits() {
			return a.Bits() - b.Bits()
		}
		return a.Addr().Compare(b.Addr())
	})
	var out []netip.Prefix
	for _, p := range all {
		if !slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Overlaps(p) }) {
			out = append(out, p)
		}
	}
	return out
}
