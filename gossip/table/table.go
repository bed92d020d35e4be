// Package table is the replicated table of endpoint records: what each owner says of its
// endpoints in each network, merged in any order, with any loss and duplication.
//
// It is pure, and not safe for concurrent use. Claims are checked before they come in.
package table

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

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

// Table holds the claims of all networks that a node follows.
type Table struct {
	networks map[overlay.NetworkID]map[overlay.NodeID]*owner
}

// owner is what one node says of its endpoints in one network.
type owner struct {
	mark   overlay.Version // all up to here is held
	ahead  map[uint64]bool // numbers beyond the mark that are held
	claims map[overlay.EndpointID]overlay.Claim
}

// New makes an empty table.
func New() *Table { return &Table{networks: map[overlay.NetworkID]map[overlay.NodeID]*owner{}} }

func (t *Table) owner(n overlay.NetworkID, id overlay.NodeID) *owner {
	m := t.networks[n]
	if m == nil {
		m = map[overlay.NodeID]*owner{}
		t.networks[n] = m
	}
	o := m[id]
	if o == nil {
		o = &owner{}
		o.reset(0)
		m[id] = o
	}
	return o
}

// reset begins a life of the owner's table: nothing of an earlier one counts any more.
func (o *owner) reset(incarnation uint64) {
	*o = owner{mark: overlay.Version{Incarnation: incarnation}, ahead: map[uint64]bool{}, claims: map[overlay.EndpointID]overlay.Claim{}}
}

// Merge takes a claim in and says whether anything changed.
func (t *Table) Merge(c overlay.Claim) bool {
	r := c.Record
	o := t.owner(r.Network, r.Owner)
	switch {
	case r.Incarnation < o.mark.Incarnation:
		return false
	case r.Incarnation > o.mark.Incarnation:
		o.reset(r.Incarnation)
	}
	o.saw(r.Number)
	if old, ok := o.claims[r.Endpoint]; ok && old.Record.Version().Compare(r.Version()) >= 0 {
		return false
	}
	o.claims[r.Endpoint] = c
	return true
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
	o := t.owner(n, b.Owner)
	if b.UpTo.Incarnation > o.mark.Incarnation {
		changed = changed || len(o.claims) > 0
		o.reset(b.UpTo.Incarnation)
	}
	if b.UpTo.Incarnation == o.mark.Incarnation && b.UpTo.Number > o.mark.Number {
		o.mark.Number = b.UpTo.Number
		maps.DeleteFunc(o.ahead, func(n uint64, _ bool) bool { return n <= o.mark.Number })
		o.saw(0)
	}
	return changed
}

// Digest is what is held of a network.
func (t *Table) Digest(n overlay.NetworkID) Digest {
	d := Digest{}
	for id, o := range t.networks[n] {
		if o.mark.Number > 0 {
			d[id] = o.mark
		}
	}
	return d
}

// Missing is what the holder of the digest lacks, sorted by owner.
func (t *Table) Missing(n overlay.NetworkID, theirs Digest) []Batch {
	var out []Batch
	for _, id := range slices.Sorted(maps.Keys(t.networks[n])) {
		o, has := t.networks[n][id], theirs[id]
		b := Batch{Owner: id, UpTo: o.mark}
		for _, c := range o.claims {
			if c.Record.Version().Compare(has) > 0 {
				b.Claims = append(b.Claims, c)
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
// address that another owner has the later right to.
func (t *Table) Live(n overlay.NetworkID) []overlay.Claim {
	best := map[netip.Addr]overlay.Claim{}
	for _, o := range t.networks[n] {
		for _, c := range o.claims {
			for _, ip := range c.Record.IPs {
				if rival, ok := best[ip]; !ok || c.Beats(rival, ip) {
					best[ip] = c
				}
			}
		}
	}
	var out []overlay.Claim
	for _, o := range t.networks[n] {
		for _, c := range o.claims {
			wins := func(ip netip.Addr) bool {
				b := best[ip].Record
				return b.Owner == c.Record.Owner && b.Endpoint == c.Record.Endpoint
			}
			if !c.Record.Deleted && !slices.ContainsFunc(c.Record.IPs, func(ip netip.Addr) bool { return !wins(ip) }) {
				out = append(out, c)
			}
		}
	}
	slices.SortFunc(out, func(x, y overlay.Claim) int {
		return strings.Compare(string(x.Record.Endpoint), string(y.Record.Endpoint))
	})
	return out
}

// Contested says whether another owner claims an address of the claim.
func (t *Table) Contested(c overlay.Claim) bool {
	for id, o := range t.networks[c.Record.Network] {
		for _, other := range o.claims {
			if id != c.Record.Owner && slices.ContainsFunc(other.Record.IPs, func(ip netip.Addr) bool { return slices.Contains(c.Record.IPs, ip) }) {
				return true
			}
		}
	}
	return false
}

// Mark is the version up to which an owner's changes are held.
func (t *Table) Mark(n overlay.NetworkID, id overlay.NodeID) overlay.Version {
	if o := t.networks[n][id]; o != nil {
		return o.mark
	}
	return overlay.Version{}
}

// Holds says that a claim of that version, of an owner's endpoint, would change nothing.
func (t *Table) Holds(n overlay.NetworkID, id overlay.NodeID, e overlay.EndpointID, v overlay.Version) bool {
	o := t.networks[n][id]
	if o == nil {
		return false
	}
	c, ok := o.claims[e]
	return v.Incarnation < o.mark.Incarnation || ok && c.Record.Version() == v
}

// DropOwner forgets a node that was removed from the cluster, and says whether it had anything.
func (t *Table) DropOwner(id overlay.NodeID) (changed bool) {
	for _, m := range t.networks {
		if _, ok := m[id]; ok {
			delete(m, id)
			changed = true
		}
	}
	return changed
}

// DropNetwork forgets a network that this node follows no more.
func (t *Table) DropNetwork(n overlay.NetworkID) { delete(t.networks, n) }

// Networks are the networks in the table, sorted.
func (t *Table) Networks() []overlay.NetworkID { return slices.Sorted(maps.Keys(t.networks)) }
