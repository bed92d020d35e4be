package ipam

import (
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/overlay"
)

// Complete is a checked spec with the subnets and gateways that it lacks. A subnet of IPv6 makes the
// network one of IPv6, too. next chooses a subnet of a family that shares no address with those beside
// it; its error is the answer.
func Complete(spec overlay.NetworkSpec, next func(v4 bool, beside []netip.Prefix) (netip.Prefix, error)) (overlay.NetworkSpec, error) {
	spec.Subnets = slices.Clone(spec.Subnets)
	var named []netip.Prefix
	has := map[bool]bool{} // by being of IPv4
	for _, s := range spec.Subnets {
		named = append(named, s.Prefix)
		has[s.Prefix.Addr().Is4()] = true
	}
	spec.IPv6 = spec.IPv6 || has[false]
	if err := spec.Validate(); err != nil {
		return spec, err
	}
	for _, v4 := range []bool{true, false} {
		wanted := v4 && spec.IPv4 || !v4 && spec.IPv6
		if !wanted || has[v4] {
			continue
		}
		p, err := next(v4, named)
		if err != nil {
			return spec, err
		}
		spec.Subnets = append(spec.Subnets, overlay.Subnet{Prefix: p})
	}
	for i := range spec.Subnets {
		s := &spec.Subnets[i]
		if !s.Gateway.IsValid() {
			s.Gateway = Gateway(*s)
		}
		if !s.Gateway.IsValid() {
			return spec, overlay.Errorf(overlay.Invalid, "subnet %s has no address left for its gateway; use fewer aux addresses", s.Prefix)
		}
	}
	return spec, spec.Validate()
}
