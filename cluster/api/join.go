package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/wire"
)

// JoinConn is a connection to a manager of the cluster that a token is for.
type JoinConn struct {
	conn  *tls.Conn
	at    string
	token pki.Token
}

// DialJoin connects to a manager at HOST:PORT and makes sure that it is of the token's cluster.
func DialJoin(ctx context.Context, at string, token pki.Token) (*JoinConn, error) {
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		return nil, overlay.Errorf(overlay.Invalid, "manager address %q is malformed; write HOST or HOST:PORT", at)
	}
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	d := tls.Dialer{Config: pki.ForJoin(token.CA, time.Now)}
	c, err := d.DialContext(ctx, "tcp", at)
	if err == nil {
		return &JoinConn{c.(*tls.Conn), at, token}, nil
	}
	if e, ok := errors.AsType[*overlay.Error](err); ok {
		return nil, overlay.Errorf(e.Kind, "manager %s: %w", at, e)
	}
	if strings.Contains(err.Error(), "no application protocol") {
		return nil, overlay.Errorf(overlay.Denied, "%s is no manager; name one (`heddle node ls` in the cluster shows them)", at)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return nil, overlay.Errorf(overlay.Unavailable, "manager %s can't be reached (%w); check the address, that heddle runs on %s, and that its firewall lets %s/tcp in", at, op.Err, host, port)
	}
	return nil, overlay.Errorf(overlay.Unavailable, "no heddle manager answers on %s (%w); check the address and the port", at, err)
}

// Local is the address of this host that the manager was reached from.
func (c *JoinConn) Local() netip.Addr {
	return c.conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}

// Close closes the connection.
func (c *JoinConn) Close() error { return c.conn.Close() }

// Terms asks what a node must know before it can join, once for a connection.
func (c *JoinConn) Terms(ctx context.Context) (t Terms, err error) {
	if err := c.ask(ctx, pathTerms, TermsRequest{c.token.Secret[:]}, &t); err != nil {
		return t, err
	}
	return t, overlay.CheckVersion("join", t.V)
}

// Join asks to be taken in, once for a connection. It is safe to repeat with the same node ID
// and key: the answer is the same, and costs the token one use. A reply with Blocked is a
// refusal.
func (c *JoinConn) Join(ctx context.Context, r JoinRequest) (JoinReply, error) {
	r.V, r.Secret = 1, c.token.Secret[:]
	var reply JoinReply
	if err := c.ask(ctx, pathJoin, r, &reply); err != nil {
		return JoinReply{}, err
	}
	if err := overlay.CheckVersion("join", reply.V); err != nil || len(reply.Blocked) > 0 {
		return reply, err
	}
	if pki.Digest(reply.CA) != c.token.CA {
		return JoinReply{}, overlay.Errorf(overlay.Denied, "manager %s answered with another CA than the token's", c.at)
	}
	if reply.Node.ID != r.Node || reply.Facts.Place != reply.Place {
		return JoinReply{}, overlay.Errorf(overlay.Internal, "manager %s answered for another node or cluster", c.at)
	}
	return reply, nil
}

func (c *JoinConn) ask(ctx context.Context, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*Patience)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.conn.Close() })
	defer stop()
	b, err := json.Marshal(in)
	if err != nil {
		return overlay.Errorf(overlay.Internal, "encode the request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://manager"+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	t := &http.Transport{DisableKeepAlives: true, DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return c.conn, nil }}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return overlay.Errorf(overlay.Unavailable, "manager %s went away in the middle of the join (%w); run the same command again", c.at, err)
	}
	defer resp.Body.Close()
	return wire.Decode(resp, out)
}

// Join dials one manager and asks to be taken in.
func Join(ctx context.Context, at string, token pki.Token, r JoinRequest) (JoinReply, error) {
	c, err := DialJoin(ctx, at, token)
	if err != nil {
		return JoinReply{}, err
	}
	defer c.Close()
	return c.Join(ctx, r)
}
