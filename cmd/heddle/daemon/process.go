//go:build linux

package daemon

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/overlay"
)

// processes watches the processes that workloads live with.
type processes struct{}

// Started is the process's start time in clock ticks since boot (proc(5), stat field 22).
func (processes) Started(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, overlay.Errorf(overlay.NotFound, "there is no process %d", pid)
	}
	// The command's name, field 2, is in parentheses and may hold anything.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	const startTime = 22 - 3
	if len(fields) <= startTime {
		return 0, overlay.Errorf(overlay.Internal, "/proc/%d/stat has %d fields", pid, len(fields))
	}
	return strconv.ParseUint(string(fields[startTime]), 10, 64)
}

// bootID names this run of the kernel (random(4)).
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // where /proc lacks it, all runs are one
	return string(bytes.TrimSpace(b))
}

// Ended returns nil once the process that started then is gone.
func (p processes) Ended(ctx context.Context, pid int, started uint64) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return fmt.Errorf("watch process %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	// The descriptor holds the PID: if it has the stamp now, it is the process meant.
	if now, err := p.Started(pid); err != nil || now != started {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	return readable(ctx, f)
}

// readable waits on the runtime's poller until the file can be read; a pidfd can when its
// process has ended.
func readable(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		if err != nil && err != syscall.EINTR {
			failed = err
			return true
		}
		return n > 0
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if failed != nil {
		return failed
	}
	return err
}
