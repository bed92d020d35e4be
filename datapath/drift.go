package datapath

// Drift counts, by kind of object, in how many rows two states differ: what was believed
// and what was seen.
func Drift(believed, seen *State) map[string]uint64 {
	out := map[string]uint64{}
	count := func(kind string, n uint64) {
		if n > 0 {
			out[kind] = n
		}
	}
	count("namespace", differing(believed.Namespaces, seen.Namespaces, func(a, b Namespace) bool { return a == b }))
	count("link", differing(believed.Links, seen.Links, func(a, b LinkState) bool { return a == b }))
	count("lock", differing(believed.Locks, seen.Locks, func(a, b Lock) bool { return a.Allows() == b.Allows() }))
	count("address", differing(believed.Addresses, seen.Addresses, func(a, b Address) bool { return true }))
	count("neighbor", differing(believed.Neighbors, seen.Neighbors, func(a, b Neighbor) bool { return a.MAC == b.MAC }))
	count("fdb", differing(believed.FDB, seen.FDB, func(a, b FDBEntry) bool { return a.VTEP == b.VTEP }))
	count("route", differing(believed.Routes, seen.Routes, func(a, b Route) bool { return a.Via == b.Via }))
	if believed.Egress != seen.Egress {
		count("egress", 1)
	}
	count("wireguard", differing(believed.WGPeers, seen.WGPeers, func(a, b WGPeerState) bool { return a.Address == b.Address && a.Keepalive == b.Keepalive }))
	count("entrance", differing(believed.Entrances, seen.Entrances, func(a, b EntranceState) bool { return a == b }))
	count("filter", differingFilters(believed, seen))
	return out
}

// differingFilters counts members of allow-sets, and tables that are missing or broken.
func differingFilters(believed, seen *State) uint64 {
	n := differing(believed.Filters, seen.Filters, func(a, b FilterState) bool { return a.Port == b.Port && a.MinVNI == b.MinVNI })
	for ns, f := range believed.Filters {
		n += differing(f.Allowed, seen.Filters[ns].Allowed, func(a, b bool) bool { return true })
	}
	return n
}

func differing[K comparable, R any](a, b map[K]R, same func(a, b R) bool) uint64 {
	var n, common uint64
	for k, x := range a {
		if y, ok := b[k]; ok {
			common++
			if !same(x, y) {
				n++
			}
		}
	}
	return n + uint64(len(a)) + uint64(len(b)) - 2*common
}
