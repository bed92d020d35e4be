//go:build linux

package daemon

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/overlay"
)

// Who may use the socket, and is not root, names no command that root runs.
func TestOnlyRootNamesAHealthCommand(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: becomes another user")
	}
	dir, err := os.MkdirTemp("", "heddle-caller") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
	r := overlay.AttachRequest{Name: "web", Network: "net", Health: overlay.Health{Kind: overlay.HealthCmd, Command: "true"}}
	for uid, want := range map[int]string{0: "in no cluster", 65534: "only root may name one"} {
		go dialAs(uid, path)
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_, err = node{&Daemon{}}.Attach(withCaller(t.Context(), c), r)
		c.Close()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("user %d: %v, want %q", uid, err, want)
		}
	}
}

// dialAs opens a connection as a user, on a thread that ends with it.
func dialAs(uid int, path string) {
	runtime.LockOSThread()
	_, _, _ = unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
	if c, err := net.Dial("unix", path); err == nil {
		_, _ = c.Read(make([]byte, 1))
		c.Close()
	}
}
