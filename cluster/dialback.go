package cluster

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/heddle-net/heddle/cluster/api"
	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
)

// Before a node is taken in, the manager that it asks dials it back: the gossip port by TCP and
// UDP, and the data path by UDP. While it joins, the node answers there with the request's
// Probe: by TCP at once, by UDP to a packet that has it. That the node has no VXLAN device yet
// leaves the data path's port free for that.

const (
	dialTime  = 1200 * time.Millisecond // for all ports at the same time
	udpEvery  = 150 * time.Millisecond  // between two tries
	probeSize = 16
	tokenWait = 500 * time.Millisecond // for a token that was made at another manager
)

// roleOf is the role that a token gives now, or "".
func (m *Manager) roleOf(t pki.Token) overlay.Role {
	for _, row := range m.state.View().Tokens {
		if bytes.Equal(row.Hash, t.Hash()) && row.Live(m.Now().Unix()) {
			return row.Role
		}
	}
	return ""
}

// tokenOf checks the secret of a joining node against the tokens.
// Of one that was made a moment ago a follower may not have heard: it waits for it.
func (m *Manager) tokenOf(ctx context.Context, secret []byte) error {
	t := pki.Token{}
	if copy(t.Secret[:], secret) != len(t.Secret) || len(secret) != len(t.Secret) {
		return overlay.Errorf(overlay.Invalid, "the join request holds no token")
	}
	ctx, cancel := context.WithTimeout(ctx, tokenWait)
	defer cancel()
	for ctx.Err() == nil {
		changed := m.state.Changed(m.state.View().Revision)
		if m.roleOf(t) != "" {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return overlay.Errorf(overlay.Denied, "the join token is unknown here, used up, expired or revoked; make one with `heddle token create worker` on a manager")
}

// Terms is what a node with a token must know before it joins.
func (m *Manager) Terms(ctx context.Context, r api.TermsRequest) (api.Terms, error) {
	if err := m.tokenOf(ctx, r.Secret); err != nil {
		return api.Terms{}, err
	}
	p := m.state.View().Params
	return api.Terms{V: 1, DataPathPort: p.DataPathPort, DataPath6: p.DataPath6}, nil
}

// DialBack tries the ports of a node that wants to join. Who has no valid token is dialled by
// nobody: Join tells it why.
func (m *Manager) DialBack(ctx context.Context, r api.JoinRequest, source netip.Addr) (api.JoinReply, error) {
	if len(r.Probe) != probeSize || m.tokenOf(ctx, r.Secret) != nil {
		return api.JoinReply{}, nil
	}
	if p := m.state.View().Params; r.DataPath.IsValid() && r.DataPath.Addr().Is6() != p.DataPath6 {
		return api.JoinReply{}, overlay.Errorf(overlay.Denied, "the data path %s is not of the cluster's family; give an address of the other with --data-path-addr", r.DataPath.Addr())
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	tries := []api.Blocked{{Proto: "tcp", Addr: r.Gossip}, {Proto: "udp", Addr: r.Gossip}}
	if r.DataPath.IsValid() {
		tries = append(tries, api.Blocked{Proto: "udp", Addr: r.DataPath})
	}
	var wg sync.WaitGroup
	for i := range tries {
		wg.Go(func() {
			try := dialTCP
			if tries[i].Proto == "udp" {
				try = dialUDP
			}
			if err := try(ctx, tries[i].Addr, r.Probe); err != nil {
				tries[i].Err = reasonOf(err)
			}
		})
	}
	wg.Wait()
	reply := api.JoinReply{V: 1, Manager: m.state.View().Nodes[m.Self].Name, Source: source}
	for _, t := range tries {
		if t.Err != "" {
			reply.Blocked = append(reply.Blocked, t)
		}
	}
	return reply, nil
}

// reasonOf is what a failed dial means to a reader.
func reasonOf(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "no route, or rejected by a firewall"
	case errors.Is(err, errStranger):
		return err.Error()
	}
	return "no answer"
}

var errStranger = errors.New("another host answers there")

func dialTCP(ctx context.Context, at netip.AddrPort, probe []byte) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", at.String())
	if err != nil {
		return err
	}
	defer c.Close()
	if end, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(end)
	}
	got := make([]byte, len(probe))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, probe) {
		return errStranger
	}
	return nil
}

// hostsOwn is the priority of what the host itself sends to the data path's port (socket(7)): what
// programs send there with another is dropped, since it may be forged VXLAN.
const hostsOwn = 8

func dialUDP(ctx context.Context, at netip.AddrPort, probe []byte) error {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PRIORITY, hostsOwn)
		}) // takes root
	}}
	c, err := d.DialContext(ctx, "udp", at.String())
	if err != nil {
		return err
	}
	defer c.Close()
	for last := error(nil); ; {
		if ctx.Err() != nil {
			return errors.Join(last, ctx.Err())
		}
		_, err := c.Write(probe)
		if err == nil {
			_ = c.SetReadDeadline(time.Now().Add(udpEvery))
			got := make([]byte, 2*len(probe))
			var n int
			if n, err = c.Read(got); err == nil && bytes.Equal(got[:n], probe) {
				return nil
			}
		}
		if t, ok := errors.AsType[net.Error](err); !ok || !t.Timeout() { // at once: not to try in a loop
			last = err
			select {
			case <-time.After(udpEvery):
			case <-ctx.Done():
			}
		}
	}
}
