package cluster

import (
	"context"
	"crypto/rand"
	"maps"
	"slices"

	"github.com/heddle-net/heddle/cluster/state"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/rows"
)

func (m *Manager) findService(ref string) (*overlay.Service, error) {
	v := m.state.View()
	return overlay.FindService(ref, slices.Collect(maps.Values(v.Services())), func(s *overlay.Service) overlay.ServiceName {
		n, _ := v.Network(s.Network)
		return overlay.ServiceName{ID: s.ID, Name: s.Name, NetworkID: s.Network, Network: n.Name}
	})
}

// Services are the rows of `service ls`, sorted by network and name.
func (m *Manager) Services(context.Context) ([]overlay.ServiceRow, error) {
	v, all := m.state.View(), []overlay.ServiceRow{}
	of := map[overlay.NetworkID][]overlay.Service{}
	for _, s := range v.Services() {
		of[s.Network] = append(of[s.Network], *s)
	}
	for id, some := range of {
		all = append(all, m.serviceRows(v, id, some)...)
	}
	rows.SortServices(all)
	return all, nil
}

// Service is the row of one service; see overlay.FindService for what ref may be.
func (m *Manager) Service(_ context.Context, ref string) (overlay.ServiceRow, error) {
	s, err := m.findService(ref)
	if err != nil {
		return overlay.ServiceRow{}, err
	}
	return m.serviceRow(*s), nil
}

// CreateService makes a service.
func (m *Manager) CreateService(ctx context.Context, r overlay.ServiceRequest) (overlay.ServiceRow, error) {
	if err := r.Validate(); err != nil {
		return overlay.ServiceRow{}, err
	}
	if err := m.tunnelled(r.Publish); err != nil {
		return overlay.ServiceRow{}, err
	}
	n, err := m.findNetwork(r.Network)
	if err != nil {
		return overlay.ServiceRow{}, err
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	res, err := propose[state.ServiceResult](ctx, m, "service", state.CreateService{ID: overlay.NewID[overlay.ServiceID](id), Network: n.ID, Spec: r.ServiceSpec, Now: m.Now().Unix()})
	if err != nil {
		return overlay.ServiceRow{}, err
	}
	return m.serviceRow(res.Service), nil
}

// UpdateService changes what can change in a service.
func (m *Manager) UpdateService(ctx context.Context, ref string, u overlay.ServiceUpdate) (overlay.ServiceRow, error) {
	if err := u.Validate(); err != nil {
		return overlay.ServiceRow{}, err
	}
	if err := m.tunnelled(u.Publish); err != nil {
		return overlay.ServiceRow{}, err
	}
	s, err := m.findService(ref)
	if err != nil {
		return overlay.ServiceRow{}, err
	}
	res, err := propose[state.ServiceResult](ctx, m, "service", state.UpdateService{ID: s.ID, Update: u})
	if err != nil {
		return overlay.ServiceRow{}, err
	}
	return m.serviceRow(res.Service), nil
}

// tunnelled refuses to publish the ports of the nodes' WireGuard devices, which the state does not
// know.
func (m *Manager) tunnelled(ports []overlay.Publish) error {
	ports = slices.DeleteFunc(slices.Clone(ports), func(p overlay.Publish) bool { return p.Proto != "udp" })
	if len(ports) == 0 {
		return nil
	}
	for id, n := range m.state.View().Nodes {
		r, _ := m.Observer.Record(id)
		if r.WireGuard == nil {
			continue
		}
		for _, w := range r.WireGuard.Tunnels {
			if slices.ContainsFunc(ports, func(p overlay.Publish) bool { return p.Port == w.Port }) {
				return overlay.Errorf(overlay.Exists, "port %d/udp is where WireGuard of node %s listens; take another, or 0 for a free one", w.Port, n.Name)
			}
		}
	}
	return nil
}

// RemoveService removes a service. Its endpoints stay as they are.
func (m *Manager) RemoveService(ctx context.Context, ref string) error {
	if done, err := m.answered(ctx, "service"); done {
		return err
	}
	s, err := m.findService(ref)
	if err != nil {
		return err
	}
	_, err = propose[state.ServiceResult](ctx, m, "service", state.RemoveService{ID: s.ID})
	return err
}

func (m *Manager) serviceRow(s overlay.Service) overlay.ServiceRow {
	return m.serviceRows(m.state.View(), s.Network, []overlay.Service{s})[0]
}

// serviceRows are the rows of services of one network.
func (m *Manager) serviceRows(v *state.View, id overlay.NetworkID, some []overlay.Service) []overlay.ServiceRow {
	n, _ := v.Network(id)
	return rows.Services(n, some, v.Nodes, m.Observer.Claims(id), m.Observer.Suspended())
}
