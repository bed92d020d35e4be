package gossip

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/heddle-net/heddle/overlay"
)

// Protocols on the gossip port's TCP side, told apart by ALPN.
const (
	alpnGossip = "heddle-gossip/1" // memberlist's streams
	alpnSync   = "heddle-sync/1"   // exchanges of digests and records
)

const (
	handshakeTime = 5 * time.Second
	maxHandshakes = 64 // connections that have not said who they are yet
	maxPacket     = 65536

	connectEvery = 250 * time.Millisecond // until then an answer is waited for, before another try begins
	maxConnects  = 4
)

// wire is what a node speaks over: memberlist's packets and streams, and streams for exchanges.
// Tests have one in memory, so that they can run in virtual time.
type wire interface {
	memberlist.Transport
	// Advertised is the address that others reach this node at.
	Advertised() netip.AddrPort
	// Dial opens a stream to a node, and to nobody who can't prove to be that node.
	Dial(ctx context.Context, addr string, node overlay.NodeID) (net.Conn, error)
	// Exchanges are the streams that others open.
	Exchanges() <-chan stream
}

// stream is a connection whose other side has proven who it is.
type stream struct {
	net.Conn
	peer overlay.NodeID
}

// transport carries memberlist's packets over UDP and its streams, and the exchanges, over
// TLS on the same port. It implements wire.
type transport struct {
	udp       *net.UDPConn
	tcp       *net.TCPListener
	advertise netip.AddrPort
	server    *tls.Config
	client    func(overlay.NodeID, ...string) *tls.Config
	peer      func(tls.ConnectionState) (overlay.NodeID, error)
	log       *slog.Logger
	packets   chan *memberlist.Packet
	streams   chan net.Conn
	syncs     chan stream
	slots     chan struct{}
	closed    chan struct{}
	once      sync.Once
	running   sync.WaitGroup
}

// listen opens both halves of the port.
func listen(c Config) (*transport, error) {
	bind, advertise := c.Bind, c.Advertise
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(bind))
	if err != nil {
		return nil, portError("tcp", bind, err)
	}
	bind = netip.AddrPortFrom(bind.Addr(), uint16(tcp.Addr().(*net.TCPAddr).Port))
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(bind))
	if err != nil {
		tcp.Close()
		return nil, portError("udp", bind, err)
	}
	_ = udp.SetReadBuffer(2 << 20) // the kernel caps it; the default works too, with more loss in bursts
	if advertise.Port() == 0 {
		advertise = netip.AddrPortFrom(advertise.Addr(), bind.Port())
	}
	t := &transport{
		udp: udp, tcp: tcp, advertise: advertise, server: c.Server(alpnGossip, alpnSync), client: c.Client, peer: c.Peer, log: c.Log,
		packets: make(chan *memberlist.Packet, 1024), streams: make(chan net.Conn), syncs: make(chan stream),
		slots: make(chan struct{}, maxHandshakes), closed: make(chan struct{}),
	}
	t.running.Go(t.readPackets)
	t.running.Go(t.accept)
	return t, nil
}

func portError(proto string, a netip.AddrPort, err error) error {
	return overlay.Errorf(overlay.InUse, "listen on gossip port %d/%s: %w; stop what holds it (`ss -lpn sport = :%d` names it), or set gossip-port", a.Port(), proto, err, a.Port())
}

func (t *transport) readPackets() {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := t.udp.ReadFromUDP(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error of an earlier send
		}
		if n == 0 {
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: from, Timestamp: time.Now()}
		select {
		case t.packets <- p:
		case <-t.closed:
			return
		default: // memberlist is behind: a packet may be lost, a blocked socket loses more
		}
	}
}

// accept does the handshakes beside each other, so that a silent client delays nobody.
func (t *transport) accept() {
	for {
		c, err := t.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			t.log.Warn("accept on the gossip port", "err", err)
			continue
		}
		select {
		case t.slots <- struct{}{}:
			t.running.Go(func() { t.handshake(c); <-t.slots })
		default:
			c.Close()
		}
	}
}

func (t *transport) handshake(c net.Conn) {
	tc := tls.Server(c, t.server)
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	go func() {
		select {
		case <-t.closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := tc.HandshakeContext(ctx); err != nil {
		c.Close()
		return
	}
	var taken bool
	switch tc.ConnectionState().NegotiatedProtocol {
	case alpnGossip:
		select {
		case t.streams <- tc:
			taken = true
		case <-ctx.Done():
		}
	case alpnSync:
		peer, err := t.peer(tc.ConnectionState())
		if err != nil {
			break
		}
		select {
		case t.syncs <- stream{tc, peer}:
			taken = true
		case <-ctx.Done():
		}
	}
	if !taken {
		c.Close()
	}
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.advertise.Addr().AsSlice(), int(t.advertise.Port()), nil
}

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("gossip to %q: %w", addr, err)
	}
	_, err = t.udp.WriteToUDPAddrPort(b, to)
	return time.Now(), err
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return t.dial(ctx, addr, "", alpnGossip)
}

// Dial implements wire.
func (t *transport) Dial(ctx context.Context, addr string, node overlay.NodeID) (net.Conn, error) {
	return t.dial(ctx, addr, node, alpnSync)
}

// dial opens a TLS stream to a node, or to any node of the cluster with "".
func (t *transport) dial(ctx context.Context, addr string, node overlay.NodeID, alpn string) (net.Conn, error) {
	raw, err := connect(ctx, addr)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, t.client(node, alpn))
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// connect opens a TCP connection. What is lost on the way the kernel sends again after one second,
// then two: a new try begins sooner, beside those that wait, and the first to be answered is it.
func connect(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // of those that wait
	type answer struct {
		c   net.Conn
		err error
	}
	answers, waits := make(chan answer), 0
	try := func() {
		waits++
		go func() { // ends with ctx at the latest
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", addr)
			select {
			case answers <- answer{c, err}:
			case <-ctx.Done():
				if c != nil {
					c.Close()
				}
			}
		}()
	}
	again := time.NewTicker(connectEvery)
	defer again.Stop()
	for try(); ; {
		select {
		case a := <-answers:
			if waits--; a.err == nil || waits == 0 {
				return a.c, a.err
			}
		case <-again.C:
			if waits < maxConnects {
				try()
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Advertised implements wire.
func (t *transport) Advertised() netip.AddrPort { return t.advertise }

// Exchanges implements wire.
func (t *transport) Exchanges() <-chan stream { return t.syncs }

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown implements memberlist.Transport. It is harmless to repeat.
func (t *transport) Shutdown() error {
	t.once.Do(func() {
		close(t.closed)
		t.tcp.Close()
		t.udp.Close()
	})
	t.running.Wait()
	return nil
}

func hostPort(a netip.AddrPort) string {
	return net.JoinHostPort(a.Addr().String(), strconv.Itoa(int(a.Port())))
}
