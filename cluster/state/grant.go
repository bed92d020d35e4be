package state

import (
	"math"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/ipam"
)

func (c Grant) apply(t *tables, index uint64) (ref, error) {
	out := ref{Node: c.Node, Network: c.Network}
	n, ok := t.networks.m[c.Network]
	if !ok {
		return ref{}, noNetwork(c.Network)
	}
	node, ok := t.nodes.m[c.Node]
	switch {
	case !ok:
		return ref{}, noNode(c.Node)
	case node.Availability != overlay.Active && !c.Bare:
		return ref{}, overlay.Errorf(overlay.Denied, "node %s takes no more endpoints (availability %s); `heddle node update --availability active %s` changes that", node.Name, node.Availability, node.Name)
	case c.Want < 0 || c.Want > MaxWant || len(c.Addrs) > MaxWant:
		return ref{}, overlay.Errorf(overlay.Invalid, "ask for 0 to %d addresses at a time", MaxWant)
	}
	p := t.pools[c.Network]
	_, was := n.leases[c.Node]
	var picked []ipam.Range
	if !c.Bare {
		var err error
		if picked, err = t.pick(c, n, p); err != nil {
			return ref{}, err
		}
	}
	if len(picked) == 0 && (was || !c.Bare) { // it has all that it asks for
		return out, nil
	}
	held := p.held[c.Node]
	var grants []overlay.Grant
	for _, r := range picked {
		grants = append(grants, overlay.Grant{First: r.First, Last: r.Last, Index: index})
	}
	next, err := t.lease(n, node, append(slices.Clip(held), grants...), index)
	if err != nil {
		return ref{}, err
	}
	next.resting = p.wake(n.resting, picked, c.Now)
	p.hold(grants)
	t.networks.edit()[c.Network] = next
	if !was {
		t.changed(key{table: tEntered, node: c.Node, network: c.Network})
	}
	t.enter(c.Node, c.Network)
	return out, nil
}

// lease is the network's row with another lease for a node.
func (t *tables) lease(n *network, node overlay.Node, grants []overlay.Grant, index uint64) (*network, error) {
	lease, err := t.sign(overlay.DomainLease, overlay.Lease{V: 1, Place: t.Place, Network: n.def.ID, Node: node.ID, Key: node.Key, Index: index, Grants: grants})
	if err != nil {
		return nil, overlay.Errorf(overlay.Exhausted, "node %s holds too many separate runs of addresses in network %s; detach workloads there, or use another network: %w", node.Name, n.def.Name, err)
	}
	next := *n
	next.leases = clonedWith(n.leases, node.ID, lease, true)
	t.pools[n.def.ID].held[node.ID] = grants
	t.changed(key{table: tLease, node: node.ID, network: n.def.ID})
	return &next, nil
}

func (t *tables) enter(node overlay.NodeID, network overlay.NetworkID) {
	if t.leased[node] == nil {
		t.leased[node] = map[overlay.NetworkID]bool{}
	}
	t.leased[node][network] = true
}

// pick chooses the addresses of a grant, in runs, without taking them.
func (t *tables) pick(c Grant, n *network, p *pool) ([]ipam.Range, error) {
	var picked ipam.Set
	for _, a := range c.Addrs {
		own, err := t.asked(c.Node, n, a)
		if err != nil {
			return nil, err
		}
		if !own {
			picked.Add(ipam.Range{First: a, Last: a})
		}
	}
	if _, leased := n.leases[c.Node]; leased && c.Want == 0 && len(c.Addrs) > 0 {
		return picked.Ranges(), nil
	}
	for _, v4 := range []bool{true, false} {
		subnets := n.subnets(v4)
		if len(subnets) == 0 {
			continue
		}
		used := p.rested(n.resting, c.Now)
		named := false
		for _, r := range picked.Ranges() {
			used.Add(r)
			named = named || r.First.Is4() == v4
		}
		runs := ipam.Pick(subnets, used, c.want(ipam.Free(subnets, used), count(p.held[c.Node], v4)))
		for _, r := range n.resting { // those that rest longest come first
			if len(runs) > 0 || named || c.Spare {
				break
			}
			used.Remove(r.run())
			runs = ipam.Pick(subnets, used, 1)
		}
		if len(runs) == 0 && !named && !c.Spare {
			return nil, full(n.def, v4)
		}
		for _, r := range runs {
			picked.Add(r)
		}
	}
	return picked.Ranges(), nil
}

// want is how many addresses of a family a grant adds.
func (c Grant) want(free, held uint64) uint64 {
	switch {
	case c.Want > 0:
		return uint64(c.Want)
	case c.Spare && free < 8: // the last ones are for who needs them
		return 0
	}
	return ipam.GrantSize(free, held)
}

func (r rest) run() ipam.Range { return ipam.Range{First: r.First, Last: r.Last} }

// rested is what is not free at a time, in Unix seconds.
func (p *pool) rested(resting []rest, now int64) *ipam.Set {
	used := p.used.Clone()
	for _, r := range resting {
		if r.Until <= now {
			used.Remove(r.run())
		}
	}
	return used
}

// wake ends the rest of addresses whose time has come, and of those that were picked, and
// returns what still rests. The picked ones stay marked.
func (p *pool) wake(resting []rest, picked []ipam.Range, now int64) []rest {
	var gone ipam.Set
	for _, r := range picked {
		gone.Add(r)
	}
	var left []rest
	for _, r := range resting {
		if r.Until <= now {
			p.used.Remove(r.run())
			continue
		}
		for _, part := range gone.Lowest(r.run(), math.MaxUint64) {
			left = append(left, rest{part.First, part.Last, r.Until})
		}
	}
	return left
}

func full(n overlay.Network, v4 bool) error {
	family := "IPv4"
	if !v4 {
		family = "IPv6"
	}
	return overlay.Errorf(overlay.Exhausted, "network %s has no %s address left: all are leased to nodes, or are those of services; remove nodes that are gone with `heddle node rm`, or make a larger network", n.Name, family)
}

// asked judges an address that is wanted by name, by a node or, with "", by a service: own says
// that the node has it already.
func (t *tables) asked(node overlay.NodeID, n *network, a netip.Addr) (own bool, err error) {
	name, p := n.def.Name, t.pools[n.def.ID]
	s, ok := n.def.SubnetOf(a)
	if !ok {
		return false, overlay.Errorf(overlay.Invalid, "address %s is in no subnet of network %s; `heddle network inspect %s` lists them", a, name, name)
	}
	if ipam.Reserved(s).Has(a) {
		return false, overlay.Errorf(overlay.Invalid, "address %s of network %s is its gateway, an aux address or the subnet's own; take another", a, name)
	}
	if !p.used.Has(a) {
		return false, nil
	}
	if has(p.held[node], a) {
		return true, nil
	}
	if id, taken := p.vips[a]; taken {
		return false, overlay.Errorf(overlay.Exists, "address %s of network %s is that of service %s; take another", a, name, t.services.m[id].Name)
	}
	for id, grants := range p.held { // at most one has it
		if has(grants, a) {
			holder := t.nodes.m[id].Name
			return false, overlay.Errorf(overlay.Exists, "address %s of network %s is leased to node %s; take another, or `heddle node rm %s` if that node is gone", a, name, holder, holder)
		}
	}
	for id, grants := range n.fenced { // at most one has it
		if has(grants, a) {
			return false, overlay.Errorf(overlay.Exists, "address %s of network %s was leased to node %s, which was removed and may still use it; take another", a, name, t.members.m[id].Name)
		}
	}
	return false, nil // it rests; who asks for it by name wants it all the same
}

func has(grants []overlay.Grant, a netip.Addr) bool {
	_, ok := overlay.Lease{Grants: grants}.Granted(a)
	return ok
}

// count is the number of addresses of a family in the grants.
func count(grants []overlay.Grant, v4 bool) (n uint64) {
	for _, g := range grants {
		if l := (ipam.Range{First: g.First, Last: g.Last}).Len(); g.First.Is4() == v4 && l < math.MaxUint64-n {
			n += l
		}
	}
	return n
}

// vacate takes a lease from a node that goes. With its consent the addresses rest; without it
// they stay fenced.
func (t *tables) vacate(id overlay.NetworkID, node overlay.NodeID, consent bool, now int64) {
	n, p := t.networks.m[id], t.pools[id]
	next := *n
	next.leases = clonedWith(n.leases, node, overlay.Signed{}, false)
	if consent {
		next.resting = p.lay(n.resting, p.held[node], now)
	} else {
		next.fenced = clonedWith(n.fenced, node, p.held[node], true)
	}
	delete(p.held, node)
	delete(t.leased[node], id)
	t.networks.edit()[id] = &next
	t.changed(key{table: tLease, node: node, network: id})
}

// lay adds addresses to those that rest. Without a time they are free at once: commands of
// the first managers had none.
func (p *pool) lay(resting []rest, grants []overlay.Grant, now int64) []rest {
	resting = slices.Clip(resting)
	for _, g := range grants {
		if now == 0 {
			p.used.Remove(ipam.Range{First: g.First, Last: g.Last})
		} else {
			resting = append(resting, rest{g.First, g.Last, now + restTime})
		}
	}
	return resting
}
