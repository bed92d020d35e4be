package own

import (
	"context"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/agent"
	"github.com/heddle-net/heddle/overlay/ipam"
)

// Control is how an agent asks for addresses.
type Control struct{ *Networks }

var _ agent.Control = Control{}

// Grant gives the agent addresses: want more of each family, a handful where that is 0, and those
// named.
func (c Control) Grant(_ context.Context, ref string, want int, addrs []netip.Addr) (agent.Grant, error) {
	return c.grow(ref, func(o Network) ([]ipam.Range, error) { return pick(o, uint64(want), addrs) })
}

// Hear implements agent.Control: all facts are here.
func (c Control) Hear(context.Context, overlay.NetworkID) {}

// Refill is a Grant for the reserve.
func (c Control) Refill(_ context.Context, id overlay.NetworkID) (agent.Grant, error) {
	return c.grow(string(id), func(o Network) ([]ipam.Range, error) { return pick(o, 0, nil) })
}

// Enter gives nothing: the node is in each of its networks.
func (c Control) Enter(_ context.Context, id overlay.NetworkID) (agent.Grant, error) {
	return c.grow(string(id), func(Network) ([]ipam.Range, error) { return nil, nil })
}

// Release takes addresses back.
func (c Control) Release(_ context.Context, s overlay.Signed) (agent.Grant, error) {
	var r overlay.Release
	if err := s.Decode(overlay.DomainRelease, &r); err != nil {
		return agent.Grant{}, err
	}
	return c.change(string(r.Network), func(o *Network) (bool, error) {
		left, taken := overlay.Split(o.Grants, r.Grants)
		o.Grants = left
		return len(taken) > 0, nil
	})
}

// grow adds what is picked to a network's grants.
func (c Control) grow(ref string, pick func(Network) ([]ipam.Range, error)) (agent.Grant, error) {
	return c.change(ref, func(o *Network) (bool, error) {
		runs, err := pick(*o)
		for _, r := range runs {
			o.Grants = append(slices.Clip(o.Grants), overlay.Grant{First: r.First, Last: r.Last, Index: c.state.Revision + 1})
		}
		return len(runs) > 0, err
	})
}

// change changes a network's grants, and answers with what stands then.
func (c Control) change(ref string, change func(*Network) (bool, error)) (agent.Grant, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, err := c.find(ref)
	if err != nil {
		return agent.Grant{}, err
	}
	next := c.next()
	changed, err := change(&next.Networks[i])
	if err == nil && changed {
		err = c.become(next)
	}
	o := c.state.Networks[i]
	return agent.Grant{Network: o.Network, Leases: c.facts.Leases[o.ID], Revision: c.state.Revision}, err
}

// pick chooses addresses that are not granted: those named, and of each family want, or without want a
// handful, unless some are named and others are held. Of a family none of which is left it gives an
// error, but for one that is named.
func pick(o Network, want uint64, addrs []netip.Addr) ([]ipam.Range, error) {
	used, held := &ipam.Set{}, [2]uint64{}
	for _, s := range o.Subnets {
		for _, r := range ipam.Reserved(s).Ranges() {
			used.Add(r)
		}
	}
	for _, g := range o.Grants {
		r := ipam.Range{First: g.First, Last: g.Last}
		used.Add(r)
		held[family(g.First)] += r.Len()
	}
	var out []ipam.Range
	named := [2]bool{}
	for _, a := range addrs {
		s, in := o.SubnetOf(a)
		switch {
		case !in:
			return nil, overlay.Errorf(overlay.Invalid, "%s is in no subnet of network %s; `heddle network inspect %s` lists them", a, o.Name, o.Name)
		case ipam.Reserved(s).Has(a):
			return nil, overlay.Errorf(overlay.Invalid, "%s is no address for a workload in network %s: it is its gateway, an aux address, or the subnet's own; take another", a, o.Name)
		}
		named[family(a)] = true
		if !used.Has(a) {
			used.Add(ipam.Range{First: a, Last: a})
			out = append(out, ipam.Range{First: a, Last: a})
		}
	}
	if want == 0 && len(addrs) > 0 && len(o.Grants) > 0 {
		return out, nil
	}
	for f := range 2 {
		subnets := slices.DeleteFunc(slices.Clone(o.Subnets), func(s overlay.Subnet) bool { return family(s.Prefix.Addr()) != f })
		if len(subnets) == 0 {
			continue
		}
		n := want
		if n == 0 {
			n = ipam.GrantSize(ipam.Free(subnets, used), held[f])
		}
		runs := ipam.Pick(subnets, used, n)
		if len(runs) == 0 && !named[f] {
			return nil, overlay.Errorf(overlay.Exhausted, "no address of %s is left in network %s; detach workloads, or use another network", subnets[0].Prefix, o.Name)
		}
		out = append(out, runs...)
	}
	return out, nil
}
