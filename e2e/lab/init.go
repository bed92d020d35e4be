//go:build linux

package lab

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const initArg = "heddle-lab-init" // argv[1] of the first process of a host

// Main makes the calling program the first process of a host when it was started as one, and
// does not return then. Programs and test binaries that use a lab call it before all else.
func Main() {
	if len(os.Args) < 2 || os.Args[1] != initArg {
		return
	}
	c, err := controlConn(os.NewFile(3, "control"))
	if err != nil {
		os.Exit(1)
	}
	s := &supervisor{conn: c, procs: map[int]*child{}}
	s.run()
	os.Exit(0) // the kernel ends every process of this pid namespace
}

// supervisor is the first process of a host: it mounts what the host sees, starts and signals
// processes on request, and reaps.
type supervisor struct {
	conn *net.UnixConn
	env  []string

	mu    sync.Mutex // held from fork to entry in procs, so that no exit is missed
	procs map[int]*child
	store fdStore
}

type child struct {
	request
	pid     int
	files   []uintptr
	final   bool
	closers []func()
}

func (s *supervisor) run() {
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, unix.SIGCHLD)
	go func() {
		for range chld {
			s.reap()
		}
	}()
	buf := make([]byte, maxPacket)
	var cfg setup
	if _, err := receive(s.conn, buf, &cfg); err != nil {
		return
	}
	if err := makeHost(cfg); err != nil {
		_ = send(s.conn, event{What: failed, Err: err.Error()})
		return
	}
	os.Setenv("PATH", cfg.Path) // for LookPath
	s.env = []string{"PATH=" + cfg.Path, "HOME=/root", "USER=root", "LANG=C.UTF-8", "TERM=" + os.Getenv("TERM"), "HOSTNAME=" + cfg.Name}
	s.tell(event{What: up})
	for {
		var r request
		fds, err := receive(s.conn, buf, &r)
		if _, bad := err.(*json.SyntaxError); err != nil && !bad {
			return // the lab is gone
		}
		s.handle(r, fds)
	}
}

func (s *supervisor) tell(e event) {
	if send(s.conn, e) != nil {
		os.Exit(0)
	}
}

func (s *supervisor) handle(r request, fds []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(r.Args) == 0 {
		c := s.procs[r.ID]
		if c == nil {
			return
		}
		c.final = c.final || r.Final
		pid := c.pid
		if r.Group {
			pid = -pid
		}
		if c.pid != 0 {
			_ = unix.Kill(pid, r.Signal)
		} else if c.final {
			s.forget(c, event{ID: c.ID, What: exited}) // between two restarts
		}
		return
	}
	c := &child{request: r}
	for _, fd := range fds {
		c.files = append(c.files, uintptr(fd))
		c.closers = append(c.closers, func() { unix.Close(fd) })
	}
	s.procs[r.ID] = c
	if err := s.startChild(c); err != nil {
		s.forget(c, event{ID: r.ID, What: failed, Err: err.Error()})
	}
}

// startChild forks. The caller holds mu.
func (s *supervisor) startChild(c *child) error {
	path, err := exec.LookPath(c.Args[0])
	if err != nil {
		return err
	}
	env := append(append([]string(nil), s.env...), c.Env...)
	args, files := c.Args, c.files
	if c.Notify {
		sock, err := s.listenNotify(c)
		if err != nil {
			return fmt.Errorf("make the notify socket: %w", err)
		}
		env = append(env, "NOTIFY_SOCKET="+sock)
		if fds, names := s.store.all(); len(fds) > 0 {
			env = append(env, fmt.Sprintf("LISTEN_FDS=%d", len(fds)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
			files = append(slices.Clip(files), fds...)
			args = append([]string{"sh", "-c", `export LISTEN_PID=$$; exec "$0" "$@"`, path}, args[1:]...) // only the shell knows its number
			path = "/bin/sh"
		}
	}
	sys := &syscall.SysProcAttr{Setpgid: true}
	if c.Foreground {
		sys.Foreground, sys.Ctty = true, int(c.files[0])
	}
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{Dir: "/", Env: env, Files: files, Sys: sys})
	if err != nil {
		return fmt.Errorf("start %s: %w", c.Args[0], err)
	}
	c.pid = pid
	s.tell(event{ID: c.ID, What: started, PID: pid})
	return nil
}

// listenNotify makes the socket of sd_notify(3) for the child, once. Its reader ends with
// the host.
func (s *supervisor) listenNotify(c *child) (string, error) {
	path := fmt.Sprintf("/run/lab/notify-%d", c.ID)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	u, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return "", err
	}
	c.closers = append(c.closers, func() { u.Close(); os.Remove(path) })
	go func() {
		buf, oob := make([]byte, 4096), make([]byte, 4096)
		for {
			n, on, _, _, err := u.ReadMsgUnix(buf, oob)
			if err != nil {
				return
			}
			s.mu.Lock()
			if s.store.note(string(buf[:n]), oob[:on]) {
				s.tell(event{ID: c.ID, What: ready})
			}
			s.mu.Unlock()
		}
	}()
	return path, nil
}

func (s *supervisor) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		for _, c := range s.procs {
			if c.pid == pid {
				s.ended(c, st)
				break
			}
		}
	}
}

func (s *supervisor) ended(c *child, st unix.WaitStatus) {
	c.pid = 0
	if c.Restart > 0 && !c.final {
		time.AfterFunc(c.Restart, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.procs[c.ID] != c {
				return
			}
			if err := s.startChild(c); err != nil {
				s.forget(c, event{ID: c.ID, What: failed, Err: err.Error()})
			}
		})
		return
	}
	e := event{ID: c.ID, What: exited, Code: st.ExitStatus()}
	if st.Signaled() {
		e.Code, e.Signal = 128+int(st.Signal()), st.Signal()
	}
	s.forget(c, e)
}

func (s *supervisor) forget(c *child, e event) {
	delete(s.procs, c.ID)
	for _, f := range c.closers {
		f()
	}
	s.tell(e)
}

// makeHost gives this process the view of a host of its own. It runs in new namespaces.
func makeHost(cfg setup) error {
	if err := unix.Sethostname([]byte(cfg.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := mount("run", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	if err := mountSys(); err != nil {
		return err
	}
	for _, dir := range []string{"/run/lock", "/run/netns", "/run/lab"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/etc", "/var/lib"} {
		if err := mountPrivate(dir); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/var/lib/heddle", "/etc/heddle"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := mount(cfg.Data, "/var/lib/heddle", "", unix.MS_BIND, ""); err != nil {
		return err
	}
	for file, text := range map[string]string{
		"/etc/hostname": cfg.Name + "\n", "/etc/hosts": cfg.Hosts,
		"/proc/sys/net/ipv6/conf/all/disable_ipv6":     "0",
		"/proc/sys/net/ipv6/conf/default/disable_ipv6": "0",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			if strings.HasPrefix(file, "/proc/sys/net/ipv6") {
				return fmt.Errorf("this kernel has IPv6 switched off; boot it without ipv6.disable=1 (%w)", err)
			}
			return err
		}
	}
	// A host that systemd has booted has shared mounts; here they are shared within the host.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

func mount(src, dst, fs string, flags uintptr, data string) error {
	if err := unix.Mount(src, dst, fs, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fs, dst, err)
	}
	return nil
}

// mountSys shows the sysfs of this network namespace, and keeps the cgroups under it.
func mountSys() error {
	const keep = "/run/cgroup"
	if err := os.Mkdir(keep, 0o755); err != nil {
		return err
	}
	held := unix.Mount("/sys/fs/cgroup", keep, "", unix.MS_BIND|unix.MS_REC, "") == nil
	if err := mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if held {
		if err := mount(keep, "/sys/fs/cgroup", "", unix.MS_MOVE, ""); err != nil {
			return err
		}
	}
	return os.Remove(keep)
}

// mountPrivate lays a layer over a directory that takes this host's changes.
func mountPrivate(dir string) error {
	layer := filepath.Join("/run/lab", strings.ReplaceAll(dir[1:], "/", "-"))
	for _, d := range []string{layer + "/upper", layer + "/work"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return mount("overlay", dir, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", dir, layer, layer))
}
