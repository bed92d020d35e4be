package netns

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

const (
	udpBuffer = 4 << 20 // bytes that wait in a UDP socket, with what the kernel adds to each packet
	backlog   = 128     // connections that wait to be taken
)

// Listen opens a socket for "udp" or "tcp" inside a namespace, bound to an address that need not be
// there yet.
func Listen(ns *os.File, proto string, at netip.AddrPort) (*os.File, error) {
	fd := -1
	err := Visit(ns, func() (err error) {
		fd, err = bound(proto, at)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open %s %s in %s: %w", proto, at, ns.Name(), err)
	}
	return os.NewFile(uintptr(fd), proto), nil
}

func bound(proto string, at netip.AddrPort) (fd int, err error) {
	family, kind, address := unix.AF_INET, unix.SOCK_DGRAM, unix.Sockaddr(nil)
	if at.Addr().Is4() {
		address = &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
	} else {
		family, address = unix.AF_INET6, &unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())}
	}
	if proto == "tcp" {
		kind = unix.SOCK_STREAM
	}
	if fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	free := [2]int{unix.SOL_IP, unix.IP_FREEBIND}
	if family == unix.AF_INET6 {
		free = [2]int{unix.SOL_IPV6, unix.IPV6_FREEBIND}
	}
	if err := unix.SetsockoptInt(fd, free[0], free[1], 1); err != nil {
		return -1, err
	}
	if kind == unix.SOCK_DGRAM {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpBuffer) // it works with less
		return fd, unix.Bind(fd, address)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, address); err != nil {
		return -1, err
	}
	return fd, unix.Listen(fd, backlog)
}

// OfSocket is the inode of the namespace that a socket is in.
func OfSocket(socket *os.File) (inode uint64, err error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		ns, err := unix.IoctlRetInt(int(fd), unix.SIOCGSKNS)
		if err != nil {
			failed = fmt.Errorf("find a socket's namespace: %w", err)
			return
		}
		f := os.NewFile(uintptr(ns), "socket's namespace")
		defer f.Close()
		inode, failed = InodeOf(f)
	})
	if err == nil {
		err = failed
	}
	return inode, err
}
