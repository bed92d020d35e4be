package raftnode

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
)

// Raft's addresses are NODE@HOST:PORT here, so that whoever dials knows which key must answer.

type address struct{ text string }

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return a.text }

func serverAddress(id overlay.NodeID, hostport string) raft.ServerAddress {
	return raft.ServerAddress(string(id) + "@" + hostport)
}

// stream carries Raft over TLS connections from the control port (raft.StreamLayer).
type stream struct {
	net.Listener
	self overlay.NodeID
	cred *pki.Credentials

	mu     sync.Mutex
	open   map[*streamConn]bool
	closed bool
}

type streamConn struct {
	net.Conn
	s    *stream
	peer pki.Subject
}

func (c *streamConn) Close() error {
	c.s.mu.Lock()
	delete(c.s.open, c)
	c.s.mu.Unlock()
	return c.Conn.Close()
}

// take keeps account of a connection, so that all can be closed at once.
func (s *stream) take(c net.Conn, cs tls.ConnectionState) (net.Conn, error) {
	peer, err := pki.PeerSubject(cs)
	if err != nil {
		c.Close()
		return nil, err
	}
	out := &streamConn{c, s, peer}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return nil, net.ErrClosed
	}
	s.open[out] = true
	return out, nil
}

func (s *stream) Accept() (net.Conn, error) {
	for {
		c, err := s.Listener.Accept()
		if err != nil {
			return nil, err
		}
		state, ok := c.(interface{ ConnectionState() tls.ConnectionState })
		if !ok {
			c.Close()
			continue
		}
		if out, err := s.take(c, state.ConnectionState()); err == nil {
			return out, nil
		}
	}
}

func (s *stream) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, hostport, ok := strings.Cut(string(to), "@")
	if !ok {
		return nil, overlay.Errorf(overlay.Internal, "raft address %q names no node", to)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	d := tls.Dialer{Config: s.cred.ForRaft(overlay.NodeID(id))}
	c, err := d.DialContext(ctx, "tcp", hostport)
	if err != nil {
		return nil, err
	}
	return s.take(c, c.(*tls.Conn).ConnectionState())
}

func (s *stream) Addr() net.Addr {
	return address{string(serverAddress(s.self, s.Listener.Addr().String()))}
}

// Close ends the listener and every connection.
func (s *stream) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.drop(func(pki.Subject) bool { return true })
	return s.Listener.Close()
}

// drop closes the connections with such peers.
func (s *stream) drop(which func(pki.Subject) bool) {
	s.mu.Lock()
	var out []*streamConn
	for c := range s.open {
		if which(c.peer) {
			out = append(out, c)
		}
	}
	s.mu.Unlock()
	for _, c := range out {
		c.Close()
	}
}
