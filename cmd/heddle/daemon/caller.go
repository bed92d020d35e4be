//go:build linux

package daemon

import (
	"context"
	"net"

	"golang.org/x/sys/unix"
)

// rootKey is the key of whether root called. The socket may be open to a group.
type rootKey struct{}

// withCaller keeps who opened a connection for its requests.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, rootKey{}, openedByRoot(c))
}

// byRoot says whether a request of the local API came from root.
func byRoot(ctx context.Context) bool {
	is, _ := ctx.Value(rootKey{}).(bool)
	return is
}

// openedByRoot says whether root opened a connection, as the kernel noted then (unix(7),
// SO_PEERCRED). What can't be told is not root's.
func openedByRoot(c net.Conn) bool {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return false
	}
	root := false
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		root = err == nil && cred.Uid == 0
	})
	return err == nil && root
}
