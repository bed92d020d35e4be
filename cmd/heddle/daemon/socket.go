//go:build linux

package daemon

import (
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/heddle-net/heddle/overlay"
)

// listenUnix opens the local API's socket with mode 0600, or 0660 for a group. It takes the
// place of a socket that nobody answers any more, in one step: whoever sees the socket can
// use it.
func listenUnix(path, group string) (net.Listener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, overlay.Errorf(overlay.InUse, "another daemon answers on %s; stop it, or use another --socket", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, overlay.Errorf(overlay.Internal, "make the socket's directory: %w", err)
	}
	temporary := fmt.Sprintf("%s.%d", path, os.Getpid())
	os.Remove(temporary)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, overlay.Errorf(overlay.Internal, "open the socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // the file has another name by then
	if err := publish(temporary, path, group); err != nil {
		l.Close()
		os.Remove(temporary)
		return nil, overlay.Errorf(overlay.Internal, "open the socket %s: %w", path, err)
	}
	return l, nil
}

func publish(temporary, path, group string) error {
	if err := os.Chmod(temporary, 0o600); err != nil {
		return err
	}
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			return err
		}
		gid, err := strconv.Atoi(g.Gid)
		if err != nil {
			return err
		}
		if err := os.Chown(temporary, 0, gid); err != nil {
			return err
		}
		if err := os.Chmod(temporary, 0o660); err != nil {
			return err
		}
	}
	return os.Rename(temporary, path)
}
