package state

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/ipam"
)

// serviceName is what a service is unique by.
type serviceName struct {
	network overlay.NetworkID
	name    string
}

func (c CreateService) apply(t *tables, index uint64) (ref, error) {
	n, ok := t.networks.m[c.Network]
	switch {
	case !overlay.ValidID(string(c.ID)):
		return ref{}, overlay.Errorf(overlay.Invalid, "%.32q is no service ID", string(c.ID))
	case !ok:
		return ref{}, noNetwork(c.Network)
	case n.def.Driver != overlay.DriverOverlay:
		return ref{}, overlay.Errorf(overlay.Invalid, "network %s has driver %s, and services need an overlay network; host and none have no addresses of their own", n.def.Name, n.def.Driver)
	}
	spec := c.Spec
	if err := spec.Validate(); err != nil {
		return ref{}, err
	}
	if other, taken := t.servName[serviceName{c.Network, spec.Name}]; taken {
		return ref{}, overlay.Errorf(overlay.Exists, "service %q exists in network %s already (%s); take another name, or remove that one with `heddle service rm %s`",
			spec.Name, n.def.Name, other.Short(), t.title(other))
	}
	if _, taken := t.services.m[c.ID]; taken {
		return ref{}, overlay.Errorf(overlay.Exists, "service ID %s is taken; draw another", c.ID.Short())
	}
	var err error
	if spec.VIPs, err = t.vips(n, spec, c.Now); err != nil {
		return ref{}, err
	}
	if spec.Publish, err = t.publish(c.ID, spec.Publish); err != nil {
		return ref{}, err
	}
	if len(n.resting) > 0 {
		next := *n
		next.resting = t.pools[c.Network].wake(n.resting, runs(spec.VIPs), c.Now)
		t.networks.edit()[c.Network] = &next
	}
	t.replaceService(nil, &overlay.Service{ID: c.ID, Network: c.Network, ServiceSpec: spec, Created: index, Updated: index})
	return ref{Service: c.ID}, nil
}

func (c UpdateService) apply(t *tables, index uint64) (ref, error) {
	s, ok := t.services.m[c.ID]
	if !ok {
		return ref{}, noService(c.ID)
	}
	if err := c.Update.Validate(); err != nil {
		return ref{}, err
	}
	next := *s
	var err error
	if next.ServiceSpec, err = c.Update.Apply(s.ServiceSpec); err != nil {
		return ref{}, err
	}
	if next.Publish, err = t.publish(c.ID, next.Publish); err != nil {
		return ref{}, err
	}
	next.Updated = index
	t.replaceService(s, &next)
	return ref{Service: c.ID}, nil
}

func (c RemoveService) apply(t *tables, _ uint64) (ref, error) {
	s, ok := t.services.m[c.ID]
	if !ok {
		return ref{}, noService(c.ID)
	}
	t.replaceService(s, nil)
	return ref{Service: c.ID}, nil
}

// replaceService puts a service that was checked in the place of an older row of it, and notes who
// learns of that. Either may be nil.
func (t *tables) replaceService(old, next *overlay.Service) {
	row := next
	if row == nil {
		row = old
	}
	ingress, all := t.ingress[row.Network] > 0, t.services.edit()
	if old != nil {
		delete(all, old.ID)
		t.unindexService(old)
	}
	if next != nil {
		all[next.ID] = next
		t.indexService(next)
	}
	t.changed(key{table: tService, network: row.Network, service: row.ID})
	if old != nil && old.Ingress() && (next == nil || !next.Ingress()) {
		t.changed(key{table: tUnpublished, service: row.ID})
	}
	if t.ingress[row.Network] > 0 != ingress {
		t.changed(key{table: tIngress, network: row.Network})
	}
}

// indexService enters a service's row into the look-ups.
func (t *tables) indexService(s *overlay.Service) {
	t.servName[serviceName{s.Network, s.Name}] = s.ID
	p := t.pools[s.Network]
	p.services[s.ID] = true
	for _, r := range runs(s.VIPs) {
		p.vips[r.First] = s.ID
		p.used.Add(r)
	}
	for _, pub := range s.Publish {
		if t.ports[at(pub)] == nil {
			t.ports[at(pub)] = map[overlay.ServiceID]overlay.PublishMode{}
		}
		t.ports[at(pub)][s.ID] = pub.Mode
	}
	if s.Ingress() {
		t.ingress[s.Network]++
	}
}

// unindexService takes it out of them.
func (t *tables) unindexService(s *overlay.Service) {
	delete(t.servName, serviceName{s.Network, s.Name})
	p := t.pools[s.Network]
	delete(p.services, s.ID)
	for _, r := range runs(s.VIPs) {
		delete(p.vips, r.First)
		p.used.Remove(r)
	}
	for _, pub := range s.Publish {
		if delete(t.ports[at(pub)], s.ID); len(t.ports[at(pub)]) == 0 {
			delete(t.ports, at(pub))
		}
	}
	if !s.Ingress() {
		return
	}
	if t.ingress[s.Network]--; t.ingress[s.Network] == 0 {
		delete(t.ingress, s.Network)
	}
}

func at(p overlay.Publish) overlay.ProtoPort {
	return overlay.ProtoPort{Proto: p.Proto, Port: p.Port}
}

// title is how people tell a service from all others.
func (t *tables) title(id overlay.ServiceID) string {
	s := t.services.m[id]
	return t.networks.m[s.Network].def.Name + "/" + s.Name
}

// vips are the addresses of a new service: those asked for and, of each other family that the
// network has, the highest that is free. Leases begin at the other end.
func (t *tables) vips(n *network, spec overlay.ServiceSpec, now int64) (out []netip.Addr, err error) {
	if spec.Mode != overlay.ModeVIP {
		return nil, nil
	}
	p := t.pools[n.def.ID]
	for _, v4 := range []bool{true, false} {
		subnets := n.subnets(v4)
		i := slices.IndexFunc(spec.VIPs, func(a netip.Addr) bool { return a.Is4() == v4 })
		switch {
		case i >= 0:
			if err := t.askedVIP(n, spec.VIPs[i], now); err != nil {
				return nil, err
			}
			out = append(out, spec.VIPs[i])
		case len(subnets) > 0:
			a, ok := p.top(subnets, n.resting, now)
			if !ok {
				return nil, full(n.def, v4)
			}
			out = append(out, a)
		}
	}
	return out, nil
}

// askedVIP refuses an address that is asked for and not free.
func (t *tables) askedVIP(n *network, a netip.Addr, now int64) error {
	if _, err := t.asked("", n, a); err != nil {
		return err
	}
	for _, r := range n.resting {
		if left := r.Until - now; left > 0 && has([]overlay.Grant{{First: r.First, Last: r.Last}}, a) {
			return overlay.Errorf(overlay.Exists, "address %s of network %s was an endpoint's a moment ago, and others may still take it for that; take another, or try again in %d s", a, n.def.Name, left)
		}
	}
	return nil
}

// top is the highest free address of the subnets. Where nothing else is left, it is one of those
// that rest longest.
func (p *pool) top(subnets []overlay.Subnet, resting []rest, now int64) (netip.Addr, bool) {
	used := p.rested(resting, now)
	for i := -1; i < len(resting); i++ {
		if i >= 0 {
			used.Remove(resting[i].run())
		}
		for _, s := range subnets {
			if a, ok := used.Highest(ipam.Leasable(s)); ok {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

func runs(addrs []netip.Addr) (out []ipam.Range) {
	for _, a := range addrs {
		out = append(out, ipam.Range{First: a, Last: a})
	}
	return out
}

// publish is what a service publishes, with the ports chosen that it leaves open, or says which
// can't be had.
func (t *tables) publish(id overlay.ServiceID, ports []overlay.Publish) ([]overlay.Publish, error) {
	ports = slices.Clone(ports)
	for _, p := range ports {
		if p.Port == 0 {
			continue
		}
		if by := t.publisher(id, p, false); by != "" {
			return nil, overlay.Errorf(overlay.Exists, "port %d/%s is published by service %s already; take another, or leave it open for a free one", p.Port, p.Proto, by)
		}
		if by := t.listener(p); by != "" {
			return nil, overlay.Errorf(overlay.Exists, "port %d/%s is where %s; take another, or leave it open for a free one", p.Port, p.Proto, by)
		}
	}
	for i := range ports {
		if ports[i].Port != 0 {
			continue
		}
		free, ok := t.freePort(id, ports[i], ports)
		if !ok {
			return nil, overlay.Errorf(overlay.Exhausted, "all %s ports from %d to %d are published; name another one", ports[i].Proto, overlay.FirstDynamicPort, overlay.LastDynamicPort)
		}
		ports[i].Port = free
	}
	return ports, nil
}

// freePort is the lowest port of those to choose from that nobody publishes.
func (t *tables) freePort(id overlay.ServiceID, p overlay.Publish, own []overlay.Publish) (uint16, bool) {
	for p.Port = overlay.FirstDynamicPort; p.Port <= overlay.LastDynamicPort; p.Port++ {
		if t.publisher(id, p, true) == "" && !slices.ContainsFunc(own, p.Clashes) && t.listener(p) == "" {
			return p.Port, true
		}
	}
	return 0, false
}

// publisher is another service by which a port can't be published, or "". An ingress port is on
// every node, and clashes with all; local ones clash only there where both have backends, unless
// anybody's is meant.
func (t *tables) publisher(id overlay.ServiceID, p overlay.Publish, anybody bool) (title string) {
	for other, mode := range t.ports[at(p)] {
		if other == id || !anybody && p.Mode != overlay.PublishIngress && mode != overlay.PublishIngress {
			continue
		}
		if by := t.title(other); title == "" || by < title {
			title = by
		}
	}
	return title
}

// listener says that nodes themselves answer at a port, or "".
func (t *tables) listener(p overlay.Publish) (who string) {
	if p.Proto == "udp" && p.Port == t.Params.DataPathPort {
		return "nodes receive VXLAN"
	}
	for _, n := range t.nodes.m {
		if p.Port == n.Gossip.Port() || p.Proto == "tcp" && p.Port == n.Control.Port() {
			if by := fmt.Sprintf("node %s answers other nodes", n.Name); who == "" || by < who {
				who = by
			}
		}
	}
	return who
}

// unserved refuses to remove a network that has services.
func (t *tables) unserved(n *network) error {
	all := slices.Sorted(maps.Keys(t.pools[n.def.ID].services))
	if len(all) == 0 {
		return nil
	}
	var names []string
	for _, id := range all {
		names = append(names, t.services.m[id].Name)
	}
	slices.Sort(names)
	more := ""
	if len(names) > 8 {
		names, more = names[:8], fmt.Sprintf(" and %d others", len(names)-8)
	}
	return overlay.Errorf(overlay.InUse, "network %s has the services %s%s; remove them first with `heddle service rm`", n.def.Name, strings.Join(names, ", "), more)
}

// restoreService enters a service of a snapshot.
func (t *tables) restoreService(id overlay.ServiceID, s overlay.Service) error {
	n, ok := t.networks.m[s.Network]
	if _, twice := t.servName[serviceName{s.Network, s.Name}]; twice || !ok || s.ID != id {
		return fmt.Errorf("it is there twice, in no network, or under another ID")
	}
	if err := s.Validate(); err != nil {
		return err
	}
	p := t.pools[s.Network]
	for _, a := range s.VIPs {
		if _, in := n.def.SubnetOf(a); !in || p.used.Has(a) {
			return fmt.Errorf("%s is no address of its network, or another's", a)
		}
	}
	for _, pub := range s.Publish {
		if pub.Port == 0 || t.publisher(id, pub, false) != "" {
			return fmt.Errorf("port %d/%s is open, or another's", pub.Port, pub.Proto)
		}
	}
	t.services.m[id] = &s
	t.indexService(&s)
	return nil
}
