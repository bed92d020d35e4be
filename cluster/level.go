package cluster

import (
	"context"

	"github.com/heddle-net/heddle/cluster/state"
	"github.com/heddle-net/heddle/overlay"
)

// behind names the managers that are not known to read a feature level.
func (m *Manager) behind(level int) []string {
	return overlay.Behind(level, m.state.View().Managers(), m.Observer.Record)
}

// raiseLevel raises the cluster's feature level by one when all managers read the next.
func (m *Manager) raiseLevel(ctx context.Context) error {
	next := m.state.Level() + 1
	if next > state.Level {
		return nil
	}
	m.admitting.Lock()
	defer m.admitting.Unlock()
	if !m.state.View().Ready() || len(m.behind(next)) > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	_, err := propose[state.LevelResult](ctx, m, "", state.SetLevel{Level: next})
	if err == nil {
		m.Log.Info("all managers read the next feature level; it counts from now on", "level", next)
	}
	return err
}

// admits refuses a manager that does not read what the others write.
func (m *Manager) admits(n overlay.Node, said func(overlay.NodeID) (overlay.NodeRecord, bool)) error {
	level := m.state.Level()
	if behind := overlay.Behind(level, []overlay.Node{n}, said); len(behind) > 0 {
		return overlay.Errorf(overlay.Unsupported, "node %s can't be a manager of this cluster, which is at feature level %d; upgrade heddle there first, or let it be a worker", behind[0], level)
	}
	return nil
}

// waits says for whom a command waits.
func (m *Manager) waits(c *state.TooNew) error {
	if behind := m.behind(c.Level); len(behind) > 0 {
		return overlay.Waits(c.Doing, c.Level, behind)
	}
	return overlay.Errorf(overlay.Unavailable, "%w, which the managers agree on in a moment; try again", c)
}
