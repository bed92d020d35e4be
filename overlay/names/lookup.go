package names

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/services"
)

// Asker is who asks: what is in one namespace. It sees the networks that it is in.
type Asker struct {
	Namespace datapath.NS
	Host      bool   // the host itself
	Make      string // as in Endpoint
	table     *Table
	zones     []*Zone // that of the default route first
}

// Zones are the networks that it is in, that of the default route first.
func (a *Asker) Zones() []*Zone { return a.zones }

// Internal says whether none of its networks leads out.
func (a *Asker) Internal() bool {
	return !slices.ContainsFunc(a.zones, func(z *Zone) bool { return !z.Internal })
}

// Partial says whether there may be names that are not known yet.
func (a *Asker) Partial() bool {
	return slices.ContainsFunc(a.zones, func(z *Zone) bool { return z.Partial })
}

// Below is a name in lower case without Domain, and whether it was below it. Domain itself is "".
func Below(name string) (string, bool) {
	if name == Domain {
		return "", true
	}
	return strings.CutSuffix(name, "."+Domain)
}

// each gives the readings of a name, in lower case and without Domain, in the order in which they
// count: in each network of the asker's, then as NAME.NETWORK.
func (a *Asker) each(name string, try func(z *Zone, name string) (found bool)) {
	for _, z := range a.zones {
		if try(z, name) {
			return
		}
	}
	for _, z := range a.zones {
		if short, ok := strings.CutSuffix(name, "."+strings.ToLower(z.Name)); ok && try(z, short) {
			return
		}
	}
}

// Addrs are the addresses of a name, in lower case and without Domain, in the first network that
// has any: of a service its own or its backends' in rotation, of "tasks.SERVICE" the latter, and of
// workloads of that name or alias. A name may be known and have none.
func (a *Asker) Addrs(name string) (ips []netip.Addr, known bool) {
	a.each(name, func(z *Zone, name string) bool {
		now, is := a.table.addrs(z, name)
		ips, known = now, known || is
		return len(ips) > 0
	})
	return ips, known
}

func (t *Table) addrs(z *Zone, name string) (ips []netip.Addr, known bool) {
	if s := z.byName[name]; s != nil {
		if s.Mode == overlay.ModeVIP && len(s.VIPs) > 0 {
			return slices.Clone(s.VIPs), true
		}
		return rotation(s), true
	}
	for r := range z.called(name) {
		known = true
		if !t.out[r.Owner] {
			ips = append(ips, r.IPs...)
		}
	}
	if known {
		return ips, true
	}
	if of, ok := strings.CutPrefix(name, "tasks."); ok {
		if s := z.byName[of]; s != nil {
			return rotation(s), true
		}
	}
	return nil, false
}

// rotation are the addresses of a service's backends that are in rotation.
func rotation(s *services.Service) (ips []netip.Addr) {
	for _, b := range s.Backends {
		if b.Used {
			ips = append(ips, b.IPs...)
		}
	}
	return ips
}

// Names are the full names of an address in the asker's networks, without the last dot. ours says
// whether it belongs to one of them: then nobody else knows.
func (a *Asker) Names(ip netip.Addr) (names []string, ours bool) {
	for _, z := range a.zones {
		if _, in := z.SubnetOf(ip); !in {
			continue
		}
		ours = true
		if s := z.byVIP[ip]; s != nil {
			names = append(names, z.full(s.Name))
		}
		for r := range z.at(ip) {
			if !a.table.out[r.Owner] {
				names = append(names, z.full(r.Workload))
			}
		}
		if len(names) > 0 {
			return names, true
		}
	}
	return nil, ours
}

// full is the full name of what is in a network.
func (z *Zone) full(name string) string { return name + "." + z.Name + "." + Domain }

// Port is where a named port of a service is.
type Port struct {
	Target string // a full name, without the last dot
	Port   uint16
	IPs    []netip.Addr // of Target
}

// Ports are where a service's port of a name and protocol is, all in lower case and without Domain.
// known says whether there is such a service.
func (a *Asker) Ports(port, proto, service string) (ports []Port, known bool) {
	a.each(service, func(z *Zone, name string) bool {
		s, tasks := z.byName[name], false
		if of, ok := strings.CutPrefix(name, "tasks."); s == nil && ok {
			s, tasks = z.byName[of], true
		}
		if s == nil {
			return false
		}
		known = true
		for _, p := range s.Ports {
			if strings.ToLower(p.Name) != port || p.Proto != proto || p.Name == "" {
				continue
			}
			if !tasks && s.Mode == overlay.ModeVIP && len(s.VIPs) > 0 {
				ports = append(ports, Port{z.full(s.Name), p.Port, s.VIPs})
				continue
			}
			ports = append(ports, z.backends(s, p.Target)...)
		}
		return true
	})
	return ports, known
}

// backends are the workloads of a service that are in rotation: those of one name are one.
func (z *Zone) backends(s *services.Service, port uint16) (ports []Port) {
	for _, b := range s.Backends {
		if !b.Used {
			continue
		}
		name := z.full(b.Workload)
		if i := slices.IndexFunc(ports, func(p Port) bool { return p.Target == name }); i >= 0 {
			ports[i].IPs = append(ports[i].IPs, b.IPs...)
			continue
		}
		ports = append(ports, Port{name, port, slices.Clone(b.IPs)})
	}
	return ports
}
