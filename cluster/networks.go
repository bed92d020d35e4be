package cluster

import (
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/cluster/state"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/rows"
)

func (m *Manager) findNetwork(ref string) (overlay.Network, error) {
	return overlay.Find("network", ref, m.state.View().Networks(), func(n overlay.Network) (string, string) { return string(n.ID), n.Name })
}

// Networks are the rows of `network ls`, sorted by name.
func (m *Manager) Networks(context.Context) ([]overlay.NetworkRow, error) {
	all := []overlay.NetworkRow{}
	v := m.state.View()
	for _, n := range v.Networks() {
		all = append(all, m.networkRow(v, n))
	}
	return all, nil
}

// Network is the row of one network, by name, ID or prefix.
func (m *Manager) Network(_ context.Context, ref string) (overlay.NetworkRow, error) {
	n, err := m.findNetwork(ref)
	if err != nil {
		return overlay.NetworkRow{}, err
	}
	row := m.noted(n)
	if !n.Encrypted {
		row.Notes = append(row.Notes, "not encrypted: a host on the underlay that forges the source address of a participant can send into it; make it with --encrypted where that matters")
	}
	return row, nil
}

// CreateNetwork makes a network.
func (m *Manager) CreateNetwork(ctx context.Context, s overlay.NetworkSpec) (overlay.NetworkRow, error) {
	if err := s.Validate(); err != nil {
		return overlay.NetworkRow{}, err
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	res, err := propose[state.NetworkResult](ctx, m, "network", state.CreateNetwork{ID: overlay.NewID[overlay.NetworkID](id), Spec: s, Avoid: m.avoid(m.state.View())})
	if err != nil {
		return overlay.NetworkRow{}, err
	}
	return m.noted(res.Network), nil
}

// UpdateNetwork changes a network's labels and adds subnets.
func (m *Manager) UpdateNetwork(ctx context.Context, ref string, u overlay.NetworkUpdate) (overlay.NetworkRow, error) {
	n, err := m.findNetwork(ref)
	if err != nil {
		return overlay.NetworkRow{}, err
	}
	res, err := propose[state.NetworkResult](ctx, m, "network", state.UpdateNetwork{ID: n.ID, Labels: u.Labels, DropLabels: u.DropLabels, Subnets: u.Subnets})
	if err != nil {
		return overlay.NetworkRow{}, err
	}
	return m.noted(res.Network), nil
}

// UpdateCluster adds address pools.
func (m *Manager) UpdateCluster(ctx context.Context, u overlay.ClusterUpdate) (overlay.Params, error) {
	res, err := propose[state.ParamsResult](ctx, m, "params", state.UpdateParams{AddPools: u.AddPools})
	return res.Params, err
}

// RemoveNetwork removes a network that has no endpoints, or says who holds it. A manager may not
// have heard of all, since it has just started or a participant is cut off: it asks them.
func (m *Manager) RemoveNetwork(ctx context.Context, ref string) error {
	if done, err := m.answered(ctx, "network"); done {
		return err
	}
	n, err := m.findNetwork(ref)
	if err != nil {
		return err
	}
	v := m.state.View()
	wait, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if err := m.Observer.Refresh(wait, slices.Collect(maps.Keys(v.Leases(n.ID)))); err != nil {
		return overlay.Errorf(overlay.InUse, "a participant of network %s does not say whether it has endpoints in it (%w); start it, or `heddle node rm` it if it is gone", n.Name, err)
	}
	if ends := m.endpoints(v, n); len(ends) > 0 {
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
	all := []overlay.Endpoint{}
	v := m.state.View()
	for _, n := range v.Networks() {
		all = append(all, m.endpoints(v, n)...)
	}
	rows.Sort(all)
	return all, nil
}

func (m *Manager) endpoints(v *state.View, n overlay.Network) []overlay.Endpoint {
	return rows.Endpoints(n, v.Nodes, m.Observer.Claims(n.ID))
}

func (m *Manager) networkRow(v *state.View, n overlay.Network) overlay.NetworkRow {
	return rows.Network(n, v.Nodes, v.Leases(n.ID), m.Observer.Claims(n.ID))
}

// noted is the row of one network with what the operator should know of it.
func (m *Manager) noted(n overlay.Network) overlay.NetworkRow {
	v := m.state.View()
	row := m.networkRow(v, n)
	row.Notes = m.hides(v, n.Subnets)
	return row
}
