//go:build linux

package daemon

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
	"github.com/heddle-net/heddle/overlay/plan"
	"github.com/heddle-net/heddle/overlay/wire"
)

// node answers the local API.
type node struct{ *Daemon }

var _ local.Node = node{}

// Attach passes an attach on to the agent.
func (n node) Attach(ctx context.Context, r overlay.AttachRequest) (reply overlay.AttachReply, err error) {
	if r.Health.Kind == overlay.HealthCmd && !byRoot(ctx) {
		return reply, overlay.Errorf(overlay.Denied, "the health command of %s would run as root: only root may name one; attach it as root, or have it probed by tcp or http", r.Name)
	}
	if err := n.predefined(r.Network); err != nil {
		return reply, err
	}
	a, err := n.agent()
	if err != nil {
		return reply, err
	}
	return a.Attach(ctx, r)
}

// Detach passes a detach on to the agent.
func (n node) Detach(ctx context.Context, r overlay.DetachRequest) (reply overlay.DetachReply, err error) {
	a, err := n.agent()
	if err != nil {
		return reply, err
	}
	return a.Detach(ctx, r)
}

// Endpoints are this node's own.
func (n node) Endpoints(ctx context.Context) ([]overlay.Endpoint, error) {
	a, err := n.agent()
	if err != nil {
		return nil, err
	}
	return a.Endpoints(ctx)
}

// Resolve answers from the names that this node knows.
func (n node) Resolve(ctx context.Context, r overlay.ResolveRequest) (reply overlay.ResolveReply, err error) {
	a, err := n.agent()
	if err != nil {
		return reply, err
	}
	return a.Resolve(ctx, r)
}

// RotateKeys replaces this node's WireGuard keys.
func (n node) RotateKeys(ctx context.Context) error {
	m, err := n.joined()
	if err != nil {
		return err
	}
	return m.tunnels.Rotate(ctx)
}

// Cluster passes a request on to a manager, unless it is about what is this node's own.
func (n node) Cluster(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
	if v, mine, err := n.own(ctx, method, path, body); mine {
		if err != nil {
			return 0, nil, err
		}
		answer, err := json.Marshal(v)
		return http.StatusOK, answer, err
	}
	m, err := n.joined()
	if err != nil {
		return 0, nil, err
	}
	if err := m.waits(method, path, body); err != nil {
		return 0, nil, err
	}
	resp, err := m.client.Do(ctx, method, path, body)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64*wire.MaxBody))
	if err != nil {
		return 0, nil, overlay.Errorf(overlay.Unavailable, "read the manager's answer: %w", err)
	}
	return resp.StatusCode, answer, nil
}

// waits refuses a change that a manager may not know, and would call unknown.
func (m *member) waits(method, path string, body []byte) error {
	doing, level := "", 2
	switch {
	case method == http.MethodPatch && path == "/v1/cluster":
		doing = "adding an address pool"
	case method == http.MethodPatch && strings.HasPrefix(path, "/v1/networks/"):
		doing = "updating a network"
	case method == http.MethodPost && path == "/v1/networks":
		var s overlay.NetworkSpec
		if json.Unmarshal(body, &s) == nil && s.Encrypted { // a manager that doesn't know it makes a plain one
			doing, level = "making an encrypted network", 3
		}
	}
	if doing == "" || m.facts().Level >= level {
		return nil
	}
	if behind := m.behind(level); len(behind) > 0 {
		return overlay.Waits(doing, level, behind)
	}
	return overlay.Errorf(overlay.Unavailable, "%s needs feature level %d, which the managers agree on in a moment; try again", doing, level)
}

// behind names the managers that don't read a feature level.
func (m *member) behind(level int) []string {
	return overlay.Behind(level, m.facts().Managers(), m.gossip.Load().Record)
}

// Here completes a network's row with what this node has of it in its kernel.
func (n node) Here(row *overlay.NetworkRow) {
	a, err := n.agent()
	if err != nil {
		return
	}
	if def, mtu, ok := a.Network(row.ID); ok && !def.Bare() {
		row.Namespace, row.Bridge, row.MTU = def.NamespaceName(), plan.BridgeName, mtu
		if def.Driver == overlay.DriverOverlay {
			row.Device = plan.DeviceName
		}
	}
}

// Count completes rows of services with what this node's workloads have begun by their addresses. Of
// a workload that has just gone there is nothing to count.
func (n node) Count(all []overlay.ServiceRow) {
	rows := map[string]*overlay.ServiceRow{}
	for i := range all {
		rows[string(all[i].ID)] = &all[i]
	}
	for _, b := range n.loop.Wanted().Balancers {
		b.VIPs = slices.DeleteFunc(slices.Clone(b.VIPs), func(v *datapath.VIP) bool { return rows[v.Service] == nil })
		if len(b.VIPs) == 0 {
			continue
		}
		traffic, err := n.kernel.Traffic(b)
		if err != nil {
			n.log.Debug("count what a workload sends to services", "namespace", b.NS.Path, "err", err)
			continue
		}
		for _, t := range traffic {
			backends := rows[t.Service].Backends
			if i := slices.IndexFunc(backends, func(r overlay.BackendRow) bool { return slices.Contains(r.IPs, t.Backend) }); i >= 0 {
				backends[i].Connections += t.Flows
			}
		}
	}
}
