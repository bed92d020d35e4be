package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	msg "github.com/miekg/dns"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/names"
)

const (
	maxQuestion = 4096             // bytes of the longest question by UDP
	idle        = 10 * time.Second // for which a TCP connection may be silent
	pause       = 10 * time.Millisecond
	lastCall    = 500 * time.Millisecond // for what is under way at the end
)

// PacketConn is a UDP socket.
type PacketConn interface {
	ReadFromUDPAddrPort([]byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort([]byte, netip.AddrPort) (int, error)
}

// Upstream asks others. Its methods may be called from any goroutine.
type Upstream interface {
	// Ask answers the reply as it came, with the question's ID, or fails.
	Ask(ctx context.Context, raw []byte, q *msg.Msg) ([]byte, error)
	// Probe is what finds out whether somebody asks here what he is asked, or nil while that is known.
	Probe() func(context.Context)
	// Heard says that a name below LoopDomain, in lower case, was asked for here. It answers who
	// leads here, when that is news.
	Heard(name string) (netip.AddrPort, bool)
}

// Server answers. Its methods may be called from any goroutine.
type Server struct {
	upstream Upstream
	log      *slog.Logger
	table    atomic.Pointer[names.Table]
	bounds   bounds
	ctx      context.Context // of what is forwarded
	cancel   context.CancelFunc
	under    sync.WaitGroup // what is forwarded, and connections
}

// NewServer makes a server that knows no name yet.
func NewServer(u Upstream, log *slog.Logger) *Server {
	s := &Server{upstream: u, log: log}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Answer makes t what is answered from.
func (s *Server) Answer(t *names.Table) { s.table.Store(t) }

// Close ends what is under way, which has a moment for it. Nothing is served any more by then.
func (s *Server) Close() {
	last := time.AfterFunc(lastCall, s.cancel)
	s.under.Wait()
	last.Stop()
	s.cancel()
}

// ServePackets answers what comes to a socket of a network, until the socket is closed or a deadline
// of its is over. One that was read is answered.
func (s *Server) ServePackets(network overlay.NetworkID, c PacketConn) {
	buf := make([]byte, maxQuestion)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		switch {
		case err == nil:
			s.packet(network, c, buf[:n], from)
		case errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded):
			return
		default:
			s.log.Debug("read a question", "network", network, "err", err)
			time.Sleep(pause) // so as not to spin
		}
	}
}

func (s *Server) packet(network overlay.NetworkID, c PacketConn, raw []byte, from netip.AddrPort) {
	a, now := s.table.Load().Asker(network, from.Addr().Unmap()), time.Now()
	if a == nil || !s.bounds.question(a.Namespace, now) {
		return
	}
	reply, q, what := answer(a, raw, true)
	switch what {
	case replied:
		s.heed(q)
		_, _ = c.WriteToUDPAddrPort(reply, from) // who is gone needs none
	case forward:
		done, ok := s.bounds.forward(a.Namespace, now)
		if !ok {
			return
		}
		raw = append([]byte(nil), raw...)
		s.under.Go(func() {
			defer done()
			if reply := s.ask(raw, q); s.ctx.Err() == nil {
				_, _ = c.WriteToUDPAddrPort(reply, from)
			} // else it is asked again, and the next daemon knows
		})
	}
}

// heed notes a question that this server itself has asked somebody.
func (s *Server) heed(q *query) {
	if len(q.Question) == 0 || len(q.Question[0].Name) != loopName {
		return
	}
	if at, news := s.upstream.Heard(strings.ToLower(q.Question[0].Name)); news {
		s.log.Warn("a name server of this host asks workloads' resolver what it is asked by it; it is left out", "server", at)
	}
}

// ask is what others reply to a question, made to fit.
func (s *Server) ask(raw []byte, q *query) []byte {
	if probe := s.upstream.Probe(); probe != nil {
		s.under.Go(func() { probe(s.ctx) })
	}
	b, err := s.upstream.Ask(s.ctx, raw, &q.Msg)
	if err != nil {
		return q.refuse(msg.RcodeServerFailure)
	}
	if len(b) <= q.size {
		return b
	}
	var r msg.Msg
	if r.Unpack(b) != nil {
		return q.refuse(msg.RcodeServerFailure)
	}
	return q.pack(&r)
}

// ServeStreams takes connections to a listener of a network, until that is closed or its deadline is
// over.
func (s *Server) ServeStreams(network overlay.NetworkID, l net.Listener) {
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
		case errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded):
			return
		default:
			s.log.Debug("take a connection", "network", network, "err", err)
			time.Sleep(pause)
			continue
		}
		from, _ := netip.ParseAddrPort(c.RemoteAddr().String())
		a := s.table.Load().Asker(network, from.Addr().Unmap())
		if a == nil {
			c.Close()
			continue
		}
		done, ok := s.bounds.stream(a.Namespace, time.Now())
		if !ok {
			c.Close()
			continue
		}
		s.under.Go(func() {
			defer done()
			defer c.Close()
			defer context.AfterFunc(s.ctx, func() { c.Close() })()
			s.stream(network, c, from.Addr().Unmap())
		})
	}
}

// stream answers one question after the other (RFC 7766), each with its length before it.
func (s *Server) stream(network overlay.NetworkID, c net.Conn, from netip.Addr) {
	var length [2]byte
	for {
		_ = c.SetDeadline(time.Now().Add(idle))
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		raw := make([]byte, min(int(binary.BigEndian.Uint16(length[:])), maxQuestion))
		if len(raw) < int(binary.BigEndian.Uint16(length[:])) {
			return // no question is that long
		}
		if _, err := io.ReadFull(c, raw); err != nil {
			return
		}
		now := time.Now()
		a := s.table.Load().Asker(network, from)
		if a == nil || !s.bounds.question(a.Namespace, now) {
			return
		}
		reply, q, what := answer(a, raw, false)
		if what == forward {
			done, ok := s.bounds.forward(a.Namespace, now)
			if !ok {
				return
			}
			reply = s.ask(raw, q)
			done()
		} else if what == drop {
			return
		}
		s.heed(q)
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}
