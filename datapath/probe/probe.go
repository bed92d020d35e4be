// Package probe looks from inside a network namespace whether what runs there works.
package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

// TCP returns nil when a connection to an address is taken in the namespace before ctx ends. The
// zero NS is the caller's own.
func TCP(ctx context.Context, ns datapath.NS, at netip.AddrPort) error {
	c, err := dial(ctx, ns, at)
	if err != nil {
		return err
	}
	return c.Close()
}

// maxHeader bounds an answer's header, in bytes. The body is not read.
const maxHeader = 64 << 10

// HTTP returns nil when a GET of a path, which may have a query, is answered with a status of 200 to
// 399 before ctx ends. Redirects are not followed.
func HTTP(ctx context.Context, ns datapath.NS, at netip.AddrPort, path string) error {
	u, err := url.Parse("http://" + at.String() + path)
	if err != nil {
		return fmt.Errorf("path %q: %w", path, err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	r.Header.Set("User-Agent", "heddle")
	t := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, ns, at) },
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
	}
	defer t.CloseIdleConnections()
	a, err := t.RoundTrip(r)
	if err != nil {
		if ctx.Err() != nil {
			err = errLate
		}
		return err
	}
	defer a.Body.Close()
	if a.StatusCode < 200 || a.StatusCode > 399 {
		return fmt.Errorf("GET %s: %s", path, a.Status)
	}
	return nil
}

// inside runs fn on a thread in the namespace.
func inside(ns datapath.NS, fn func() error) error {
	if ns.Path == "" {
		return fn()
	}
	f, err := netns.Open(ns.Path, ns.Inode)
	if err != nil {
		return err
	}
	defer f.Close()
	return netns.Do(f, fn)
}

const (
	shell    = "/bin/sh"
	tailSize = 256                    // bytes of a command's output that are kept
	pipeTime = 200 * time.Millisecond // for output that comes after a command's end
)

// Command returns nil when a shell's command line ends with 0 in the namespace before ctx ends; else
// the command and all of its process group is killed. It sees the host's files, as the caller's user, and
// of the environment the PATH alone. Of the error the end of what it printed is a part.
func Command(ctx context.Context, ns datapath.NS, line string) error {
	var out tail
	c := exec.CommandContext(ctx, shell, "-c", line)
	c.Stdout, c.Stderr, c.Dir, c.Env = &out, &out, "/", []string{"PATH=" + os.Getenv("PATH")}
	// The thread that starts it waits for its end: with the thread it would be killed.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGKILL) }
	c.WaitDelay = pipeTime
	err := inside(ns, c.Run)
	switch {
	case c.ProcessState == nil, err == nil:
		return err
	case ctx.Err() != nil:
		return out.behind("not finished in time")
	case errors.Is(err, exec.ErrWaitDelay): // something that it left running has its output
		return nil
	}
	return out.behind(err.Error())
}

// tail keeps the end of what is written to it.
type tail []byte

func (t *tail) Write(b []byte) (int, error) {
	all := append(*t, b[max(0, len(b)-tailSize):]...)
	*t = all[max(0, len(all)-tailSize):]
	return len(b), nil
}

// behind is an error with what was written behind it.
func (t *tail) behind(why string) error {
	if len(*t) == 0 {
		return errors.New(why)
	}
	return fmt.Errorf("%s: %s", why, *t)
}
