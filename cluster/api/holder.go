package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"

	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/wire"
)

// holderRoutes are what every node answers to managers.
func holderRoutes(h Holder) []route {
	if h == nil {
		return nil
	}
	return []route{
		{"POST", pathHolderRelease, operator, here, with(h.Release)},
		{"POST", pathHolderForgot, operator, here, with(func(ctx context.Context, n overlay.NodeID) (any, error) { return nil, h.Forgot(ctx, n) })},
	}
}

// Holders asks nodes about their leases, in a manager's name. It is safe for concurrent use;
// Close ends its idle connections.
type Holders struct{ trans *http.Transport }

// NewHolders makes Holders with a manager's credentials; address is where a node answers.
func NewHolders(cred *pki.Credentials, address func(overlay.NodeID) (netip.AddrPort, bool)) *Holders {
	return &Holders{newTransport(cred.ForNode, address)}
}

func (h *Holders) Close() { h.trans.CloseIdleConnections() }

// Release asks a node to give up addresses that idle.
func (h *Holders) Release(ctx context.Context, node overlay.NodeID, r overlay.ReleaseRequest) (reply overlay.ReleaseReply, err error) {
	err = h.ask(ctx, node, pathHolderRelease, r, &reply)
	return reply, err
}

// Forgot asks a node whether it acts by a removal. Only without an error it does.
func (h *Holders) Forgot(ctx context.Context, node, removed overlay.NodeID) error {
	return h.ask(ctx, node, pathHolderForgot, removed, nil)
}

func (h *Holders) ask(ctx context.Context, node overlay.NodeID, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return overlay.Errorf(overlay.Internal, "encode the request: %w", err)
	}
	req, err := newRequest(ctx, node, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	resp, err := h.trans.RoundTrip(req)
	if err != nil {
		return overlay.Errorf(overlay.Unavailable, "ask node %s: %w", node.Short(), err)
	}
	defer resp.Body.Close()
	return wire.Decode(resp, out)
}
