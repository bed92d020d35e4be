// Package control is a node's control port: one TCP port on which TLS connections are checked
// and handed, by application protocol, to whoever serves it.
package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
)

const (
	// DefaultPort is the TCP port unless the operator chooses another.
	DefaultPort = 5377

	handshakeTimeout = 5 * time.Second

	// How many connections may be without a checked certificate at one time: those in their
	// handshake, and joins.
	maxPerSource = 64
	maxUnchecked = 1024
)

// Port is the control port. What it serves can be changed while it runs, since roles change.
type Port struct {
	tcp *net.TCPListener
	tls *tls.Config
	log *slog.Logger

	mu        sync.Mutex
	serving   map[string]*listener
	unchecked map[netip.Addr]int
	total     int
	shut      bool
	conns     sync.WaitGroup
}

// Listen opens the port. Nothing is accepted until Run.
func Listen(addr netip.AddrPort, c *pki.Credentials, log *slog.Logger) (*Port, error) {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, overlay.Errorf(overlay.InUse, "control port %d/tcp is in use by another program; stop it (`ss -ltnp sport = :%d` shows it), or choose another port", addr.Port(), addr.Port())
	}
	if err != nil {
		return nil, fmt.Errorf("listen on control port %s: %w", addr, err)
	}
	p := &Port{tcp: tcp, log: log, serving: map[string]*listener{}, unchecked: map[netip.Addr]int{}}
	p.tls = c.Control(p.serves)
	return p, nil
}

// Addr is the address that the port listens on.
func (p *Port) Addr() netip.AddrPort {
	return p.tcp.Addr().(*net.TCPAddr).AddrPort()
}

// Close closes a port that is not run.
func (p *Port) Close() error { return p.tcp.Close() }

// Run accepts connections until ctx ends, then closes the port and all its listeners.
// Connections that were handed on belong to who took them.
func (p *Port) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { p.tcp.Close() })
	defer stop()
	defer p.conns.Wait()
	defer p.shutdown()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		conn, err := p.tcp.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on control port: %w", err)
		case err != nil: // out of descriptors, or a client that went away at once
			p.log.Warn("accept on the control port failed; trying again", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		src := source(conn)
		if !p.enter(src) {
			conn.Close()
			continue
		}
		p.conns.Go(func() { p.handshake(ctx, conn, src) })
	}
}

func source(c net.Conn) netip.Addr {
	return c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}

// handshake checks one connection, off the accept loop, and hands it on.
func (p *Port) handshake(ctx context.Context, tcp *net.TCPConn, src netip.Addr) {
	var once sync.Once
	leave := func() { once.Do(func() { p.leave(src) }) }
	conn := tls.Server(tcp, p.tls)
	hs, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(hs); err != nil {
		p.log.Debug("connection to the control port refused", "from", src, "err", err)
		tcp.Close()
		leave()
		return
	}
	alpn := conn.ConnectionState().NegotiatedProtocol
	out := &Conn{Conn: conn, closed: leave}
	if alpn != pki.ALPNJoin { // a join is counted until it is closed
		leave()
	}
	if l := p.listener(alpn); l == nil || !l.hand(out) {
		out.Close()
	}
}

func (p *Port) enter(src netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.total >= maxUnchecked || p.unchecked[src] >= maxPerSource {
		return false
	}
	p.total++
	p.unchecked[src]++
	return true
}

func (p *Port) leave(src netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total--
	if p.unchecked[src]--; p.unchecked[src] == 0 {
		delete(p.unchecked, src)
	}
}

func (p *Port) serves(alpn string) bool { return p.listener(alpn) != nil }

func (p *Port) listener(alpn string) *listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.serving[alpn]
}

// Listener takes the connections of one protocol from here on, instead of who took them
// before. Closing it ends that; the protocol is refused then.
func (p *Port) Listener(alpn string) net.Listener {
	l := &listener{port: p, alpn: alpn, conns: make(chan *Conn), done: make(chan struct{})}
	p.mu.Lock()
	old := p.serving[alpn]
	p.serving[alpn] = l
	shut := p.shut
	p.mu.Unlock()
	if old != nil {
		old.Close()
	}
	if shut {
		l.Close()
	}
	return l
}

func (p *Port) shutdown() {
	p.tcp.Close()
	p.mu.Lock()
	p.shut = true
	var all []*listener
	for _, l := range p.serving {
		all = append(all, l)
	}
	p.mu.Unlock()
	for _, l := range all {
		l.Close()
	}
}

// listener is one protocol's share of the port.
type listener struct {
	port  *Port
	alpn  string
	conns chan *Conn
	done  chan struct{}
	once  sync.Once
}

func (l *listener) hand(c *Conn) bool {
	select {
	case l.conns <- c:
		return true
	case <-l.done:
		return false
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.port.mu.Lock()
		defer l.port.mu.Unlock()
		if l.port.serving[l.alpn] == l {
			delete(l.port.serving, l.alpn)
		}
	})
	return nil
}

func (l *listener) Addr() net.Addr { return l.port.tcp.Addr() }

// Conn is a checked connection; ConnectionState tells who the other side is.
type Conn struct {
	*tls.Conn
	closed func()
}

func (c *Conn) Close() error {
	c.closed()
	return c.Conn.Close()
}
