package kernel

import (
	"errors"
	"fmt"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The library for nf_tables waits for answers by pselect(2), which has room for descriptors
// below 1024 alone: it panics with a higher one. A node with hundreds of namespaces open has
// all of those in use, so that some low ones are kept for these sockets.
const (
	selectable = 1024 // FD_SETSIZE
	lowKept    = 32
)

// low is descriptors that stand ready. It is safe for concurrent use.
type low struct {
	mu  sync.Mutex
	fds []int
	own portIDs // of the connections made: what is done by them is heddle's own
}

// fill takes low descriptors that are free.
func (l *low) fill() {
	for len(l.fds) < lowKept {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		if fd >= selectable {
			unix.Close(fd)
			return
		}
		l.fds = append(l.fds, fd)
	}
}

// dial opens nf_tables of the calling thread's namespace. Another goroutine may be quicker to
// take the descriptor that is given free for it; then the next one is.
func (l *low) dial() (*nftables.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fill()
	for {
		last := len(l.fds) - 1
		if last >= 0 {
			unix.Close(l.fds[last])
			l.fds = l.fds[:last]
		}
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(mustBeLow, l.note))
		if !errors.Is(err, errHigh) || last < 0 {
			return c, err
		}
	}
}

// note remembers a connection's netlink address.
func (l *low) note(c *netlink.Conn) error {
	l.own.add(c.PID())
	return nil
}

// hangUp closes a connection, and keeps its descriptor.
func (l *low) hangUp(c *nftables.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.CloseLasting()
	l.fill()
}

func (l *low) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, fd := range l.fds {
		unix.Close(fd)
	}
	l.fds = nil
}

var errHigh = fmt.Errorf("no descriptor below %d is free", selectable)

// mustBeLow closes a connection that the library could not use.
func mustBeLow(c *netlink.Conn) error {
	raw, err := c.SyscallConn()
	high := false
	if err == nil {
		err = raw.Control(func(fd uintptr) { high = fd >= selectable })
	}
	if err == nil && high {
		err = errHigh
	}
	if err != nil {
		c.Close()
	}
	return err
}
