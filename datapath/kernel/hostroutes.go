package kernel

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

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
