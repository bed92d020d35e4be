//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	readyTimeout = 20 * time.Second
	stopTimeout  = 20 * time.Second
)

// StartDaemon starts `heddle daemon` with the arguments and waits until it is ready. It is
// not started again when it ends.
func (h *Host) StartDaemon(args ...string) error { return h.startDaemon(0, args) }

// SuperviseDaemon is StartDaemon with Restart=always, 100 ms after each end.
func (h *Host) SuperviseDaemon(args ...string) error {
	return h.startDaemon(100*time.Millisecond, args)
}

func (h *Host) startDaemon(restart time.Duration, args []string) error {
	if p := h.Daemon(); p != nil {
		return fmt.Errorf("%s: a daemon runs already", h.Name())
	}
	log, err := os.OpenFile(h.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p, err := h.Start(Command{Args: append([]string{"heddle", "daemon"}, args...), Stdout: log, Stderr: log, Notify: true, Restart: restart})
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.daemon = p
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	if err := p.WaitReady(ctx); err != nil {
		return fmt.Errorf("%w; its log ends:\n%s", err, tail(h.DaemonLog(), 15))
	}
	return nil
}

// Daemon is the running daemon, or nil.
func (h *Host) Daemon() *Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.daemon == nil {
		return nil
	}
	select {
	case <-h.daemon.done:
		return nil
	default:
		return h.daemon
	}
}

var errNoDaemon = errors.New("no daemon runs")

// KillDaemon sends SIGKILL and waits for the end.
func (h *Host) KillDaemon() error {
	p := h.Daemon()
	if p == nil {
		return fmt.Errorf("%s: %w", h.Name(), errNoDaemon)
	}
	if err := p.ask(request{ID: p.id, Signal: unix.SIGKILL, Final: true}); err != nil {
		return err
	}
	<-p.Done()
	return nil
}

// StopDaemon sends SIGTERM and waits for the end, which must be clean.
func (h *Host) StopDaemon() error {
	p := h.Daemon()
	if p == nil {
		return fmt.Errorf("%s: %w", h.Name(), errNoDaemon)
	}
	if err := p.Stop(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return p.Wait(ctx)
}

// PauseDaemon stops the daemon's process (SIGSTOP) until ContinueDaemon.
func (h *Host) PauseDaemon() error { return h.signalDaemon(unix.SIGSTOP) }

// ContinueDaemon lets a paused daemon run again.
func (h *Host) ContinueDaemon() error { return h.signalDaemon(unix.SIGCONT) }

func (h *Host) signalDaemon(s unix.Signal) error {
	p := h.Daemon()
	if p == nil {
		return fmt.Errorf("%s: %w", h.Name(), errNoDaemon)
	}
	return p.Signal(s)
}

// LogFile is where the daemon's output goes, on this machine.
func (h *Host) LogFile() string { return filepath.Join(h.lab.dir, h.Name(), "daemon.log") }

// DaemonLog is what the host's daemons have written.
func (h *Host) DaemonLog() string {
	b, _ := os.ReadFile(h.LogFile())
	return string(b)
}

// RSS is the daemon's resident memory in bytes.
func (h *Host) RSS() (int64, error) {
	p := h.Daemon()
	if p == nil {
		return 0, fmt.Errorf("%s: %w", h.Name(), errNoDaemon)
	}
	b, err := os.ReadFile(h.Path(fmt.Sprintf("/proc/%d/status", p.PID())))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("%s: no VmRSS in the daemon's status", h.Name())
}

// CPU is the time that the daemon has run, to some 10 ms.
func (h *Host) CPU() (time.Duration, error) {
	p := h.Daemon()
	if p == nil {
		return 0, fmt.Errorf("%s: %w", h.Name(), errNoDaemon)
	}
	b, err := os.ReadFile(h.Path(fmt.Sprintf("/proc/%d/stat", p.PID())))
	if err != nil {
		return 0, err
	}
	const user, system, tick = 11, 12, 10 * time.Millisecond // fields behind the name (proc_pid_stat(5)), and their unit
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	var ticks int64
	for _, f := range fields[user : system+1] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the daemon's times: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}

// tail is the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
