package state

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/ipam"
)

func (c CreateNetwork) apply(t *tables, index uint64) (ref, error) {
	if !overlay.ValidID(string(c.ID)) {
		return ref{}, overlay.Errorf(overlay.Invalid, "%.32q is no network ID", string(c.ID))
	}
	spec, err := t.complete(c)
	if err != nil {
		return ref{}, err
	}
	if other, taken := t.netName[spec.Name]; taken {
		return ref{}, overlay.Errorf(overlay.Exists, "network %q exists already (%s); take another name, or remove that one with `heddle network rm %s`", spec.Name, other.Short(), spec.Name)
	}
	if _, taken := t.networks.m[c.ID]; taken {
		return ref{}, overlay.Errorf(overlay.Exists, "network ID %s is taken; draw another", c.ID.Short())
	}
	vni, ok := t.nextVNI()
	if !ok {
		return ref{}, overlay.Errorf(overlay.Exhausted, "all %d VNIs are in use; remove networks that nobody needs", overlay.MaxVNI-overlay.MinVNI+1)
	}
	t.NextVNI = vni + 1
	t.networks.edit()[c.ID] = &network{
		def:    overlay.Network{ID: c.ID, NetworkSpec: spec, VNI: vni, Created: index},
		leases: map[overlay.NodeID]overlay.Signed{}, fenced: map[overlay.NodeID][]overlay.Grant{},
	}
	t.index(c.ID)
	t.changed(key{table: tNetwork, network: c.ID})
	return ref{Network: c.ID}, nil
}

// complete is the command's spec with subnets and gateways filled in, checked.
func (t *tables) complete(c CreateNetwork) (overlay.NetworkSpec, error) {
	if c.Spec.Scope() != "cluster" {
		return c.Spec, overlay.Errorf(overlay.Invalid, "driver %s makes networks of a single node, which managers do not keep; use -d overlay", c.Spec.Driver)
	}
	return ipam.Complete(c.Spec, func(v4 bool, beside []netip.Prefix) (netip.Prefix, error) {
		length, name, example := t.Params.PoolBits4, "IPv4", "10.20.0.0/16"
		if !v4 {
			length, name, example = t.Params.PoolBits6, "IPv6", "fd00:20::/64"
		}
		p, ok := ipam.NextSubnet(t.Params.Pools, v4, length, &t.subnets, slices.Concat(beside, c.Avoid))
		if !ok {
			return p, overlay.Errorf(overlay.Exhausted, "no %s subnet is free in the address pools beside what nodes route; name one with --subnet %s, or add a pool with `heddle update --default-addr-pool`", name, example)
		}
		return p, nil
	})
}

// nextVNI is the first free VNI from where the last search ended, so that one that was freed
// rests as long as possible.
func (t *tables) nextVNI() (uint32, bool) {
	vni := t.NextVNI
	for range len(t.vnis) + 1 {
		if vni < overlay.MinVNI || vni > overlay.MaxVNI {
			vni = overlay.MinVNI
		}
		if !t.vnis[vni] {
			return vni, true
		}
		vni++
	}
	return 0, false
}

// index enters a network's row into the look-ups.
func (t *tables) index(id overlay.NetworkID) {
	n := t.networks.m[id]
	t.netName[n.def.Name] = id
	t.vnis[n.def.VNI] = true
	p := &pool{held: map[overlay.NodeID][]overlay.Grant{}, vips: map[netip.Addr]overlay.ServiceID{}, services: map[overlay.ServiceID]bool{}}
	for _, s := range n.def.Subnets {
		t.subnets.Add(ipam.PrefixRange(s.Prefix))
		for _, r := range ipam.Reserved(s).Ranges() {
			p.used.Add(r)
		}
	}
	for _, grants := range n.fenced {
		p.hold(grants)
	}
	for _, r := range n.resting {
		p.used.Add(ipam.Range{First: r.First, Last: r.Last})
	}
	t.pools[id] = p
}

func (p *pool) hold(grants []overlay.Grant) {
	for _, g := range grants {
		p.used.Add(ipam.Range{First: g.First, Last: g.Last})
	}
}

func (c RemoveNetwork) apply(t *tables, _ uint64) (ref, error) {
	n, ok := t.networks.m[c.ID]
	if !ok {
		return ref{}, noNetwork(c.ID)
	}
	if err := t.unserved(n); err != nil {
		return ref{}, err
	}
	for _, node := range slices.Sorted(maps.Keys(n.leases)) {
		delete(t.leased[node], c.ID)
		t.changed(key{table: tLease, node: node, network: c.ID})
	}
	delete(t.networks.edit(), c.ID)
	delete(t.netName, n.def.Name)
	delete(t.vnis, n.def.VNI)
	delete(t.pools, c.ID)
	for _, s := range n.def.Subnets {
		t.subnets.Remove(ipam.PrefixRange(s.Prefix))
	}
	for _, o := range t.networks.m { // others may have the same subnets
		for _, s := range o.def.Subnets {
			t.subnets.Add(ipam.PrefixRange(s.Prefix))
		}
	}
	t.changed(key{table: tNetwork, network: c.ID})
	return ref{Network: c.ID}, nil
}
