// Package table is the replicated table of endpoint records: what each owner says of its
// endpoints in each network, merged in any order, with any loss and duplication.
//
// It is pure, and not safe for concurrent use. Claims are checked before they come in.
package table

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/overlay"
)

// maxAhead bounds the numbers that are remembered beyond a gap, per owner and network. Past
// it they are forgotten, and fetched again with what fills the gap.
const maxAhead = 4096

// Digest says how much of each owner's changes in a network is held: all up to the version.
type Digest map[overlay.NodeID]overlay.Version

// Batch is what one owner changed after a version.
type Batch struct {
	Owner  overlay.NodeID
	UpTo   overlay.Version // with these claims the receiver holds all up to here
	Claims []overlay.Claim // in the order of their versions
}

// First is the batch cut after its first n claims, at least one: the receiver asks for the others
// by what it holds then.
func (b Batch) First(n int) Batch {
	b.Claims = b.Claims[:n]
	if last := b.Claims[n-1].Record.Version(); last.Compare(b.UpTo) < 0 {
		b.UpTo = last
	}
	return b
}

// Table holds the claims of all networks that a node follows.
type Table struct {
	networks map[overlay.NetworkID]*network
}

// owner is what one node says of its endpoints in one network.
type owner struct {
	mark   overlay.Version                       // all up to here is held
	ahead  map[uint64]bool                       // numbers beyond the mark that are held
	claims map[overlay.EndpointID]*overlay.Claim // none is changed: a newer one takes its place
	floor  uint64                                // claims up to this number count no more
	next   rise                                  // a higher floor that was heard of
}

// rise is a floor that an owner has stated, and the number of the claim that says so. It counts
// when all up to that claim is held: before, what was stated again above it may be missing.
type rise struct{ floor, by uint64 }

// New makes an empty table.
func New() *Table { return &Table{networks: map[overlay.NetworkID]*network{}} }

func (t *Table) owner(n overlay.NetworkID, id overlay.NodeID) (*network, *owner) {
	m := t.networks[n]
	if m == nil {
		m = newNetwork()
		t.networks[n] = m
	}
	o := m.owners[id]
	if o == nil {
		o = &owner{}
		m.reset(o, 0)
		m.owners[id] = o
	}
	return m, o
}

// Merge takes a claim in and says whether anything changed.
func (t *Table) Merge(c overlay.Claim) (changed bool) {
	r := c.Record
	n, o := t.owner(r.Network, r.Owner)
	switch {
	case r.Incarnation < o.mark.Incarnation:
		return false
	case r.Incarnation > o.mark.Incarnation:
		n.reset(o, r.Incarnation)
	}
	o.saw(r.Number)
	if old := o.claims[r.Endpoint]; r.Number > o.floor && (old == nil || old.Record.Version().Compare(r.Version()) < 0) {
		o.claims[r.Endpoint] = &c
		n.replace(old, &c)
		changed = true
	}
	if r.Floor > o.next.floor {
		o.next = rise{r.Floor, r.Number}
	}
	return n.sink(o) || changed
}

// sink drops what of an owner's counts no more, and says whether an endpoint that stood is among it.
func (n *network) sink(o *owner) (changed bool) {
	if o.next.floor <= o.floor || o.mark.Number < o.next.by {
		return false
	}
	o.floor = o.next.floor
	for id, c := range o.claims {
		if c.Record.Number <= o.floor {
			changed = changed || !c.Record.Deleted
			delete(o.claims, id)
			n.replace(c, nil)
		}
	}
	return changed
}

// saw notes that a number is held, and moves the mark over what is without a gap.
func (o *owner) saw(n uint64) {
	if n > o.mark.Number && len(o.ahead) < maxAhead {
		o.ahead[n] = true
	}
	for o.ahead[o.mark.Number+1] {
		o.mark.Number++
		delete(o.ahead, o.mark.Number)
	}
}

// MergeBatch takes a batch in and says whether anything changed. Numbers that the batch lacks
// were superseded by ones that it has.
func (t *Table) MergeBatch(n overlay.NetworkID, b Batch) (changed bool) {
	for _, c := range b.Claims {
		if c.Record.Owner == b.Owner && c.Record.Network == n {
			changed = t.Merge(c) || changed
		}
	}
	m, o := t.owner(n, b.Owner)
	if b.UpTo.Incarnation > o.mark.Incarnation {
		changed = changed || len(o.claims) > 0
		m.reset(o, b.UpTo.Incarnation)
	}
	if b.UpTo.Incarnation == o.mark.Incarnation && b.UpTo.Number > o.mark.Number {
		o.mark.Number = b.UpTo.Number
		maps.DeleteFunc(o.ahead, func(n uint64, _ bool) bool { return n <= o.mark.Number })
		o.saw(0)
	}
	return m.sink(o) || changed
}

// Skip notes that an owner says nothing more under the versions from one to another, which are of
// one incarnation.
func (t *Table) Skip(n overlay.NetworkID, id overlay.NodeID, from, to overlay.Version) {
	m, o := t.owner(n, id)
	switch {
	case from.Incarnation < o.mark.Incarnation:
		return
	case from.Incarnation > o.mark.Incarnation:
		m.reset(o, from.Incarnation)
	}
	if from.Number <= o.mark.Number+1 {
		t.MergeBatch(n, Batch{Owner: id, UpTo: to})
		return
	}
	for v := from.Number; v <= to.Number; v++ {
		o.saw(v)
	}
}

// Digest is what is held of a network.
func (t *Table) Digest(n overlay.NetworkID) Digest {
	d := Digest{}
	for id, o := range t.owners(n) {
		if o.mark.Number > 0 {
			d[id] = o.mark
		}
	}
	return d
}

// Missing is what the holder of the digest lacks, sorted by owner.
func (t *Table) Missing(n overlay.NetworkID, theirs Digest) []Batch {
	var out []Batch
	owners := t.owners(n)
	for _, id := range slices.Sorted(maps.Keys(owners)) {
		o, has := owners[id], theirs[id]
		b := Batch{Owner: id, UpTo: o.mark}
		for _, c := range o.claims {
			if c.Record.Version().Compare(has) > 0 {
				b.Claims = append(b.Claims, *c)
			}
		}
		if len(b.Claims) == 0 && o.mark.Compare(has) <= 0 {
			continue
		}
		slices.SortFunc(b.Claims, func(x, y overlay.Claim) int { return x.Record.Version().Compare(y.Record.Version()) })
		out = append(out, b)
	}
	return out
}

// Live are the endpoints of a network that stand, sorted by ID: not deleted, and with no
// address that another owner has the later right to. The claims must not be changed.
func (t *Table) Live(n overlay.NetworkID) []*overlay.Claim {
	if m := t.networks[n]; m != nil {
		return slices.Clone(m.live)
	}
	return nil
}

// Contested says whether another owner claims an address of the claim.
func (t *Table) Contested(c overlay.Claim) bool {
	m := t.networks[c.Record.Network]
	return m != nil && slices.ContainsFunc(c.Record.IPs, func(ip netip.Addr) bool {
		return slices.ContainsFunc(m.at[ip], func(o *overlay.Claim) bool { return o.Record.Owner != c.Record.Owner })
	})
}

// Mark is the version up to which an owner's changes are held.
func (t *Table) Mark(n overlay.NetworkID, id overlay.NodeID) overlay.Version {
	if o := t.owners(n)[id]; o != nil {
		return o.mark
	}
	return overlay.Version{}
}

// Newest is the highest version under which an owner is known to have said something.
func (t *Table) Newest(n overlay.NetworkID, id overlay.NodeID) overlay.Version {
	v := t.Mark(n, id)
	if o := t.owners(n)[id]; o != nil {
		for _, c := range o.claims {
			v.Number = max(v.Number, c.Record.Number)
		}
	}
	return v
}

// Holds says that a claim of that version, of an owner's endpoint, would change nothing.
func (t *Table) Holds(n overlay.NetworkID, id overlay.NodeID, e overlay.EndpointID, v overlay.Version) bool {
	o := t.owners(n)[id]
	if o == nil {
		return false
	}
	c, ok := o.claims[e]
	return v.Incarnation < o.mark.Incarnation || v.Incarnation == o.mark.Incarnation && v.Number <= o.floor || ok && c.Record.Version() == v
}

// DropOwner forgets a node that was removed from the cluster, and says whether it had anything.
func (t *Table) DropOwner(id overlay.NodeID) (changed bool) {
	for _, m := range t.networks {
		if o := m.owners[id]; o != nil {
			m.reset(o, 0)
			delete(m.owners, id)
			changed = true
		}
	}
	return changed
}

// DropNetwork forgets a network that this node follows no more.
func (t *Table) DropNetwork(n overlay.NetworkID) { delete(t.networks, n) }

// Networks are the networks in the table, sorted.
func (t *Table) Networks() []overlay.NetworkID { return slices.Sorted(maps.Keys(t.networks)) }

func (t *Table) owners(n overlay.NetworkID) map[overlay.NodeID]*owner {
	if m := t.networks[n]; m != nil {
		return m.owners
	}
	return nil
}
