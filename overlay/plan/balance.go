package plan

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/services"
)

// Balanced are the VIPs of a network's services, as they are judged. The zero value has none.
type Balanced struct {
	of   map[*services.Service]*datapath.VIP // nil for those without an address
	VIPs []*datapath.VIP                     // sorted by service
}

// Follow is what another judgement makes of it. What leads where it did keeps its pointer.
func (b Balanced) Follow(now []*services.Service) Balanced {
	if len(now) == 0 {
		return Balanced{}
	}
	next := Balanced{of: make(map[*services.Service]*datapath.VIP, len(now))}
	var old map[string]*datapath.VIP // of services whose judgement is another
	for _, s := range now {
		v, known := b.of[s]
		if !known {
			if old == nil {
				old = map[string]*datapath.VIP{}
				for _, v := range b.VIPs {
					old[v.Service] = v
				}
			}
			v = vip(s)
			if was := old[string(s.ID)]; v != nil && was != nil && was.Equal(v) {
				v = was
			}
		}
		if next.of[s] = v; v != nil {
			next.VIPs = append(next.VIPs, v)
		}
	}
	if slices.Equal(next.VIPs, b.VIPs) {
		next.VIPs = b.VIPs
	}
	return next
}

// vip is a service's, or nil. TCP connections are left alone while their backend is known at all: it
// ends them itself, or goes.
func vip(s *services.Service) *datapath.VIP {
	if s.Mode != overlay.ModeVIP || len(s.VIPs) == 0 {
		return nil
	}
	v := &datapath.VIP{Service: string(s.ID), Addrs: s.VIPs}
	for _, port := range s.Ports {
		p := datapath.VIPPort{Proto: port.Proto, Port: port.Port}
		for _, b := range s.Backends {
			for _, ip := range b.IPs {
				switch at := netip.AddrPortFrom(ip, port.Target); {
				case b.Used:
					p.Backends = append(p.Backends, at)
				case port.Proto == "tcp" || b.Keeps():
					p.Kept = append(p.Kept, at)
				}
			}
		}
		slices.SortFunc(p.Backends, netip.AddrPort.Compare)
		slices.SortFunc(p.Kept, netip.AddrPort.Compare)
		v.Ports = append(v.Ports, p)
	}
	return v
}

// balance wants a balancer in each namespace of a workload: with the VIPs of all networks that it is
// in. Where two have the same address, that of the network with the default route counts.
func balance(c *datapath.Config, v View, rank map[overlay.EndpointID]int) {
	byNS := map[datapath.NS][]Endpoint{}
	for _, e := range v.Local {
		if _, known := v.Networks[e.Network]; known {
			byNS[e.Namespace] = append(byNS[e.Namespace], e)
		}
	}
	for ns, eps := range byNS {
		b := datapath.Balancer{NS: ns, VIPs: v.VIPs[eps[0].Network]}
		if len(eps) > 1 {
			slices.SortFunc(eps, func(a, b Endpoint) int { return rank[a.ID] - rank[b.ID] })
			b.VIPs = merged(v, eps)
		}
		c.Balancers = append(c.Balancers, b)
	}
	slices.SortFunc(c.Balancers, func(a, b datapath.Balancer) int { return strings.Compare(a.NS.Path, b.NS.Path) })
}

func merged(v View, eps []Endpoint) (out []*datapath.VIP) {
	taken := map[netip.Addr]bool{}
	for _, e := range eps {
		for _, vip := range v.VIPs[e.Network] {
			if slices.ContainsFunc(vip.Addrs, func(a netip.Addr) bool { return taken[a] }) {
				continue
			}
			for _, a := range vip.Addrs {
				taken[a] = true
			}
			out = append(out, vip)
		}
	}
	slices.SortFunc(out, func(a, b *datapath.VIP) int { return strings.Compare(a.Service, b.Service) })
	return out
}
