package state

import (
	"maps"
	"slices"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/ipam"
)

func (c UpdateNetwork) apply(t *tables, _ uint64) (ref, error) {
	n, ok := t.networks.m[c.ID]
	if !ok {
		return ref{}, noNetwork(c.ID)
	}
	next := *n
	spec := &next.def.NetworkSpec
	spec.Labels = clonedAll(spec.Labels)
	for _, k := range c.DropLabels {
		delete(spec.Labels, k)
	}
	maps.Copy(spec.Labels, c.Labels)
	if len(spec.Labels) == 0 {
		spec.Labels = nil
	}
	spec.Subnets = append(slices.Clip(spec.Subnets), c.Subnets...)
	for i := len(n.def.Subnets); i < len(spec.Subnets); i++ {
		s := &spec.Subnets[i]
		if s.Prefix.IsValid() && !s.Gateway.IsValid() {
			s.Gateway = ipam.Gateway(*s)
		}
		spec.IPv6 = spec.IPv6 || s.Prefix.Addr().Is6()
		spec.IPv4 = spec.IPv4 || s.Prefix.Addr().Is4()
	}
	if err := spec.Validate(); err != nil {
		return ref{}, err
	}
	t.networks.edit()[c.ID] = &next
	for _, s := range spec.Subnets[len(n.def.Subnets):] {
		t.subnets.Add(ipam.PrefixRange(s.Prefix))
		for _, r := range ipam.Reserved(s).Ranges() {
			t.pools[c.ID].used.Add(r)
		}
	}
	t.changed(key{table: tNetwork, network: c.ID})
	return ref{Network: c.ID}, nil
}

func (c UpdateParams) apply(t *tables, _ uint64) (ref, error) {
	next := t.cluster
	next.Params.Pools = slices.Clip(next.Params.Pools)
	for _, p := range c.AddPools {
		for _, old := range next.Params.Pools {
			if old.Overlaps(p) {
				return ref{}, overlay.Errorf(overlay.Exists, "address pool %s overlaps %s, which the cluster has; name another", p, old)
			}
		}
		next.Params.Pools = append(next.Params.Pools, p)
	}
	if err := checkPools(next.Params); err != nil {
		return ref{}, err
	}
	if len(c.AddPools) > 0 {
		t.setCluster(next)
		t.changed(key{table: tParams})
	}
	return ref{}, nil
}
