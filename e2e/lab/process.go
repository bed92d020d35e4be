//go:build linux

package lab

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Command is what to start in a host. The process gets a process group of its own, the
// host's environment and Env, and / as its directory.
type Command struct {
	Args       []string
	Env        []string // NAME=VALUE, added to the host's
	Stdin      *os.File // nil is /dev/null, also below
	Stdout     *os.File
	Stderr     *os.File
	Notify     bool          // give it a NOTIFY_SOCKET; see Process.WaitReady
	Restart    time.Duration // start it again this long after each end; 0 is never
	Foreground bool          // Stdin is the controlling terminal: make it the foreground process
}

// Process is a process in a host.
type Process struct {
	host    *Host
	id      int
	args    []string
	started chan struct{} // closed when it runs, or could not be started
	ready   chan struct{} // closed when it has said READY=1
	done    chan struct{} // closed when it has ended for good
	err     error         // of its end; read after done

	mu  sync.Mutex
	pid int
}

func newProcess(h *Host, id int, c Command) *Process {
	return &Process{host: h, id: id, args: c.Args, started: make(chan struct{}), ready: make(chan struct{}), done: make(chan struct{})}
}

// ExitError says that a command ended with a code other than 0. A signal's code is 128 and
// its number.
type ExitError struct {
	Host   string
	Args   []string
	Code   int
	Signal unix.Signal
	Stderr string
}

func (e *ExitError) Error() string {
	how := fmt.Sprintf("exit code %d", e.Code)
	if e.Signal != 0 {
		how = e.Signal.String()
	}
	return fmt.Sprintf("%s: %s: %s: %s", e.Host, strings.Join(e.Args, " "), how, strings.TrimSpace(e.Stderr))
}

// note takes an event from the host's first process.
func (p *Process) note(e event) {
	switch e.What {
	case started:
		p.mu.Lock()
		p.pid = e.PID
		p.mu.Unlock()
		closeOnce(p.started)
	case ready:
		closeOnce(p.ready)
	case exited:
		if e.Code != 0 {
			p.err = &ExitError{Host: p.host.Name(), Args: p.args, Code: e.Code, Signal: e.Signal}
		}
		closeOnce(p.done)
	case failed:
		p.err = fmt.Errorf("%s: %s", p.args[0], e.Err)
		closeOnce(p.started)
		closeOnce(p.done)
	}
}

// PID is the process's number inside the host, the newest one after a restart.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// Done is closed when the process has ended for good.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the process's end. It returns nil for exit code 0, an *ExitError for
// another, and the context's error, with the process still running, when ctx ends.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// WaitReady waits until a process with Notify has said READY=1.
func (p *Process) WaitReady(ctx context.Context) error {
	select {
	case <-p.ready:
		return nil
	case <-p.done:
		if p.err == nil {
			return fmt.Errorf("%s: %s ended before it was ready", p.host.Name(), p.args[0])
		}
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("%s: wait until %s is ready: %w", p.host.Name(), p.args[0], ctx.Err())
	}
}

// Signal sends a signal to the process.
func (p *Process) Signal(s unix.Signal) error { return p.ask(request{ID: p.id, Signal: s}) }

// Stop sends SIGTERM; a process with Restart stays down after it.
func (p *Process) Stop() error { return p.ask(request{ID: p.id, Signal: unix.SIGTERM, Final: true}) }

// Kill sends SIGKILL to the process group; a process with Restart stays down after it.
func (p *Process) Kill() error {
	return p.ask(request{ID: p.id, Signal: unix.SIGKILL, Group: true, Final: true})
}

func (p *Process) ask(r request) error {
	if err := send(p.host.conn, r); err != nil {
		return fmt.Errorf("%s: signal %s: %w", p.host.Name(), p.args[0], err)
	}
	return nil
}
