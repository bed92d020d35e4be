// Package rows makes what lists show of a cluster, from the managers' facts and the nodes'
// records. Managers and the nodes' own copies show the same by it. It is pure.
package rows

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/ipam"
)

// Endpoints are the live endpoints of a network, sorted by node and name. Claims of nodes that
// are not among nodes are left out.
func Endpoints(n overlay.Network, nodes map[overlay.NodeID]overlay.Node, claims []*overlay.Claim) []overlay.Endpoint {
	out := []overlay.Endpoint{}
	for _, c := range claims {
		node, known := nodes[c.Record.Owner]
		if c.Record.Deleted || !known {
			continue
		}
		e := overlay.Endpoint{
			ID: c.Record.Endpoint, Name: c.Record.Workload, Node: node.ID, NodeName: node.Name, NetworkID: n.ID, NetworkName: n.Name,
			MAC: c.Record.MAC, State: overlay.EndpointReady, Service: c.Record.Service, Labels: c.Record.Labels,
			Health: c.Record.Health,
		}
		if len(c.Record.Names) > 1 {
			e.Aliases = c.Record.Names[1:] // the first is the workload's own
		}
		for _, ip := range c.Record.IPs {
			s, _ := n.SubnetOf(ip)
			if p := netip.PrefixFrom(ip, s.Prefix.Bits()); ip.Is4() {
				e.IPv4 = p
			} else {
				e.IPv6 = p
			}
		}
		out = append(out, e)
	}
	Sort(out)
	return out
}

// Sort sorts endpoints by node, name and network.
func Sort(e []overlay.Endpoint) {
	slices.SortFunc(e, func(a, b overlay.Endpoint) int {
		return cmp.Or(cmp.Compare(a.NodeName, b.NodeName), cmp.Compare(a.Name, b.Name), cmp.Compare(a.NetworkName, b.NetworkName))
	})
}

// Network is a network's row, without what a single node has of it.
func Network(n overlay.Network, nodes map[overlay.NodeID]overlay.Node, leases map[overlay.NodeID]overlay.Signed, claims []*overlay.Claim) overlay.NetworkRow {
	r := overlay.NetworkRow{
		ID: n.ID, Name: n.Name, Driver: n.Driver, Scope: n.Scope(), VNI: n.VNI, EnableIPv4: n.IPv4, EnableIPv6: n.IPv6,
		Internal: n.Internal, Encrypted: n.Encrypted, Labels: n.Labels, Options: n.Options, MTU: n.MTU(), Endpoints: Endpoints(n, nodes, claims), Participants: []overlay.ParticipantRow{},
	}
	for _, s := range n.Subnets {
		r.IPAM.Config = append(r.IPAM.Config, overlay.IPAMConfigRow{
			Subnet: s.Prefix, Gateway: s.Gateway, IPRange: s.Range, AuxiliaryAddresses: s.Aux, Addresses: ipam.Reserved(s).Free(ipam.Leasable(s)),
			InUse: inUse(r.Endpoints, s.Prefix),
		})
	}
	for _, id := range slices.Sorted(maps.Keys(leases)) {
		p := overlay.ParticipantRow{Node: id, Name: nodes[id].Name}
		var l overlay.Lease
		_ = leases[id].Decode(overlay.DomainLease, &l) // it was checked when it came in
		for i, s := range n.Subnets {
			held := leased(l, s.Prefix)
			r.IPAM.Config[i].Leased += held
			if s.Prefix.Addr().BitLen() == n.Subnets[0].Prefix.Addr().BitLen() {
				p.Leased += int(held)
			}
		}
		r.Participants = append(r.Participants, p)
	}
	return r
}

func inUse(endpoints []overlay.Endpoint, p netip.Prefix) (n uint64) {
	for _, e := range endpoints {
		if p.Contains(e.IPv4.Addr()) || p.Contains(e.IPv6.Addr()) {
			n++
		}
	}
	return n
}

func leased(l overlay.Lease, p netip.Prefix) (n uint64) {
	for _, g := range l.Grants {
		if p.Contains(g.First) {
			n += ipam.Range{First: g.First, Last: g.Last}.Len()
		}
	}
	return n
}
