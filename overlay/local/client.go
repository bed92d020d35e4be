// Package local is a node's own API: HTTP with JSON on a unix socket, the one way in for
// the CLI and for plugins. What concerns the cluster is passed on to a manager.
package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/wire"
)

// DefaultSocket is where the daemon listens unless it is told otherwise.
const DefaultSocket = "/run/heddle/heddle.sock"

// ErrNoDaemon says that nobody is at the socket.
var ErrNoDaemon = errors.New("no heddle daemon answers")

// Client speaks to a daemon. It is safe for concurrent use.
type Client struct {
	socket string
	http   http.Client

	// Waiting is told what a long operation waits for, once for each thing. It may be nil.
	Waiting func(what string)
	// Stale, if set, makes reads of networks, services, nodes and endpoints answer from the node's own copy,
	// and is told of it.
	Stale func(overlay.Copy)
}

// NewClient makes a client of the daemon at a unix socket. It does not connect.
func NewClient(socket string) *Client {
	c := &Client{socket: socket}
	c.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	return c
}

func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var b bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&b).Encode(body); err != nil {
			return nil, overlay.Errorf(overlay.Internal, "encode the request: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://heddle"+path, &b)
	if err != nil {
		return nil, overlay.Errorf(overlay.Internal, "%w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	return resp, nil
}

func (c *Client) unreachable(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return overlay.Errorf(overlay.Denied, "no permission on the daemon's socket %s; run this as root", c.socket)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return overlay.Errorf(overlay.Unavailable, "%w on %s; start it with `systemctl start heddle`, or by hand with `heddle daemon`", ErrNoDaemon, c.socket)
	}
	return overlay.Errorf(overlay.Unavailable, "ask the daemon on %s: %w", c.socket, err)
}

func (c *Client) call(ctx context.Context, method, path string, body, reply any) error {
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return wire.Decode(resp, reply)
}

func (c *Client) stream(ctx context.Context, path string, body, reply any) error {
	resp, err := c.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return wire.ReadStream(resp, c.Waiting, reply)
}

// Init makes a cluster of this node.
func (c *Client) Init(ctx context.Context, r overlay.InitRequest) (reply overlay.MemberReply, err error) {
	err = c.stream(ctx, "/v1/init", r, &reply)
	return reply, err
}

// Join brings this node into a cluster.
func (c *Client) Join(ctx context.Context, r overlay.JoinRequest) (reply overlay.MemberReply, err error) {
	err = c.stream(ctx, "/v1/join", r, &reply)
	return reply, err
}

// LeaveRequest takes this node out of its cluster.
type LeaveRequest struct {
	Force bool `json:"force"` // although workloads are attached, no manager answers, or it is the last manager
}

// Leave takes this node out of its cluster.
func (c *Client) Leave(ctx context.Context, r LeaveRequest) error {
	return c.stream(ctx, "/v1/leave", r, nil)
}

// Doctor looks for what is wrong on the node.
func (c *Client) Doctor(ctx context.Context) (d overlay.Diagnosis, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/doctor", nil, &d)
	return d, err
}

// Status is this node's own view; it needs no manager.
func (c *Client) Status(ctx context.Context) (s overlay.Status, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

// Attach gives a workload a place in a network. When it returns, the interface is up.
func (c *Client) Attach(ctx context.Context, r overlay.AttachRequest) (reply overlay.AttachReply, err error) {
	err = c.stream(ctx, "/v1/attach", r, &reply)
	return reply, err
}

// Detach takes a workload off.
func (c *Client) Detach(ctx context.Context, r overlay.DetachRequest) (reply overlay.DetachReply, err error) {
	err = c.stream(ctx, "/v1/detach", r, &reply)
	return reply, err
}

// Resolve asks for the addresses of a name in a network. It needs no manager.
func (c *Client) Resolve(ctx context.Context, r overlay.ResolveRequest) (reply overlay.ResolveReply, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/resolve?"+url.Values{"name": {r.Name}, "network": {r.Network}}.Encode(), nil, &reply)
	return reply, err
}

// RotateKeys replaces this node's WireGuard keys. It returns when peers use the new ones.
func (c *Client) RotateKeys(ctx context.Context) error {
	return c.stream(ctx, "/v1/keys/rotate", struct{}{}, nil)
}

// copy is what the node itself holds of the cluster.
func (c *Client) copy(ctx context.Context) (held overlay.Copy, err error) {
	if err = c.call(ctx, http.MethodGet, "/v1/copy", nil, &held); err == nil {
		c.Stale(held)
	}
	return held, err
}

// Endpoints lists the cluster's endpoints, or this node's own, which needs no manager.
func (c *Client) Endpoints(ctx context.Context, localOnly bool) (rows []overlay.Endpoint, err error) {
	path := "/v1/endpoints"
	if c.Stale != nil && !localOnly {
		held, err := c.copy(ctx)
		return held.Endpoints, err
	}
	if localOnly {
		path += "?local=1"
	}
	err = c.call(ctx, http.MethodGet, path, nil, &rows)
	return rows, err
}

func (c *Client) Networks(ctx context.Context) (rows []overlay.NetworkRow, err error) {
	if c.Stale != nil {
		held, err := c.copy(ctx)
		return held.Networks, err
	}
	err = c.call(ctx, http.MethodGet, "/v1/networks", nil, &rows)
	return rows, err
}

// Network inspects one network by name, ID or prefix.
func (c *Client) Network(ctx context.Context, ref string) (row overlay.NetworkRow, err error) {
	if c.Stale != nil {
		held, err := c.copy(ctx)
		if err != nil {
			return row, err
		}
		return overlay.Find("network", ref, held.Networks, func(n overlay.NetworkRow) (id, name string) { return string(n.ID), n.Name })
	}
	err = c.call(ctx, http.MethodGet, "/v1/networks/"+url.PathEscape(ref), nil, &row)
	return row, err
}

func (c *Client) CreateNetwork(ctx context.Context, s overlay.NetworkSpec) (row overlay.NetworkRow, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/networks", s, &row)
	return row, err
}

// UpdateNetwork changes a network's labels and adds subnets.
func (c *Client) UpdateNetwork(ctx context.Context, ref string, u overlay.NetworkUpdate) (row overlay.NetworkRow, err error) {
	err = c.call(ctx, http.MethodPatch, "/v1/networks/"+url.PathEscape(ref), u, &row)
	return row, err
}

// UpdateCluster adds address pools.
func (c *Client) UpdateCluster(ctx context.Context, u overlay.ClusterUpdate) (p overlay.Params, err error) {
	err = c.call(ctx, http.MethodPatch, "/v1/cluster", u, &p)
	return p, err
}

func (c *Client) RemoveNetwork(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodDelete, "/v1/networks/"+url.PathEscape(ref), nil, nil)
}

func (c *Client) Services(ctx context.Context) (rows []overlay.ServiceRow, err error) {
	if c.Stale != nil {
		held, err := c.copy(ctx)
		return held.Services, err
	}
	err = c.call(ctx, http.MethodGet, "/v1/services", nil, &rows)
	return rows, err
}

// Service inspects one service: see overlay.FindService for what ref may be.
func (c *Client) Service(ctx context.Context, ref string) (row overlay.ServiceRow, err error) {
	if c.Stale != nil {
		held, err := c.copy(ctx)
		if err != nil {
			return row, err
		}
		return overlay.FindService(ref, held.Services, overlay.ServiceRow.ServiceName)
	}
	err = c.call(ctx, http.MethodGet, "/v1/services/"+url.PathEscape(ref), nil, &row)
	return row, err
}

func (c *Client) CreateService(ctx context.Context, r overlay.ServiceRequest) (row overlay.ServiceRow, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/services", r, &row)
	return row, err
}

// UpdateService changes what can change in a service.
func (c *Client) UpdateService(ctx context.Context, ref string, u overlay.ServiceUpdate) (row overlay.ServiceRow, err error) {
	err = c.call(ctx, http.MethodPatch, "/v1/services/"+url.PathEscape(ref), u, &row)
	return row, err
}

func (c *Client) RemoveService(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodDelete, "/v1/services/"+url.PathEscape(ref), nil, nil)
}

func (c *Client) Nodes(ctx context.Context) (rows []overlay.NodeRow, err error) {
	if c.Stale != nil {
		held, err := c.copy(ctx)
		return held.Nodes, err
	}
	err = c.call(ctx, http.MethodGet, "/v1/nodes", nil, &rows)
	return rows, err
}

// UpdateNode changes a node's role or availability.
func (c *Client) UpdateNode(ctx context.Context, ref string, u overlay.NodeUpdate) (row overlay.NodeRow, err error) {
	err = c.call(ctx, http.MethodPatch, "/v1/nodes/"+url.PathEscape(ref), u, &row)
	return row, err
}

// RemoveNode removes another node for good; with force also one that is up.
func (c *Client) RemoveNode(ctx context.Context, ref string, force bool) error {
	path := "/v1/nodes/" + url.PathEscape(ref)
	if force {
		path += "?force=1"
	}
	return c.call(ctx, http.MethodDelete, path, nil, nil)
}

func (c *Client) Tokens(ctx context.Context) (rows []overlay.TokenRow, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/tokens", nil, &rows)
	return rows, err
}

func (c *Client) CreateToken(ctx context.Context, r overlay.TokenRequest) (reply overlay.TokenReply, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/tokens", r, &reply)
	return reply, err
}

// RotateTokens revokes all tokens of the role and makes a new one.
func (c *Client) RotateTokens(ctx context.Context, r overlay.TokenRequest) (reply overlay.TokenReply, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/tokens/rotate", r, &reply)
	return reply, err
}

func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/v1/tokens/"+url.PathEscape(id), nil, nil)
}
