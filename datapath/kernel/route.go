package kernel

import (
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
	m := request(typ, flags, head).u32(unix.RTA_PRIORITY, uint32(r.Metric))
	if r.Prefix.Addr().IsLoopback() {
		m.b[4], m.b[7] = unix.RT_TABLE_LOCAL, unix.RTN_LOCAL
	}
	if r.Link == datapath.Nowhere {
		m.b[7] = unix.RTN_UNREACHABLE
	} else {
		m.u32(unix.RTA_OIF, uint32(i))
	}
	if m.b[7] == unix.RTN_UNICAST && !r.Via.IsValid() {
		m.b[6] = unix.RT_SCOPE_LINK // so that it may be the next hop of another
	}
	if r.Prefix.Bits() > 0 {
		m.bytes(unix.RTA_DST, r.Prefix.Addr().AsSlice())
	}
	if typ == unix.RTM_NEWROUTE && r.Via.IsValid() {
		m.bytes(unix.RTA_GATEWAY, r.Via.AsSlice())
	}
	return h.do(m)
}

// readRoutes reads heddle's routes over the named links.
func (r *reader) readRoutes(ns datapath.NS, h *handle, names map[int32]string) error {
	var rows []datapath.Route
	err := h.dump(request(unix.RTM_GETROUTE, 0, make([]byte, unix.SizeofRtMsg)), func() { rows = rows[:0] }, func(b []byte) {
		row, index, ok := parseRoute(b)
		if row.NS = ns; row.Link == "" {
			row.Link = names[index]
		}
		if ok && row.Link != "" {
			rows = append(rows, row)
		}
	})
	for _, row := range rows {
		r.s.Routes[row.Key()] = row
	}
	return err
}
