package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/cluster/state"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/ipam"
)

func (m *Manager) findNetwork(ref string) (overlay.Network, error) {
	return overlay.Find("network", ref, m.state.View().Networks(), func(n overlay.Network) (string, string) { return string(n.ID), n.Name })
}

// Networks are the rows of `network ls`, sorted by name.
func (m *Manager) Networks(context.Context) ([]overlay.NetworkRow, error) {
	rows := []overlay.NetworkRow{}
	v := m.state.View()
	for _, n := range v.Networks() {
		rows = append(rows, m.networkRow(v, n))
	}
	return rows, nil
}

// Network is the row of one network, by name, ID or prefix.
func (m *Manager) Network(_ context.Context, ref string) (overlay.NetworkRow, error) {
	n, err := m.findNetwork(ref)
	if err != nil {
		return overlay.NetworkRow{}, err
	}
	return m.networkRow(m.state.View(), n), nil
}

// CreateNetwork makes a network.
func (m *Manager) CreateNetwork(ctx context.Context, s overlay.NetworkSpec) (overlay.NetworkRow, error) {
	if err := s.Validate(); err != nil {
		return overlay.NetworkRow{}, err
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	res, err := propose[state.NetworkResult](ctx, m, "network", state.CreateNetwork{ID: overlay.NewID[overlay.NetworkID](id), Spec: s})
	if err != nil {
		return overlay.NetworkRow{}, err
	}
	return m.networkRow(m.state.View(), res.Network), nil
}

// RemoveNetwork removes a network that has no endpoints, or says who holds it.
func (m *Manager) RemoveNetwork(ctx context.Context, ref string) error {
	n, err := m.findNetwork(ref)
	if err != nil {
		return err
	}
	if ends := m.endpoints(m.state.View(), n); len(ends) > 0 {
		var names []string
		for _, e := range ends {
			names = append(names, e.NodeName+"/"+e.Name)
		}
		return overlay.Errorf(overlay.InUse, "network %s is in use by %s; detach them first", n.Name, strings.Join(names, ", "))
	}
	_, err = propose[state.NetworkResult](ctx, m, "network", state.RemoveNetwork{ID: n.ID})
	return err
}

// Endpoints are all endpoints that this manager sees, sorted by node and name.
func (m *Manager) Endpoints(context.Context) ([]overlay.Endpoint, error) {
	rows := []overlay.Endpoint{}
	v := m.state.View()
	for _, n := range v.Networks() {
		rows = append(rows, m.endpoints(v, n)...)
	}
	slices.SortFunc(rows, byName)
	return rows, nil
}

func byName(a, b overlay.Endpoint) int {
	return cmp.Or(cmp.Compare(a.NodeName, b.NodeName), cmp.Compare(a.Name, b.Name), cmp.Compare(a.NetworkName, b.NetworkName))
}

func (m *Manager) endpoints(v *state.View, n overlay.Network) []overlay.Endpoint {
	var rows []overlay.Endpoint
	for _, c := range m.Observer.Claims(n.ID) {
		node, known := v.Nodes[c.Record.Owner]
		if c.Record.Deleted || !known {
			continue
		}
		e := overlay.Endpoint{
			ID: c.Record.Endpoint, Name: c.Record.Workload, Node: node.ID, NodeName: node.Name, NetworkID: n.ID, NetworkName: n.Name,
			MAC: c.Record.MAC, State: overlay.EndpointReady, Service: c.Record.Service, Labels: c.Record.Labels,
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
		rows = append(rows, e)
	}
	slices.SortFunc(rows, byName)
	return rows
}

func (m *Manager) networkRow(v *state.View, n overlay.Network) overlay.NetworkRow {
	r := overlay.NetworkRow{
		ID: n.ID, Name: n.Name, Driver: n.Driver, Scope: "cluster", VNI: n.VNI, EnableIPv4: n.IPv4, EnableIPv6: n.IPv6,
		Internal: n.Internal, Labels: n.Labels, Options: n.Options, MTU: n.MTU(), Endpoints: m.endpoints(v, n), Participants: []overlay.ParticipantRow{},
	}
	for _, s := range n.Subnets {
		r.IPAM.Config = append(r.IPAM.Config, overlay.IPAMConfigRow{
			Subnet: s.Prefix, Gateway: s.Gateway, IPRange: s.Range, AuxiliaryAddresses: s.Aux, Addresses: ipam.Reserved(s).Free(ipam.Leasable(s)),
			Leased: v.Leased(n.ID, s.Prefix), InUse: inUse(r.Endpoints, s.Prefix),
		})
	}
	leases := v.Leases(n.ID)
	for _, id := range slices.Sorted(maps.Keys(leases)) {
		r.Participants = append(r.Participants, overlay.ParticipantRow{Node: id, Name: v.Nodes[id].Name, Leased: leased(leases[id])})
	}
	if r.Endpoints == nil {
		r.Endpoints = []overlay.Endpoint{}
	}
	return r
}

// inUse counts the endpoints' addresses in a subnet.
func inUse(endpoints []overlay.Endpoint, p netip.Prefix) (n uint64) {
	for _, e := range endpoints {
		if p.Contains(e.IPv4.Addr()) || p.Contains(e.IPv6.Addr()) {
			n++
		}
	}
	return n
}

// leased counts the addresses of the lease's first family.
func leased(s overlay.Signed) (n int) {
	var l overlay.Lease
	if s.Decode(overlay.DomainLease, &l) != nil {
		return 0
	}
	for _, g := range l.Grants {
		if g.First.BitLen() == l.Grants[0].First.BitLen() {
			n += int(low(g.Last)-low(g.First)) + 1
		}
	}
	return n
}

// low is the last 64 bits of an address.
func low(a netip.Addr) uint64 {
	b := a.As16()
	return binary.BigEndian.Uint64(b[8:])
}
