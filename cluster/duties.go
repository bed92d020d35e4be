package cluster

import (
	"context"
	"slices"
	"time"

	"github.com/heddle-net/heddle/cluster/api"
	"github.com/heddle-net/heddle/cluster/raftnode"
	"github.com/heddle-net/heddle/overlay"
)

const (
	announceEvery = 100 * time.Millisecond
	dutiesEvery   = 2 * time.Second
	dutyTimeout   = 5 * time.Second
	nearEnough    = 64 // log entries that a manager may lack when it gets its vote
)

// announce tells the leader that this manager is ready, until it has a vote.
func (m *Manager) announce(ctx context.Context) error {
	tick := time.NewTicker(announceEvery)
	defer tick.Stop()
	warned := false
	for {
		if servers, err := m.raft.Servers(); err == nil {
			if slices.Contains(servers, raftnode.Server{ID: m.Self, Voter: true}) {
				return nil
			}
			err = m.Client.ManagerReady(ctx, api.Ready{Last: m.raft.Stats().Last})
			if err != nil && ctx.Err() == nil && !warned {
				warned = true
				m.Log.Warn("the leader does not take this manager yet; trying on", "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// ManagerReady gives a manager that runs Raft the log, and its vote when it has nearly all of it.
func (m *Manager) ManagerReady(ctx context.Context, node overlay.NodeID, r api.Ready) error {
	row, ok := m.state.View().Nodes[node]
	if !ok || row.Role != overlay.Manager {
		return overlay.Errorf(overlay.Denied, "node %s is no manager", node.Short())
	}
	servers, err := m.raft.Servers()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(servers, func(s raftnode.Server) bool { return s.ID == node })
	switch {
	case i < 0:
		m.Log.Info("a manager is ready; it gets the log", "node", row.Name)
		return m.raft.AddLearner(ctx, node, row.Control)
	case !servers[i].Voter && r.Last+nearEnough >= m.raft.Stats().Commit:
		m.Log.Info("a manager has caught up; it gets a vote", "node", row.Name)
		return m.raft.AddVoter(ctx, node, row.Control)
	}
	return nil
}

// duties is what the leader does unasked: it keeps the Raft configuration to the node rows, and
// what else waits for others. Any manager closes streams of those whose certificates don't count.
func (m *Manager) duties(ctx context.Context) error {
	tick := time.NewTicker(dutiesEvery)
	defer tick.Stop()
	forgot := map[overlay.NodeID]map[overlay.NodeID]bool{} // of each removed node, by whom
	for {
		changed := m.state.Changed(m.state.View().Revision)
		leader := m.raft.LeaderChanged()
		m.raft.DropRevoked()
		if m.raft.Leads() {
			if err := m.dropDemoted(ctx); err != nil && ctx.Err() == nil {
				m.Log.Warn("take former managers out of raft; trying again", "err", err)
			}
			if err := m.raiseLevel(ctx); err != nil && ctx.Err() == nil {
				m.Log.Warn("raise the cluster's feature level; trying again", "err", err)
			}
			if err := m.liftFences(ctx, forgot); err != nil && ctx.Err() == nil {
				m.Log.Warn("free the addresses of removed nodes; trying again", "err", err)
			}
		}
		select {
		case <-changed:
		case <-leader:
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// dropDemoted takes servers out of the configuration whose rows are not those of managers: what
// a demotion that was interrupted left behind.
func (m *Manager) dropDemoted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	v := m.state.View()
	servers, err := m.raft.Servers()
	if err != nil || !v.Ready() {
		return err
	}
	for _, s := range servers {
		switch row, ok := v.Nodes[s.ID]; {
		case ok && row.Role == overlay.Manager:
		case s.ID == m.Self:
			return m.raft.Transfer(ctx) // the next leader takes this one out
		default:
			if err := m.raft.Remove(ctx, s.ID); err != nil {
				return err
			}
		}
	}
	return nil
}
