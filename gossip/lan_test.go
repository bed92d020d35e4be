package gossip

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/heddle-net/heddle/overlay"
)

// lan is a network in memory for virtual time. Packets are late, lost, doubled and out of order as
// it says. On streams a loss is a delay: a segment that is lost, or whose acknowledgement is, comes
// again after 200 ms, then after twice that, and so on. That is what Linux does where nothing follows
// that could make it look sooner. A lost SYN is followed by others as connect sends them; it comes
// again by itself after 1 s. Windows have no limit.
//
// Where costs are set, each host has one core, on which sending and taking in follow each other.
type lan struct {
	delay, jitter time.Duration // of one way: delay, and up to jitter more
	loss, twice   float64       // probabilities of a packet
	mtu           int           // a packet that is larger is lost: fragments don't pass
	cost          costs

	mu    sync.Mutex
	cut   func(from, to overlay.NodeID) bool
	hosts map[string]*host
	sent  int // packets
	large int // packets above the MTU
	over  int // packets lost because their host was busy
	frame int // bytes of the largest frame on a stream

	dials atomic.Int64 // streams for exchanges
}

// costs are what work takes on a core.
type costs struct {
	packet     time.Duration // to send one, and to receive one
	streamByte float64       // ns, to send a byte on a stream, and to receive one
	takeByte   float64       // ns, to decode, check and merge a byte of records; charged for all that comes in
	handshake  time.Duration // of a stream, on each side
}

const (
	mss        = 1440
	headers    = 28 // of IPv4 and UDP
	rto        = 200 * time.Millisecond
	rtoSYN     = time.Second
	rtoMost    = time.Minute
	socketRoom = 256 // packets that wait in a socket of Linux's default size
)

func newLAN() *lan {
	return &lan{
		delay: 200 * time.Microsecond, jitter: 300 * time.Microsecond, mtu: 1500,
		hosts: map[string]*host{}, cut: func(_, _ overlay.NodeID) bool { return false },
	}
}

// partition cuts what the function says, from now on.
func (l *lan) partition(cut func(from, to overlay.NodeID) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
}

func (l *lan) heal() { l.partition(func(_, _ overlay.NodeID) bool { return false }) }

// loses says whether a packet is lost on its way.
func (l *lan) loses(from, to overlay.NodeID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut(from, to) || rand.Float64() < l.loss
}

func (l *lan) oneWay() time.Duration { return l.delay + time.Duration(rand.Int64N(int64(l.jitter)+1)) }

func (l *lan) host(addr string) *host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hosts[addr]
}

// host is one node's place in a lan. It implements wire.
type host struct {
	lan     *lan
	id      overlay.NodeID
	at      netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
	syncs   chan stream
	slots   chan struct{}
	closed  chan struct{}
	once    sync.Once

	dialling atomic.Int64 // streams for exchanges that are being opened

	mu      sync.Mutex
	free    time.Time // when the core has done what it has begun
	waiting int       // packets that have come in and not been taken
}

var _ wire = (*host)(nil)

// join gives a node a place in the lan.
func (l *lan) join(id overlay.NodeID, at netip.AddrPort) *host {
	h := &host{
		lan: l, id: id, at: at, packets: make(chan *memberlist.Packet, 1024), streams: make(chan net.Conn), syncs: make(chan stream),
		slots: make(chan struct{}, maxHandshakes), closed: make(chan struct{}),
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts[hostPort(at)] = h
	return h
}

// work gives the core something to do and says how long it takes until that is done.
func (h *host) work(d time.Duration, perByte float64, size int) time.Duration {
	d += time.Duration(perByte * float64(size))
	if d == 0 {
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if h.free.Before(now) {
		h.free = now
	}
	h.free = h.free.Add(d)
	return h.free.Sub(now)
}

func (h *host) WriteTo(b []byte, addr string) (time.Time, error) {
	time.Sleep(h.work(h.lan.cost.packet, 0, len(b)))
	to := h.lan.host(addr)
	h.lan.mu.Lock()
	h.lan.sent++
	copies := 1
	if rand.Float64() < h.lan.twice {
		copies = 2
	}
	if len(b)+headers > h.lan.mtu {
		h.lan.large++
		copies = 0
	}
	h.lan.mu.Unlock()
	for range copies {
		if to == nil || h.lan.loses(h.id, to.id) {
			continue
		}
		p := &memberlist.Packet{Buf: bytes.Clone(b), From: net.UDPAddrFromAddrPort(h.at)}
		time.AfterFunc(h.lan.oneWay(), func() { to.arrive(p) })
	}
	return time.Now(), nil
}

// arrive puts a packet into the socket, from where the core takes it.
func (h *host) arrive(p *memberlist.Packet) {
	h.mu.Lock()
	full := h.waiting >= socketRoom
	if !full {
		h.waiting++
	}
	h.mu.Unlock()
	if full {
		h.lan.mu.Lock()
		h.lan.over++
		h.lan.mu.Unlock()
		return
	}
	time.Sleep(h.work(h.lan.cost.packet, h.lan.cost.takeByte, len(p.Buf)))
	h.mu.Lock()
	h.waiting--
	h.mu.Unlock()
	p.Timestamp = time.Now()
	select {
	case h.packets <- p:
	case <-h.closed:
	default:
	}
}

func (h *host) Dial(ctx context.Context, addr string, node overlay.NodeID) (net.Conn, error) {
	h.lan.dials.Add(1)
	h.dialling.Add(1)
	defer h.dialling.Add(-1)
	near, far, to, err := h.connect(ctx, addr)
	if err != nil {
		return nil, err
	}
	if to.id != node {
		return nil, fmt.Errorf("%s is not node %s", addr, node)
	}
	give(to, to.syncs, stream{far, h.id})
	return near, nil
}

func (h *host) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	near, far, to, err := h.connect(ctx, addr)
	if err != nil {
		return nil, err
	}
	give(to, to.streams, net.Conn(far))
	return near, nil
}

// give hands a stream over when the client's last word of the handshake has come.
func give[C io.Closer](h *host, takers chan<- C, c C) {
	time.AfterFunc(h.lan.oneWay(), func() {
		late := time.NewTimer(handshakeTime)
		defer late.Stop()
		select {
		case takers <- c:
		case <-late.C:
			c.Close()
		case <-h.closed:
			c.Close()
		}
		<-h.slots
	})
}

// connect does the handshakes of TCP and TLS 1.3: two round trips.
func (h *host) connect(ctx context.Context, addr string) (near, far net.Conn, to *host, err error) {
	if err := h.meet(ctx, addr); err != nil {
		return nil, nil, nil, err
	}
	if to = h.lan.host(addr); to == nil {
		return nil, nil, nil, errors.New("connection refused")
	}
	select {
	case to.slots <- struct{}{}:
	default:
		return nil, nil, nil, errors.New("connection reset: too many handshakes")
	}
	err = h.roundTrip(ctx, addr, rto, 3) // the server's certificate needs two segments
	if err == nil {
		err = pause(ctx, to.work(h.lan.cost.handshake, 0, 0))
	}
	if err == nil {
		err = pause(ctx, h.work(h.lan.cost.handshake, 0, 0))
	}
	if err != nil {
		<-to.slots
		return nil, nil, nil, err
	}
	there, back := newFlow(h, to), newFlow(to, h)
	return &conn{in: back, out: there, at: h.at, to: to.at}, &conn{in: there, out: back, at: to.at, to: h.at}, to, nil
}

// meet takes until the first of connect's tries gets through.
func (h *host) meet(ctx context.Context, addr string) error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, maxConnects)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	for i := range maxConnects {
		all.Go(func() {
			err := pause(ctx, time.Duration(i)*connectEvery)
			if err == nil {
				err = h.roundTrip(ctx, addr, rtoSYN, 1)
			}
			done <- err
		})
	}
	return <-done // an error is that of ctx, for all
}

// roundTrip takes as long as it takes until one try gets through both ways.
func (h *host) roundTrip(ctx context.Context, addr string, again time.Duration, segments int) error {
	for ; ; again = min(2*again, rtoMost) {
		lost := false
		to := h.lan.host(addr)
		for range segments + 1 {
			lost = lost || (to != nil && (h.lan.loses(h.id, to.id) || h.lan.loses(to.id, h.id)))
		}
		if !lost {
			return pause(ctx, h.lan.oneWay()+h.lan.oneWay())
		}
		if err := pause(ctx, again); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *host) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return h.at.Addr().AsSlice(), int(h.at.Port()), nil
}
func (h *host) Advertised() netip.AddrPort          { return h.at }
func (h *host) PacketCh() <-chan *memberlist.Packet { return h.packets }
func (h *host) StreamCh() <-chan net.Conn           { return h.streams }
func (h *host) Exchanges() <-chan stream            { return h.syncs }

func (h *host) Shutdown() error {
	h.once.Do(func() {
		close(h.closed)
		h.lan.mu.Lock()
		defer h.lan.mu.Unlock()
		delete(h.lan.hosts, hostPort(h.at))
	})
	return nil
}

// flow is one direction of a stream.
type flow struct {
	from, to *host

	mu    sync.Mutex
	next  int            // segments sent
	due   int            // segments arrived in order
	early map[int][]byte // segments that came before others
	data  []byte
	eof   bool // the writer has closed
	gone  bool // the reader has closed
	wake  chan struct{}
}

func newFlow(from, to *host) *flow {
	return &flow{from: from, to: to, early: map[int][]byte{}, wake: make(chan struct{}, 1)}
}

func (f *flow) stir() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// transmit sends a segment until it comes through. An empty one closes.
func (f *flow) transmit(seq int, seg []byte, again time.Duration) {
	f.mu.Lock()
	gone := f.gone
	f.mu.Unlock()
	switch {
	case gone || again > rtoMost:
	case f.from.lan.loses(f.from.id, f.to.id):
		time.AfterFunc(again, func() { f.transmit(seq, seg, 2*again) })
	default:
		time.AfterFunc(f.from.lan.oneWay(), func() { f.arrive(seq, seg) })
	}
}

func (f *flow) arrive(seq int, seg []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.early[seq] = seg
	for s, ok := f.early[f.due]; ok; s, ok = f.early[f.due] {
		delete(f.early, f.due)
		f.due++
		c := f.from.lan.cost
		if wait := f.to.work(0, c.streamByte+c.takeByte, len(s)); wait == 0 {
			f.taken(s)
		} else {
			time.AfterFunc(wait, func() { // in order: a core does one thing at a time
				f.mu.Lock()
				defer f.mu.Unlock()
				f.taken(s)
			})
		}
	}
}

// taken gives a segment to the reader. The caller holds mu.
func (f *flow) taken(seg []byte) {
	f.data = append(f.data, seg...)
	f.eof = f.eof || len(seg) == 0
	f.stir()
}

func (f *flow) put(segs ...[]byte) {
	for _, s := range segs {
		f.mu.Lock()
		seq := f.next
		f.next++
		f.mu.Unlock()
		f.transmit(seq, s, rto)
	}
}

// conn is one end of a stream. One goroutine reads at a time.
type conn struct {
	in, out *flow
	at, to  netip.AddrPort

	mu     sync.Mutex
	until  time.Time
	closed bool
}

func (c *conn) Read(b []byte) (int, error) {
	for {
		c.mu.Lock()
		until, closed := c.until, c.closed
		c.mu.Unlock()
		c.in.mu.Lock()
		n, eof := copy(b, c.in.data), c.in.eof
		c.in.data = c.in.data[n:]
		c.in.mu.Unlock()
		switch {
		case closed:
			return 0, net.ErrClosed
		case n > 0:
			return n, nil
		case eof:
			return 0, io.EOF
		case !until.IsZero() && !time.Now().Before(until):
			return 0, os.ErrDeadlineExceeded
		}
		end := time.NewTimer(cmp.Or(max(0, time.Until(until)), time.Hour))
		select {
		case <-c.in.wake:
		case <-end.C:
		}
		end.Stop()
	}
}

func (c *conn) Write(b []byte) (int, error) {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return 0, net.ErrClosed
	}
	c.out.from.lan.mu.Lock()
	c.out.from.lan.frame = max(c.out.from.lan.frame, len(b))
	c.out.from.lan.mu.Unlock()
	for rest := b; len(rest) > 0; {
		seg := rest[:min(mss, len(rest))]
		rest = rest[len(seg):]
		h := c.out.from
		time.Sleep(h.work(0, h.lan.cost.streamByte, len(seg)))
		c.out.put(bytes.Clone(seg))
	}
	return len(b), nil
}

func (c *conn) Close() error {
	c.mu.Lock()
	was := c.closed
	c.closed = true
	c.mu.Unlock()
	if !was {
		c.out.put(nil)
		c.in.mu.Lock()
		c.in.gone = true
		c.in.mu.Unlock()
		c.in.stir()
	}
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	c.until = t
	c.mu.Unlock()
	c.in.stir()
	return nil
}
func (c *conn) SetReadDeadline(t time.Time) error { return c.SetDeadline(t) }
func (c *conn) SetWriteDeadline(time.Time) error  { return nil }
func (c *conn) LocalAddr() net.Addr               { return net.TCPAddrFromAddrPort(c.at) }
func (c *conn) RemoteAddr() net.Addr              { return net.TCPAddrFromAddrPort(c.to) }
