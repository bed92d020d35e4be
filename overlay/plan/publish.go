package plan

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

// PublishOwner owns the host's side of published ports.
const PublishOwner datapath.Owner = "publish"

// publisher gathers the host's published ports.
type publisher struct {
	view  View
	host  datapath.Entrance
	exits map[exit]overlay.EndpointID
}

func newPublisher(v View, rank map[overlay.EndpointID]int) publisher {
	return publisher{v, datapath.Entrance{Owner: PublishOwner, Within: []netip.Prefix{uplinkPool4, uplinkPool6}}, exits(v, rank)}
}

// network wants the ports of a network's workloads and services: the host leads them to the near end of
// the network's uplink, and the network's namespace from there to workloads, here or elsewhere.
func (p *publisher) network(c *datapath.Config, ns datapath.NS, n overlay.Network, local []Endpoint) datapath.Entrance {
	v := p.view
	e := datapath.Entrance{NS: ns, Owner: datapath.Owner(n.ID), From: UplinkName, Bridge: BridgeName, Partial: v.Unsettled[n.ID]}
	p.host.Partial = p.host.Partial || e.Partial
	for _, s := range n.Subnets {
		e.Within = append(e.Within, s.Prefix)
	}
	var ports []opened
	for _, l := range local {
		for _, port := range l.Publish {
			o := opened{Publish: port}
			for _, ip := range l.IPs {
				o.to = append(o.to, datapath.Backend{At: netip.AddrPortFrom(ip, port.Target), Leaves: l.Leaves})
			}
			ports = append(ports, o)
		}
	}
	for _, s := range v.Services[n.ID] {
		ports = append(ports, v.serves(s)...)
	}
	slots(ports)
	near := uplinkNear(n, v)
	for _, o := range ports {
		for _, at := range near {
			if o.service {
				o.open(&p.host.Services, &e.Services, at)
			} else {
				o.open(&p.host.Workloads, &e.Workloads, at)
			}
		}
	}
	e.Workloads.Sources = p.elsewhere(n, local)
	e.Services.Sources = v.through(c, ns, e.Owner, n, local)
	return e
}

// opened is a published port, and the port of the uplink that it goes by.
type opened struct {
	overlay.Publish
	slot    uint16
	service bool
	to      []datapath.Backend
}

// open wants one family of a port, which goes by the near end of the uplink.
func (o opened) open(host, inner *datapath.Passages, near netip.Addr) {
	if o.Addr.IsValid() && o.Addr.Is4() != near.Is4() {
		return
	}
	var to []datapath.Backend
	leaves := true
	for _, b := range o.to {
		if b.At.Addr().Is4() == near.Is4() {
			to = append(to, b)
			leaves = leaves && b.Leaves
		}
	}
	if len(to) == 0 {
		return
	}
	inner.Ports = append(inner.Ports, datapath.Passage{Proto: o.Proto, At: near, Port: o.slot, To: to})
	host.Ports = append(host.Ports, datapath.Passage{
		Proto: o.Proto, At: cmp.Or(o.Addr, anyOf(near)), Port: o.Port,
		To: []datapath.Backend{{At: netip.AddrPortFrom(near, o.slot), Leaves: leaves}},
	})
}

// anyOf is the address that stands for all of a family.
func anyOf(a netip.Addr) netip.Addr { return anywhere(a).Addr() }

// slots gives each port one of the uplink: its own, or where several addresses of the host have the
// same port one that follows from address and port. It is the same whatever else there is, but for
// the rare case that two want one: flows that stand go by it.
func slots(ports []opened) {
	slices.SortFunc(ports, func(a, b opened) int {
		return cmp.Or(a.Addr.Compare(b.Addr), yes(a.service)-yes(b.service), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto))
	})
	type slot struct {
		proto string
		port  uint16
	}
	taken := map[slot]bool{}
	for i := range ports { // those of all addresses come first
		o := &ports[i]
		o.slot = o.Port
		if o.Addr.IsValid() {
			h := fnv.New32a()
			h.Write(o.Addr.AsSlice())
			h.Write([]byte{byte(o.Port >> 8), byte(o.Port)})
			o.slot = uint16(h.Sum32()%65535) + 1
		}
		for taken[slot{o.Proto, o.slot}] || o.slot == 0 {
			o.slot++
		}
		taken[slot{o.Proto, o.slot}] = true
	}
}

// elsewhere are local endpoints whose default route is not through this network: who comes to them
// from outside must look like their gateway.
func (p *publisher) elsewhere(n overlay.Network, local []Endpoint) (out []datapath.Source) {
	for _, e := range local {
		for _, ip := range e.IPs {
			if s, ok := n.SubnetOf(ip); ok && (e.Host || p.exits[exit{e.Namespace, ip.Is4()}] != e.ID) {
				out = append(out, datapath.Source{Of: ip, As: s.Gateway})
			}
		}
	}
	return out
}

// exit is a family's way out of a namespace.
type exit struct {
	ns datapath.NS
	v4 bool
}

// exits are the endpoints by which default routes go.
func exits(v View, rank map[overlay.EndpointID]int) map[exit]overlay.EndpointID {
	out := map[exit]overlay.EndpointID{}
	for _, e := range v.Local {
		if v.Networks[e.Network].Internal {
			continue
		}
		for _, ip := range e.IPs {
			to := exit{e.Namespace, ip.Is4()}
			if other, ok := out[to]; !ok || rank[e.ID] < rank[other] {
				out[to] = e.ID
			}
		}
	}
	return out
}

// uplinkNear are the addresses of an uplink's end in the network's namespace.
func uplinkNear(n overlay.Network, v View) (near [2]netip.Addr) {
	index := uplinkIndex(n, v)
	for i, pool := range []netip.Prefix{uplinkPool4, uplinkPool6} {
		near[i] = nth(pool, 2*index+1)
	}
	return near
}
