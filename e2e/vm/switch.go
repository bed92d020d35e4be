//go:build linux

package vm

import (
	"errors"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxFrame is more than any frame that a host sends.
const maxFrame = 1 << 16

// portQueue is how many frames a port holds for a host that does not take them; what comes
// on top is dropped, as a switch does.
const portQueue = 1000

// netSwitch joins the hosts' network cards. It sends each frame to all other ports.
type netSwitch struct {
	mu        sync.Mutex // guards what follows
	ports     map[*port]bool
	capturing bool
	captured  [][]byte
}

type port struct {
	conn net.Conn
	out  chan []byte
}

func newSwitch() *netSwitch { return &netSwitch{ports: map[*port]bool{}} }

// plug adds a port and returns the cable's other end, each of whose packets is a frame, and
// what pulls the cable.
func (s *netSwitch) plug() (far *os.File, unplug func(), err error) {
	conn, far, err := socketPair(unix.SOCK_DGRAM)
	if err != nil {
		return nil, nil, err
	}
	p := &port{conn: conn, out: make(chan []byte, portQueue)}
	s.mu.Lock()
	s.ports[p] = true
	s.mu.Unlock()
	go s.receive(p)
	go p.send()
	return far, func() { conn.Close() }, nil
}

// receive takes a port's frames until its connection is closed.
func (s *netSwitch) receive(p *port) {
	buf := make([]byte, maxFrame)
	for {
		n, err := p.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err == nil {
			s.flood(p, append([]byte(nil), buf[:n]...))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ports, p)
	close(p.out)
}

func (s *netSwitch) flood(from *port, frame []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.capturing {
		s.captured = append(s.captured, frame)
	}
	for p := range s.ports {
		if p == from {
			continue
		}
		select {
		case p.out <- frame:
		default:
		}
	}
}

func (p *port) send() {
	for frame := range p.out {
		_, _ = p.conn.Write(frame) // one that can't be taken is a lost one
	}
}

// Capture keeps all frames on the underlay until the function that it returns is called.
func (l *Lab) Capture() (end func() [][]byte) {
	set := func(on bool) [][]byte {
		l.sw.mu.Lock()
		defer l.sw.mu.Unlock()
		was := l.sw.captured
		l.sw.capturing, l.sw.captured = on, nil
		return was
	}
	set(true)
	return func() [][]byte { return set(false) }
}

// socketPair is a connection and its far end, for a process that is started with it.
func socketPair(kind int) (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	defer near.Close()
	conn, err := net.FileConn(near)
	if err != nil {
		far.Close()
		return nil, nil, err
	}
	return conn, far, nil
}
