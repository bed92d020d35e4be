package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/wire"
)

const (
	// Patience is how long a request is tried, over all managers, before it fails.
	Patience = 4500 * time.Millisecond

	dialTimeout = 2 * time.Second
	pauseMin    = 50 * time.Millisecond // between two rounds over the managers
	pauseMax    = 400 * time.Millisecond
)

// Manager is where a manager answers.
type Manager struct {
	ID      overlay.NodeID
	Control netip.AddrPort
}

// Managers are the managers that the facts name.
func Managers(f *overlay.Facts) []Manager {
	var out []Manager
	for _, n := range f.Managers() {
		out = append(out, Manager{n.ID, n.Control})
	}
	return out
}

// Client asks the managers: the one that answered last as long as it does, then the others. It
// is safe for concurrent use. It starts no goroutine that outlives its calls but those of its
// idle connections; Close ends them.
type Client struct {
	// Where, if set, knows newer addresses than the managers' rows. Set it before the first call.
	Where func(overlay.NodeID) (netip.AddrPort, bool)

	self  overlay.NodeID
	trans *http.Transport

	mu       sync.Mutex
	managers []Manager // the first is asked first
}

// NewClient makes a client with the credentials of node self. It does not connect.
func NewClient(self overlay.NodeID, cred *pki.Credentials, managers []Manager) *Client {
	c := &Client{self: self}
	c.SetManagers(managers)
	c.trans = newTransport(cred.ForManager, c.address)
	return c
}

// newTransport connects to nodes by ID: a URL's host is NODE. Connections are kept.
func newTransport(client func(overlay.NodeID) *tls.Config, address func(overlay.NodeID) (netip.AddrPort, bool)) *http.Transport {
	return &http.Transport{
		MaxIdleConnsPerHost: 8,
		IdleConnTimeout:     2 * time.Minute,
		DialTLSContext: func(ctx context.Context, _, hostport string) (net.Conn, error) {
			id := overlay.NodeID(strings.TrimSuffix(hostport, ":443"))
			at, ok := address(id)
			if !ok {
				return nil, errors.New("no address is known of node " + id.Short())
			}
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			d := tls.Dialer{Config: client(id)}
			return d.DialContext(ctx, "tcp", at.String())
		},
	}
}

// SetManagers says which managers there are. The one in use stays in use if it is among them.
// This node comes last: a manager that has just joined waits for a leader whom the others know.
func (c *Client) SetManagers(m []Manager) {
	if len(m) == 0 {
		return // the old ones may know more
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m = slices.Clone(m)
	if i := slices.IndexFunc(m, func(m Manager) bool { return m.ID == c.self }); i >= 0 {
		self := m[i]
		m = append(slices.Delete(m, i, i+1), self)
	}
	if len(c.managers) > 0 {
		if i := slices.IndexFunc(m, func(m Manager) bool { return m.ID == c.managers[0].ID }); i > 0 {
			m[0], m[i] = m[i], m[0]
		}
	}
	c.managers = m
}

// Managers are the managers in the order in which they are asked.
func (c *Client) Managers() []Manager {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.managers)
}

// prefer makes a manager the one that is asked first.
func (c *Client) prefer(id overlay.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.IndexFunc(c.managers, func(m Manager) bool { return m.ID == id }); i > 0 {
		m := slices.Clone(c.managers)
		m[0], m[i] = m[i], m[0]
		c.managers = m
	}
}

func (c *Client) address(id overlay.NodeID) (netip.AddrPort, bool) {
	if c.Where != nil {
		if at, ok := c.Where(id); ok {
			return at, true
		}
	}
	for _, m := range c.Managers() {
		if m.ID == id {
			return m.Control, true
		}
	}
	return netip.AddrPort{}, false
}

// Close closes idle connections. Call it, too, after the credentials have changed: a
// connection keeps the role that it was opened with.
func (c *Client) Close() { c.trans.CloseIdleConnections() }

// Do sends a request to the managers and returns the first answer that is not "unavailable",
// which the caller closes. All tries carry one request ID, so that a write happens once. An
// error has kind Unavailable.
func (c *Client) Do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	resp, err := c.try(ctx, method, path, body, rand.Text())
	if err != nil {
		cancel()
		return nil, err
	}
	resp.Body = &closing{resp.Body, cancel}
	return resp, nil
}

// closing ends a request's context with its body.
type closing struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (c *closing) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}

func (c *Client) try(ctx context.Context, method, path string, body []byte, id string) (*http.Response, error) {
	var last error
	for pause := pauseMin; ; pause = min(2*pause, pauseMax) {
		for _, m := range c.Managers() {
			resp, err := c.one(ctx, m.ID, method, path, body, id)
			if err == nil {
				c.prefer(m.ID)
				return resp, nil
			}
			if ctx.Err() == nil && (!answered(last) || answered(err)) || last == nil {
				last = err
			}
		}
		select {
		case <-ctx.Done():
			return nil, unavailable(method, last)
		case <-time.After(pause):
		}
	}
}

// answered says whether an error is a manager's answer.
func answered(err error) bool {
	_, ok := errors.AsType[*overlay.Error](err)
	return ok
}

// one asks one manager. An answer of kind Unavailable is an error.
func (c *Client) one(ctx context.Context, manager overlay.NodeID, method, path string, body []byte, id string) (*http.Response, error) {
	req, err := newRequest(ctx, manager, method, path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set(headerRequest, id)
	resp, err := c.trans.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("manager %s: %w", manager.Short(), err)
	}
	if resp.StatusCode == http.StatusServiceUnavailable {
		defer resp.Body.Close()
		return nil, wire.Decode(resp, nil)
	}
	return resp, nil
}

func newRequest(ctx context.Context, manager overlay.NodeID, method, path string, body []byte) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+string(manager)+path, bytes.NewReader(body))
	if err != nil {
		return nil, overlay.Errorf(overlay.Invalid, "malformed request %s %s: %w", method, path, err)
	}
	return req, nil
}

// unavailable says that no manager could answer, and what a reader can do about it.
func unavailable(method string, cause error) error {
	hint := "see `heddle status`"
	if method == http.MethodGet {
		hint = "--stale shows this node's copy"
	}
	if answered(cause) {
		return cause
	}
	if cause == nil {
		return overlay.Errorf(overlay.Unavailable, "no manager is known; %s", hint)
	}
	return overlay.Errorf(overlay.Unavailable, "no manager could answer within %v (%w); %s", Patience, cause, hint)
}

// call is Do with JSON in and out.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return overlay.Errorf(overlay.Internal, "encode the request: %w", err)
		}
	}
	resp, err := c.Do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return wire.Decode(resp, out)
}

// Grant leases addresses of a network to this node: Want more of each family (0 leaves the
// number to the managers), and those named. It is safe to repeat.
func (c *Client) Grant(ctx context.Context, r GrantRequest) (g GrantReply, err error) {
	err = c.call(ctx, http.MethodPost, pathGrant, r, &g)
	return g, err
}

// Renew fetches a certificate for this node's key, with the role that its row has.
func (c *Client) Renew(ctx context.Context) (cert Certificate, err error) {
	err = c.call(ctx, http.MethodPost, pathRenew, nil, &cert)
	return cert, err
}

// RenewIdentity is Renew for an identity: with the certificate that its row asks for. The caller
// saves it, gives it to the credentials, and closes the client's idle connections.
func (c *Client) RenewIdentity(ctx context.Context, id pki.Identity) (pki.Identity, error) {
	cert, err := c.Renew(ctx)
	if err != nil {
		return id, err
	}
	return id.Joined(cert.Place, cert.Cert, cert.CA)
}

// Leave takes this node out of the cluster, demoting it first if it is a manager. Its
// endpoints must be gone: its addresses are free at once.
func (c *Client) Leave(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, pathLeave, nil, nil)
}

// Release gives addresses of this node's lease back, by its signed release.
func (c *Client) Release(ctx context.Context, s overlay.Signed) (g GrantReply, err error) {
	err = c.call(ctx, http.MethodPost, pathRelease, s, &g)
	return g, err
}

// UpdateSelf changes where this node answers.
func (c *Client) UpdateSelf(ctx context.Context, a Addresses) (row overlay.Node, err error) {
	err = c.call(ctx, http.MethodPatch, pathSelf, a, &row)
	return row, err
}

// ManagerReady says that this node, which has the manager role, runs Raft.
func (c *Client) ManagerReady(ctx context.Context, r Ready) error {
	return c.call(ctx, http.MethodPost, pathReady, r, nil)
}
