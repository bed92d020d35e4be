//go:build linux

// Package oracle judges hosts from outside: what their kernels hold, say and carry, read by
// iproute2, nft and sockets of its own, not by heddle's code. A scenario asks it whatever it is
// itself about.
package oracle

import (
	"context"
	"os"
	"strings"

	"github.com/heddle-net/heddle/e2e/lab"
)

// watcher is a program in a host that runs beside a scenario, and what it prints.
type watcher struct {
	h   *lab.Host
	p   *lab.Process
	out *os.File
}

func watch(h *lab.Host, args ...string) (*watcher, error) {
	out, err := os.CreateTemp("", "oracle")
	if err != nil {
		return nil, err
	}
	os.Remove(out.Name())
	p, err := h.Start(lab.Command{Args: args, Stdout: out, Stderr: out})
	if err != nil {
		out.Close()
		return nil, err
	}
	return &watcher{h, p, out}, nil
}

// said is what the program has printed so far.
func (w *watcher) said() string {
	st, err := w.out.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, st.Size())
	n, _ := w.out.ReadAt(b, 0)
	return string(b[:n])
}

// end stops the program by SIGINT and returns what it has printed.
func (w *watcher) end(ctx context.Context) (string, error) {
	defer w.out.Close()
	if err := w.p.Signal(2); err != nil {
		return "", err
	}
	err := w.p.Wait(ctx)
	if ctx.Err() != nil {
		_ = w.p.Kill()
		return "", err
	}
	return w.said(), nil // monitors have no clean end
}

// in is a command line that runs in a named namespace of a host; "" is the host's own.
func in(ns string, args ...string) []string {
	if ns == "" {
		return args
	}
	return append([]string{"ip", "netns", "exec", ns}, args...)
}

// overlays are the names of the namespaces that heddle has for networks on a host.
func overlays(ctx context.Context, h *lab.Host) ([]string, error) {
	out, err := h.Output(ctx, "sh", "-c", "ls /run/netns | grep '^heddle-' || true")
	return strings.Fields(out), err
}
