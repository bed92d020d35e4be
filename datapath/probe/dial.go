package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

// errLate is the error of an answer that has not come before ctx ended.
var errLate = errors.New("no answer in time")

// dial opens a TCP connection in a namespace. No thread waits for it there: a node has hundreds of
// probes a second.
func dial(ctx context.Context, ns datapath.NS, at netip.AddrPort) (net.Conn, error) {
	fd, err := socket(ns, at)
	if err != nil {
		return nil, err
	}
	err = unix.Connect(fd, address(at))
	s := os.NewFile(uintptr(fd), "tcp") // after the connect: a new socket seems to be ready
	defer s.Close()                     // the connection has a descriptor of its own
	if errors.Is(err, unix.EINPROGRESS) {
		err = connected(ctx, s)
	}
	if err == nil && itself(fd, at) {
		err = unix.ECONNREFUSED
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", at, err)
	}
	return net.FileConn(s)
}

// socket opens a TCP socket in a namespace, of an address's family.
func socket(ns datapath.NS, at netip.AddrPort) (fd int, err error) {
	family := unix.AF_INET
	if at.Addr().Is6() {
		family = unix.AF_INET6
	}
	open := func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
		return err
	}
	if ns.Path == "" {
		err = open()
		return fd, err
	}
	f, err := netns.Open(ns.Path, ns.Inode)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = netns.Visit(f, open)
	return fd, err
}

// connected waits until a connection that has begun stands.
func connected(ctx context.Context, s *os.File) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var failed error
	err = raw.Write(func(fd uintptr) (done bool) {
		var code int
		if code, failed = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); failed == nil && code != 0 {
			failed = unix.Errno(code)
		}
		if failed != nil {
			return true
		}
		_, err := unix.Getpeername(int(fd))
		return !errors.Is(err, unix.ENOTCONN) // the poller wakes for less
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errLate
	}
	return errors.Join(err, failed)
}

func address(at netip.AddrPort) unix.Sockaddr {
	if at.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
	}
	return &unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())}
}

// itself says whether a socket is connected to itself, as TCP has it when nobody listens and the
// port that the kernel has chosen happens to be the one that is asked.
func itself(fd int, at netip.AddrPort) bool {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)) == at
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)) == at
	}
	return false
}
