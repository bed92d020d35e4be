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
	case node.Availability != overlay.Active:
		return ref{}, overlay.Errorf(overlay.Denied, "node %s takes no more endpoints (availability %s); `heddle node update --availability active %s` changes that", node.Name, node.Availability, node.Name)
	case c.Want < 0 || c.Want > MaxWant || len(c.Addrs) > MaxWant:
		return ref{}, overlay.Errorf(overlay.Invalid, "ask for 0 to %d addresses at a time", MaxWant)
	}
	p := t.pools[c.Network]
	picked, err := t.pick(c, n, p)
	if err != nil {
		return ref{}, err
	}
	held := p.held[c.Node]
	_, was := n.leases[c.Node]
	var grants []overlay.Grant
	for _, r := range picked {
		grants = append(grants, overlay.Grant{First: r.First, Last: r.Last, Index: index})
	}
	if len(grants) == 0 { // it has all that it asks for
		return out, nil
	}
	all := append(slices.Clip(held), grants...)
	lease, err := t.sign(overlay.DomainLease, overlay.Lease{V: 1, Place: t.Place, Network: c.Network, Node: c.Node, Key: node.Key, Index: index, Grants: all})
	if err != nil {
		return ref{}, overlay.Errorf(overlay.Exhausted, "node %s holds too many separate runs of addresses in network %s; detach workloads there, or use another network: %w", node.Name, n.def.Name, err)
	}
	p.hold(grants)
	p.held[c.Node] = all
	t.networks.edit()[c.Network] = &network{n.def, clonedWith(n.leases, c.Node, lease, true), n.fenced}
	t.changed(key{tLease, c.Node, c.Network})
	if !was {
		t.changed(key{tEntered, c.Node, c.Network})
	}
	t.enter(c.Node, c.Network)
	return out, nil
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
		own, err := t.asked(c, n, p, a)
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
		var subnets []overlay.Subnet
		for _, s := range n.def.Subnets {
			if s.Prefix.Addr().Is4() == v4 {
				subnets = append(subnets, s)
			}
		}
		if len(subnets) == 0 {
			continue
		}
		used := p.used.Clone()
		named := false
		for _, r := range picked.Ranges() {
			used.Add(r)
			named = named || r.First.Is4() == v4
		}
		want := uint64(c.Want)
		if want == 0 {
			want = ipam.GrantSize(ipam.Free(subnets, used), count(p.held[c.Node], v4))
		}
		runs := ipam.Pick(subnets, used, want)
		if len(runs) == 0 && !named {
			return nil, full(n.def, v4)
		}
		for _, r := range runs {
			picked.Add(r)
		}
	}
	return picked.Ranges(), nil
}

func full(n overlay.Network, v4 bool) error {
	family := "IPv4"
	if !v4 {
		family = "IPv6"
	}
	return overlay.Errorf(overlay.Exhausted, "network %s has no %s address left: all are leased to nodes; remove nodes that are gone with `heddle node rm`, or make a larger network", n.Name, family)
}

// asked judges an address that is wanted by name: own says that the node has it already.
func (t *tables) asked(c Grant, n *network, p *pool, a netip.Addr) (own bool, err error) {
	name := n.def.Name
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
	if has(p.held[c.Node], a) {
		return true, nil
	}
	for id, grants := range p.held { // at most one has it
		if has(grants, a) {
			holder := t.nodes.m[id].Name
			return false, overlay.Errorf(overlay.Exists, "address %s of network %s is leased to node %s; take another, or `heddle node rm %s` if that node is gone", a, name, holder, holder)
		}
	}
	holder := "a node"
	for id, grants := range n.fenced { // at most one has it
		if has(grants, a) {
			holder = "node " + t.members[id].Name
		}
	}
	return false, overlay.Errorf(overlay.Exists, "address %s of network %s was leased to %s, which was removed and may still use it; take another", a, name, holder)
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

// vacate takes a lease from a node that goes. With its consent the addresses are free;
// without it they stay fenced.
func (t *tables) vacate(id overlay.NetworkID, node overlay.NodeID, consent bool) {
	n, p := t.networks.m[id], t.pools[id]
	fenced := n.fenced
	if consent {
		for _, g := range p.held[node] {
			p.used.Remove(ipam.Range{First: g.First, Last: g.Last})
		}
	} else {
		fenced = clonedWith(n.fenced, node, p.held[node], true)
	}
	delete(p.held, node)
	delete(t.leased[node], id)
	t.networks.edit()[id] = &network{n.def, clonedWith(n.leases, node, overlay.Signed{}, false), fenced}
	t.changed(key{tLease, node, id})
}
