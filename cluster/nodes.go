package cluster

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/heddle-net/heddle/cluster/api"
	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/cluster/raftnode"
	"github.com/heddle-net/heddle/cluster/state"
	"github.com/heddle-net/heddle/overlay"
)

// Join takes a node in and makes its certificate.
func (m *Manager) Join(ctx context.Context, r api.JoinRequest) (reply api.JoinReply, err error) {
	if err := overlay.CheckVersion("join", r.V); err != nil {
		return reply, err
	}
	t := pki.Token{}
	if copy(t.Secret[:], r.Secret) != len(t.Secret) || len(r.Secret) != len(t.Secret) {
		return reply, overlay.Errorf(overlay.Invalid, "the join request holds no token")
	}
	m.admitting.RLock()
	defer m.admitting.RUnlock()
	if m.roleOf(t) == overlay.Manager {
		if err := m.admits(overlay.Node{Name: r.Name}, func(overlay.NodeID) (overlay.NodeRecord, bool) { return overlay.NodeRecord{Hello: r.Hello}, true }); err != nil {
			return reply, err
		}
	}
	res, err := propose[state.NodeResult](ctx, m, "join", state.Join{
		Token: t.Hash(), Now: m.Now().Unix(),
		Node: state.NewNode{ID: r.Node, Key: r.Key, Name: r.Name, Control: r.Control, Gossip: r.Gossip},
	})
	if err != nil {
		return reply, err
	}
	cert, err := m.certify(res.Node, res.Revision)
	if err != nil {
		return reply, err
	}
	return api.JoinReply{V: 1, Node: res.Node, Certificate: cert, Facts: *m.state.FactsFor(r.Node), Hello: m.Hello}, nil
}

// certify makes the certificate that goes with a row.
func (m *Manager) certify(row overlay.Node, revision uint64) (api.Certificate, error) {
	v := m.state.View()
	ca, err := pki.LoadCA(v.CA, v.CAKey)
	if err != nil {
		return api.Certificate{}, err
	}
	der, err := ca.Sign(pki.Subject{Place: v.Place, Node: row.ID, Role: row.Role, Revision: revision}, row.Key, m.Now())
	return api.Certificate{Place: v.Place, Cert: der, CA: v.CA}, err
}

// Renew makes a certificate for the key and the role of the node's row.
func (m *Manager) Renew(_ context.Context, node overlay.NodeID) (api.Certificate, error) {
	v := m.state.View()
	row, ok := v.Nodes[node]
	if !ok {
		return api.Certificate{}, overlay.Errorf(overlay.NotFound, "node %s is not in the cluster", node.Short())
	}
	return m.certify(row, v.Revision)
}

// UpdateSelf changes where a node answers.
func (m *Manager) UpdateSelf(ctx context.Context, node overlay.NodeID, a api.Addresses) (overlay.Node, error) {
	res, err := propose[state.NodeResult](ctx, m, "self", state.UpdateNode{Node: node, Control: a.Control, Gossip: a.Gossip})
	return res.Node, err
}

// Leave takes a node out that asked for it and has no endpoints.
func (m *Manager) Leave(ctx context.Context, node overlay.NodeID) error {
	row, ok := m.state.View().Nodes[node]
	if !ok {
		return nil
	}
	if err := m.demote(ctx, row, "leave"); err != nil {
		return err
	}
	_, err := propose[state.RemovalResult](ctx, m, "leave", state.RemoveNode{Node: node, Consent: true, Now: m.Now().Unix()})
	return err
}

// RemoveNode puts another node out for good; with force also one that is up.
func (m *Manager) RemoveNode(ctx context.Context, by api.Caller, ref string, force bool) error {
	if done, err := m.answered(ctx, "remove"); done {
		return err
	}
	row, err := m.find(ref)
	if err != nil {
		return err
	}
	if row.ID == by.Node {
		return overlay.Errorf(overlay.Invalid, "node %s is this node; run `heddle leave` here", row.Name)
	}
	if status, _ := m.Observer.Peer(row.ID); status == "ready" && !force {
		return overlay.Errorf(overlay.InUse, "node %s is up; run `heddle leave` on it, or add --force", row.Name)
	}
	if err := m.demote(ctx, row, "remove"); err != nil {
		return err
	}
	_, err = propose[state.RemovalResult](ctx, m, "remove", state.RemoveNode{Node: row.ID, Force: force, Now: m.Now().Unix()})
	return err
}

// demote makes a worker of a manager: first its vote goes, then its role. A leader hands over
// before it is demoted, and the next one goes on with the request.
func (m *Manager) demote(ctx context.Context, row overlay.Node, verb string) error {
	if row.Role == overlay.Manager && len(m.state.View().Managers()) == 1 {
		return overlay.Errorf(overlay.InUse, "node %s is the last manager; promote another with `heddle node promote`, or end the cluster with `heddle leave --force` on it", row.Name)
	}
	servers, err := m.raft.Servers()
	if err != nil {
		return err
	}
	votes := slices.ContainsFunc(servers, func(s raftnode.Server) bool { return s.ID == row.ID })
	if votes && row.ID == m.Self {
		if err := m.raft.Transfer(ctx); err != nil {
			return err
		}
		return overlay.Errorf(overlay.Unavailable, "leadership was handed over: %w", raftnode.ErrNotLeader)
	}
	if row.Role == overlay.Manager { // before the vote goes, so that it is not asked for again
		if _, err := propose[state.NodeResult](ctx, m, verb+" role", state.SetRole{Node: row.ID, Role: overlay.Worker}); err != nil {
			return err
		}
	}
	if votes {
		return m.raft.Remove(ctx, row.ID)
	}
	return nil
}

// UpdateNode changes a node's role or availability.
func (m *Manager) UpdateNode(ctx context.Context, ref string, u overlay.NodeUpdate) (overlay.NodeRow, error) {
	row, err := m.find(ref)
	if err != nil {
		return overlay.NodeRow{}, err
	}
	switch u.Availability {
	case "":
	case overlay.Active, overlay.Pause, overlay.Drain:
		res, err := propose[state.NodeResult](ctx, m, "availability", state.SetAvailability{Node: row.ID, Availability: u.Availability})
		if err != nil {
			return overlay.NodeRow{}, err
		}
		row = res.Node
	default:
		return overlay.NodeRow{}, overlay.Errorf(overlay.Invalid, "availability %q is unknown; use active, pause or drain", u.Availability)
	}
	switch u.Role {
	case "":
	case overlay.Manager:
		err = m.promote(ctx, row)
	case overlay.Worker:
		err = m.demote(ctx, row, "demote")
	default:
		err = overlay.Errorf(overlay.Invalid, "role %q is unknown; use manager or worker", u.Role)
	}
	if err != nil {
		return overlay.NodeRow{}, err
	}
	return m.nodeRow(m.state.View().Nodes[row.ID], m.votes()), nil
}

func (m *Manager) promote(ctx context.Context, row overlay.Node) error {
	m.admitting.RLock()
	defer m.admitting.RUnlock()
	if err := m.admits(row, m.Observer.Record); err != nil {
		return err
	}
	_, err := propose[state.NodeResult](ctx, m, "role", state.SetRole{Node: row.ID, Role: overlay.Manager})
	return err
}

func (m *Manager) find(ref string) (overlay.Node, error) {
	rows := slices.Collect(maps.Values(m.state.View().Nodes))
	return overlay.Find("node", ref, rows, func(n overlay.Node) (string, string) { return string(n.ID), n.Name })
}

// Nodes are the rows of `node ls`, sorted by name.
func (m *Manager) Nodes(context.Context) ([]overlay.NodeRow, error) {
	votes := m.votes()
	rows := []overlay.NodeRow{}
	for _, n := range m.state.View().Nodes {
		rows = append(rows, m.nodeRow(n, votes))
	}
	slices.SortFunc(rows, func(a, b overlay.NodeRow) int { return cmp.Compare(a.Name, b.Name) })
	return rows, nil
}

// votes says which servers are in the Raft configuration.
func (m *Manager) votes() map[overlay.NodeID]bool {
	out := map[overlay.NodeID]bool{}
	servers, _ := m.raft.Servers()
	for _, s := range servers {
		out[s.ID] = s.Voter
	}
	return out
}

func (m *Manager) nodeRow(n overlay.Node, votes map[overlay.NodeID]bool) overlay.NodeRow {
	r := overlay.NodeRow{ID: n.ID, Name: n.Name, Addr: n.Control.String(), Role: n.Role, Availability: n.Availability, Number: n.Number}
	r.Status, r.Version = m.Observer.Peer(n.ID)
	if n.ID == m.Self {
		r.Status, r.Version = "ready", m.Hello.Version
	}
	if said, ok := m.Observer.Record(n.ID); ok && said.WireGuard != nil {
		r.Encryption = said.WireGuard.Kind
	}
	switch {
	case n.Role != overlay.Manager:
	case n.ID == m.raft.Leader():
		r.ManagerStatus = "Leader"
	case votes[n.ID] && r.Status == "ready":
		r.ManagerStatus = "Reachable"
	default:
		r.ManagerStatus = "Unreachable"
	}
	return r
}
