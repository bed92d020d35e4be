package datapath

// entries are the forwarding or neighbour entries that are to be compared.
type entries[K comparable, R any] struct {
	have  map[K]R
	want  []R
	found int // of want in have, so that what is not wanted is looked for only where there is more
}

// Settle notes that the state holds what c wants, and no other entries than c's, unless it has
// more of them. The next Diff then looks only at entries in which its own Config differs from c,
// which must not be changed. Any Apply ends that.
func (s *State) Settle(c *Config) { s.settled = c }

// narrow finds the entries that are to be compared: all, or those that differ from what the state
// is known to hold, unless links are so changed that others go with them.
func (d *differ) narrow() {
	d.fdb = entries[FDBKey, FDBEntry]{have: d.have.FDB, want: d.want.FDB}
	d.neighbors = entries[NeighborKey, Neighbor]{have: d.have.Neighbors, want: d.want.Neighbors}
	last := d.have.settled
	if last == nil || len(d.deleted) > 0 || len(d.flushed) > 0 || some(d.moved) || some(d.renewed) ||
		len(last.FDB) != len(d.have.FDB) || len(last.Neighbors) != len(d.have.Neighbors) {
		return
	}
	d.fdb = between(last.FDB, d.want.FDB, FDBEntry.Key)
	d.neighbors = between(last.Neighbors, d.want.Neighbors, Neighbor.Key)
}

func some(links map[LinkKey]bool) bool {
	for _, is := range links {
		if is {
			return true
		}
	}
	return false
}

// between leaves out with what two lists of rows begin and end alike.
func between[K, R comparable](last, want []R, key func(R) K) entries[K, R] {
	for len(last) > 0 && len(want) > 0 && last[0] == want[0] {
		last, want = last[1:], want[1:]
	}
	for len(last) > 0 && len(want) > 0 && last[len(last)-1] == want[len(want)-1] {
		last, want = last[:len(last)-1], want[:len(want)-1]
	}
	e := entries[K, R]{have: make(map[K]R, len(last)), want: want}
	for _, r := range last {
		e.have[key(r)] = r
	}
	return e
}

func (d *differ) addEntries() {
	for _, n := range d.neighbors.want {
		have, ok := d.neighbors.have[n.Key()]
		if !ok || have.MAC != n.MAC || d.neighborGone(n) {
			d.do(SetNeighbor{n})
			if mac, known := d.have.Behind[n.Key()]; known && mac != n.MAC || !known && d.have.Served[n.NS] {
				d.changed = append(d.changed, n)
			}
		}
		if ok {
			d.neighbors.found++
		}
	}
	for _, f := range d.fdb.want {
		have, ok := d.fdb.have[f.Key()]
		link := LinkKey{f.NS, f.Link}
		switch {
		case !ok, d.fresh(link), d.moved[link]:
			d.do(SetFDB{f})
		case have.VTEP == f.VTEP:
		case have.VTEP == Damaged:
			d.do(DelFDB{have})
			d.do(SetFDB{f})
		default:
			d.do(SetFDB{f})
		}
		if ok {
			d.fdb.found++
		}
	}
}

// neighborGone says whether an entry that was there went with something else.
func (d *differ) neighborGone(n Neighbor) bool {
	link := LinkKey{n.NS, n.Link}
	return d.fresh(link) || d.renewed[link] || n.IP.Is4() && d.flushed[link]
}

// moreEntries says whether there are entries that are not wanted.
func (d *differ) moreEntries() bool {
	return d.fdb.found < len(d.fdb.have) || d.neighbors.found < len(d.neighbors.have)
}

// delEntries removes entries of links that stay; the others go with their link.
func (d *differ) delEntries(stays func(ns NS, link string) bool) {
	partial := map[NS]bool{}
	for _, n := range d.want.Namespaces {
		partial[n.NS()] = n.Partial
	}
	for _, f := range unwanted(d.fdb.have, d.fdb.want, FDBEntry.Key, compareFDB) {
		if stays(f.NS, f.Link) && !partial[f.NS] {
			d.do(DelFDB{f})
		}
	}
	for _, n := range unwanted(d.neighbors.have, d.neighbors.want, Neighbor.Key, compareNeighbors) {
		if stays(n.NS, n.Link) && !partial[n.NS] && !d.neighborGone(n) {
			d.do(DelNeighbor{n})
		}
	}
}
