//go:build linux

package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A lab's directory holds "lock", which its process holds locked while it lives, "pids" with
// the first processes of its hosts, and one directory per host. A directory whose lock is
// free belongs to a dead lab.

// claimDir removes what dead labs left under base and makes a directory for a new one.
func claimDir(base, name string) (dir string, lock *os.File, err error) {
	if err := os.MkdirAll(base, 0o700); err != nil {
		return "", nil, err
	}
	all, err := flock(filepath.Join(base, ".lock"), unix.LOCK_EX)
	if err != nil {
		return "", nil, err
	}
	defer all.Close()
	if err := sweep(base); err != nil {
		return "", nil, err
	}
	name = strings.Map(func(r rune) rune {
		if r == '/' || r == '*' {
			return '-'
		}
		return r
	}, name)
	if dir, err = os.MkdirTemp(base, name+"-"); err != nil {
		return "", nil, err
	}
	if lock, err = flock(filepath.Join(dir, "lock"), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return "", nil, err
	}
	return dir, lock, nil
}

func flock(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// sweep removes the dead labs under base. The caller holds base's lock.
func sweep(base string) error {
	dirs, err := os.ReadDir(base)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if !d.IsDir() {
			continue
		}
		dir := filepath.Join(base, d.Name())
		lock, err := flock(filepath.Join(dir, "lock"), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue // alive
		}
		if err != nil {
			return err
		}
		killRecorded(filepath.Join(dir, "pids"))
		err = os.RemoveAll(dir)
		lock.Close()
		if err != nil {
			return fmt.Errorf("remove what a dead lab left: %w", err)
		}
	}
	return nil
}

// recordHosts notes the first processes, each with its start time, so that a number that was
// given to another process later is not taken for it.
func recordHosts(dir string, hosts []*Host) error {
	var b strings.Builder
	for _, h := range hosts {
		pid := h.cmd.Process.Pid
		fmt.Fprintf(&b, "%d %s\n", pid, startTime(pid))
	}
	return os.WriteFile(filepath.Join(dir, "pids"), []byte(b.String()), 0o600)
}

func killRecorded(path string) {
	f, err := os.Open(path)
	if err != nil {
		return // died before it had hosts
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		pid, start, _ := strings.Cut(s.Text(), " ")
		n, err := strconv.Atoi(pid)
		if err == nil && n > 1 && start != "" && startTime(n) == start {
			_ = unix.Kill(n, unix.SIGKILL)
		}
	}
}

// startTime is field 22 of /proc/PID/stat, or "" for no such process.
func startTime(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(b), ") ") // the name may hold spaces
	if f := strings.Fields(rest); len(f) > 19 {
		return f[19]
	}
	return ""
}
