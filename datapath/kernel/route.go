package kernel

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// route adds or replaces, or deletes, a route. Its protocol says that it is heddle's.
func (k *Kernel) route(typ uint16, r datapath.Route) error {
	h, i, err := k.linkIn(r.NS, r.Link)
	if err != nil {
		return err
	}
	var flags uint16
	if typ == unix.RTM_NEWROUTE {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	head := make([]byte, unix.SizeofRtMsg)
	head[0], head[1] = family(r.Prefix.Addr()), uint8(r.Prefix.Bits())
	head[4], head[5], head[7] = unix.RT_TABLE_MAIN, protoHeddle, unix.RTN_UNICAST
	m := request(typ, flags, head).u32(unix.RTA_OIF, uint32(i)).u32(unix.RTA_PRIORITY, uint32(r.Metric))
	if r.Prefix.Bits() > 0 {
		m.bytes(unix.RTA_DST, r.Prefix.Addr().AsSlice())
	}
	if typ == unix.RTM_NEWROUTE {
		m.bytes(unix.RTA_GATEWAY, r.Via.AsSlice())
	}
	return h.do(m)
}

// readRoutes reads heddle's routes over the named links.
func (r *reader) readRoutes(ns datapath.NS, h *handle, names map[int32]string) error {
	var rows []datapath.Route
	err := h.dump(request(unix.RTM_GETROUTE, 0, make([]byte, unix.SizeofRtMsg)), func() { rows = rows[:0] }, func(b []byte) {
		if len(b) < unix.SizeofRtMsg || b[5] != protoHeddle || b[4] != unix.RT_TABLE_MAIN || b[7] != unix.RTN_UNICAST {
			return
		}
		row := datapath.Route{NS: ns}
		dst := netip.IPv4Unspecified()
		if b[0] == unix.AF_INET6 {
			dst = netip.IPv6Unspecified()
		}
		for t, v := range attributes(b[unix.SizeofRtMsg:]) {
			switch t {
			case unix.RTA_DST:
				dst, _ = netip.AddrFromSlice(v)
			case unix.RTA_GATEWAY:
				row.Via, _ = netip.AddrFromSlice(v)
			case unix.RTA_OIF:
				row.Link = names[int32(u32(v))]
			case unix.RTA_PRIORITY:
				row.Metric = int(u32(v))
			}
		}
		if row.Link != "" {
			row.Prefix = netip.PrefixFrom(dst, int(b[1]))
			rows = append(rows, row)
		}
	})
	for _, row := range rows {
		r.s.Routes[row.Key()] = row
	}
	return err
}
