// Package wireguard is WireGuard in user space, for hosts whose kernel has none. Each device has a
// process of its own, so that it outlives the daemon: this is both what starts, finds and ends such
// processes, and what they do.
package wireguard

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

// What a process is handed by the one that starts it.
const (
	tunFD   = 3 // the open link
	readyFD = 4 // to which it says that it is ready, or why not
	isReady = "ready"
)

const (
	readyTime = 10 * time.Second // for a process to begin
	endTime   = 2 * time.Second  // for one to end by itself
)

// TUN makes a link of that name in the namespace of the calling thread. It is gone when the last
// holder of the file has closed it.
func TUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, datapath.Errorf(datapath.Unsupported, "this kernel has no WireGuard, and /dev/net/tun, which heddle's own needs, cannot be opened: %w; load the module wireguard, or give the host /dev/net/tun", err)
	}
	f := os.NewFile(uintptr(fd), "/dev/net/tun")
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("make link %s: %w", name, err)
	}
	return f, nil
}

// Start makes a link in the namespace ns, and starts a process that carries its packets by UDP
// sockets in the namespace host. It returns when the device can be configured. The process is a
// child of this one, and in a session of its own.
func Start(command []string, host, ns *os.File, name string) (pid int, err error) {
	var tun *os.File
	if err := netns.Do(ns, func() (err error) { tun, err = TUN(name); return err }); err != nil {
		return 0, err
	}
	defer tun.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	cmd := &exec.Cmd{
		Path: command[0], Args: append(slices.Clone(command), name), Dir: "/", Env: []string{}, Stderr: os.Stderr,
		ExtraFiles: []*os.File{tun, w}, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err = netns.Do(host, cmd.Start)
	w.Close()
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", strings.Join(cmd.Args, " "), err)
	}
	_ = r.SetReadDeadline(time.Now().Add(readyTime))
	answer, err := io.ReadAll(r)
	if err == nil && string(answer) != isReady {
		err = errors.New(cmp.Or(string(answer), "it has ended"))
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return 0, fmt.Errorf("start %s: %w", strings.Join(cmd.Args, " "), err)
	}
	pid = cmd.Process.Pid // which Release takes away
	return pid, cmd.Process.Release()
}

// Process is one that carries the packets of a device, whoever has started it.
type Process struct {
	PID  int
	args []string
}

// socket is where the device of that name is configured (wireguard.com/xplatform).
func socket(name string) string { return filepath.Join("/var/run/wireguard", name+".sock") }

// Find is the process that can be asked for the device, if there is one.
func Find(name string) (p Process, there bool) {
	c, err := net.Dial("unix", socket(name))
	if err != nil {
		return p, false
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return p, false
	}
	_ = raw.Control(func(fd uintptr) {
		if who, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			p.PID = int(who.Pid)
		}
	})
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/cmdline")
	p.args = strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	return p, p.PID != 0
}

// Ours says whether a command like this one has started it, for the device of that name. The
// program may since stand elsewhere.
func (p Process) Ours(command []string, name string) bool {
	return len(p.args) > 0 && slices.Equal(p.args[1:], append(slices.Clone(command[1:]), name))
}

func (p Process) String() string { return fmt.Sprintf("%s (PID %d)", strings.Join(p.args, " "), p.PID) }

// Used is the processor time that the process has had, in ticks of 10 ms (proc_pid_stat(5), utime and
// stime), or 0 where that can't be told.
func (p Process) Used() time.Duration {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/stat")
	_, rest, _ := strings.Cut(string(b), ") ") // the name may have spaces
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// End waits until the process has ended, as it does when its link or its socket is gone, and kills
// it if it doesn't.
func (p Process) End() error { return p.end(endTime) }

// Kill ends a process that hangs.
func (p Process) Kill() error { return p.end(0) }

func (p Process) end(patience time.Duration) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end %s: %w", p, err)
	}
	defer unix.Close(fd)
	if gone(fd, patience) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %s: %w", p, err)
	}
	if !gone(fd, endTime) {
		return fmt.Errorf("%s does not end", p)
	}
	return nil
}

// gone says whether a process has ended, or does so in time.
func gone(pidfd int, wait time.Duration) bool {
	for end := time.Now().Add(wait); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(max(0, time.Until(end)/time.Millisecond)))
		if !errors.Is(err, unix.EINTR) {
			return n == 1
		}
	}
}

// Orphan ends a process of heddle's that has the device's name, but whose link is not where it
// should be. One of others is an error that names it.
func Orphan(command []string, name string) error {
	p, there := Find(name)
	if !there {
		return nil
	}
	if !p.Ours(command, name) {
		return datapath.Errorf(datapath.Foreign, "%s is a WireGuard device of others, by %s; end that", name, p)
	}
	if err := os.Remove(socket(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("end %s: %w", p, err)
	}
	return p.End()
}
