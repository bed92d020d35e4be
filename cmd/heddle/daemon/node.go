//go:build linux

package daemon

import (
	"context"
	"io"
	"net/http"
	"strings"

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
	m, err := n.joined()
	if err != nil {
		return reply, err
	}
	return m.agent.Attach(ctx, r)
}

// Detach passes a detach on to the agent.
func (n node) Detach(ctx context.Context, name, network string) error {
	m, err := n.joined()
	if err != nil {
		return err
	}
	return m.agent.Detach(ctx, name, network)
}

// Endpoints are this node's own.
func (n node) Endpoints(ctx context.Context) ([]overlay.Endpoint, error) {
	m, err := n.joined()
	if err != nil {
		return nil, err
	}
	return m.agent.Endpoints(ctx)
}

// Cluster passes a request on to a manager.
func (n node) Cluster(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
	m, err := n.joined()
	if err != nil {
		return 0, nil, err
	}
	if err := m.waits(method, path); err != nil {
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
func (m *member) waits(method, path string) error {
	doing := ""
	switch {
	case method != http.MethodPatch || m.facts().Level >= 2:
	case path == "/v1/cluster":
		doing = "adding an address pool"
	case strings.HasPrefix(path, "/v1/networks/"):
		doing = "updating a network"
	}
	if behind := m.behind(2); doing != "" && len(behind) > 0 {
		return overlay.Waits(doing, 2, behind)
	}
	return nil
}

// behind names the managers that don't read a feature level.
func (m *member) behind(level int) []string {
	return overlay.Behind(level, m.facts().Managers(), m.gossip.Load().Record)
}

// Here completes a network's row with what this node has of it in its kernel.
func (n node) Here(row *overlay.NetworkRow) {
	m := n.current()
	if m == nil {
		return
	}
	if def, mtu, ok := m.agent.Network(row.ID); ok {
		row.Namespace, row.Bridge, row.Device, row.MTU = def.NamespaceName(), plan.BridgeName, plan.DeviceName, mtu
	}
}
