//go:build linux

package daemon

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/agent"
	"github.com/heddle-net/heddle/overlay/rows"
)

// Copy is what this node holds of the cluster. It asks nobody.
func (n node) Copy(context.Context) (c overlay.Copy, err error) {
	m, err := n.joined()
	if err != nil {
		return c, err
	}
	f, g := m.facts(), m.gossip.Load()
	c = overlay.Copy{Revision: f.Revision, Age: -1, Networks: []overlay.NetworkRow{}, Nodes: []overlay.NodeRow{}, Endpoints: []overlay.Endpoint{}, Services: []overlay.ServiceRow{}}
	if at := m.watcher.Heard(); !at.IsZero() {
		c.Age = time.Since(at)
	}
	known := map[overlay.NetworkID]agent.Grant{}
	for id, def := range f.Networks {
		known[id] = agent.Grant{Network: def, Leases: f.Leases[id], Revision: f.Revision}
	}
	for _, own := range m.agent.Granted() {
		if known[own.Network.ID].Revision < own.Revision {
			known[own.Network.ID] = own
		}
	}
	of, suspended := map[overlay.NetworkID][]overlay.Service{}, g.Suspended()
	for _, s := range f.Services {
		of[s.Network] = append(of[s.Network], s)
	}
	for id, k := range known {
		row := rows.Network(k.Network, f.Nodes, k.Leases, g.Claims(id))
		n.Here(&row)
		c.Networks = append(c.Networks, row)
		c.Endpoints = append(c.Endpoints, row.Endpoints...)
		c.Services = append(c.Services, rows.Services(k.Network, of[id], f.Nodes, g.Claims(id), suspended)...)
	}
	slices.SortFunc(c.Networks, func(a, b overlay.NetworkRow) int { return strings.Compare(a.Name, b.Name) })
	rows.Sort(c.Endpoints)
	rows.SortServices(c.Services)
	n.Count(c.Services)
	_, beat := m.watcher.Source()
	seen := observer{m}
	for id, row := range f.Nodes {
		r := overlay.NodeRow{ID: id, Name: row.Name, Addr: row.Control.String(), Role: row.Role, Availability: row.Availability, Number: row.Number}
		r.Status, r.Version = seen.Peer(id)
		if said, ok := g.Record(id); ok && said.WireGuard != nil {
			r.Encryption = said.WireGuard.Kind
		}
		r.Self = id == m.cred.Identity().Node
		if row.Role == overlay.Manager {
			r.ManagerStatus = map[bool]string{true: "Reachable", false: "Unreachable"}[r.Status == "ready"]
			if id == beat.Leader {
				r.ManagerStatus = "Leader"
			}
		}
		c.Nodes = append(c.Nodes, r)
	}
	slices.SortFunc(c.Nodes, func(a, b overlay.NodeRow) int { return strings.Compare(a.Name, b.Name) })
	return c, nil
}
