//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Host is one host. Its methods may be called by many goroutines.
type Host struct {
	lab  *Lab
	n    int
	cmd  *exec.Cmd // the first process
	conn *net.UnixConn
	cfg  setup
	up   chan struct{} // closed when the host is ready or gone
	gone chan struct{} // closed when the first process has ended

	mu     sync.Mutex // guards what follows
	addr   netip.Prefix
	fail   error // why the host is not up
	lastID int
	procs  map[int]*Process
	daemon *Process
	heddle string // the program, where it is not the one in the PATH
}

func newHost(l *Lab, n int, cfg Config) (*Host, error) {
	h := &Host{lab: l, n: n, addr: addr4(n), up: make(chan struct{}), gone: make(chan struct{}), procs: map[int]*Process{}}
	dir := filepath.Join(l.dir, h.Name())
	if err := os.MkdirAll(dir+"/data", 0o700); err != nil {
		return nil, err
	}
	hosts := "127.0.0.1 localhost\n::1 localhost\n"
	for i := range cfg.Hosts {
		hosts += fmt.Sprintf("%s n%d\n", addr4(i+1).Addr(), i+1)
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	if cfg.Bin != "" {
		path = cfg.Bin + ":" + path
	}
	h.cfg = setup{Name: h.Name(), Data: dir + "/data", Hosts: hosts, Path: path}
	h.cmd = exec.Command("/proc/self/exe", initArg)
	h.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
		Setpgid:    true, // the terminal's Ctrl-C is not for the host
	}
	return h, nil
}

func (h *Host) start() error {
	conn, far, err := controlPair()
	if err != nil {
		return err
	}
	defer far.Close()
	h.conn = conn
	h.cmd.ExtraFiles = []*os.File{far}
	if err := h.cmd.Start(); err != nil {
		return fmt.Errorf("start host %s: %w", h.Name(), err)
	}
	go h.listen()
	return send(conn, h.cfg)
}

// end kills the host and waits for it. For the goroutine that started it.
func (h *Host) end() {
	if h.cmd.Process == nil {
		return
	}
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait()
	h.conn.Close()
	<-h.gone
}

// listen takes events until the host is gone.
func (h *Host) listen() {
	defer close(h.gone)
	buf := make([]byte, maxPacket)
	for {
		var e event
		if _, err := receive(h.conn, buf, &e); err != nil {
			break
		}
		h.mu.Lock()
		switch p := h.procs[e.ID]; {
		case e.ID == 0:
			if e.What == failed {
				h.fail = errors.New(e.Err)
			}
			closeOnce(h.up)
		case p != nil:
			p.note(e)
			if e.What == exited || e.What == failed {
				delete(h.procs, e.ID)
			}
		}
		h.mu.Unlock()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fail == nil {
		h.fail = errors.New("its first process has ended")
	}
	closeOnce(h.up)
	for id, p := range h.procs {
		p.note(event{ID: id, What: failed, Err: "host " + h.Name() + " is gone"})
	}
	clear(h.procs)
}

func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

func (h *Host) waitUp(ctx context.Context) error {
	select {
	case <-h.up:
	case <-ctx.Done():
		return fmt.Errorf("wait for host %s: %w", h.Name(), ctx.Err())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fail != nil {
		return fmt.Errorf("host %s: %w", h.Name(), h.fail)
	}
	return nil
}

// Name is the host's name, which its neighbours can look up too.
func (h *Host) Name() string { return fmt.Sprintf("n%d", h.n) }

// Addr is the host's IPv4 address on the underlay.
func (h *Host) Addr() netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.addr.Addr()
}

// Addr6 is the IPv6 address that the host has on an underlay with IPv6.
func (h *Host) Addr6() netip.Addr { return addr6(h.n).Addr() }

// Path is how this process sees a file of the host.
func (h *Host) Path(file string) string {
	return fmt.Sprintf("/proc/%d/root%s", h.cmd.Process.Pid, file)
}

func (h *Host) port() string   { return fmt.Sprintf("p%d", h.n) }
func (h *Host) nsPath() string { return fmt.Sprintf("/proc/%d/ns/net", h.cmd.Process.Pid) }

// ip gives lines to ip(8) in the host's network namespace.
func (h *Host) ip(lines string) error {
	f, err := os.Open(h.nsPath())
	if err != nil {
		return err
	}
	defer f.Close()
	return ipBatch(f, lines)
}

// Install makes a file the host's program heddle, for what is started from now on.
func (h *Host) Install(file string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heddle = file
}

// program is a command line with the host's own heddle.
func (h *Host) program(args []string) []string {
	if args[0] != "heddle" || h.heddle == "" {
		return args
	}
	return append([]string{h.heddle}, args[1:]...)
}

// Start starts a process in the host. It does not wait for its end.
func (h *Host) Start(c Command) (*Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	files := []*os.File{c.Stdin, c.Stdout, c.Stderr}
	for i := range files {
		if files[i] == nil {
			files[i] = null
		}
	}
	h.mu.Lock()
	h.lastID++
	p := newProcess(h, h.lastID, c)
	args := h.program(c.Args)
	err = h.fail
	if err == nil {
		h.procs[p.id] = p
	}
	h.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name(), err)
	}
	err = send(h.conn, request{ID: p.id, Args: args, Env: c.Env, Notify: c.Notify, Restart: c.Restart, Foreground: c.Foreground}, files...)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name(), err)
	}
	<-p.started
	if p.PID() == 0 {
		return nil, fmt.Errorf("host %s: %w", h.Name(), p.err)
	}
	return p, nil
}

// Output runs a command in the host and returns what it wrote to its standard output. An
// *ExitError carries the code and the standard error. When ctx ends, so does the command's
// process group.
func (h *Host) Output(ctx context.Context, args ...string) (string, error) {
	return h.OutputOf(ctx, Command{Args: args})
}

// Run is Output for a command whose output does not matter.
func (h *Host) Run(ctx context.Context, args ...string) error {
	_, err := h.Output(ctx, args...)
	return err
}

// OutputOf is Output for a whole Command; its Stdout and Stderr are set here.
func (h *Host) OutputOf(ctx context.Context, c Command) (string, error) {
	out, err := memFile()
	if err != nil {
		return "", err
	}
	defer out.Close()
	errs, err := memFile()
	if err != nil {
		return "", err
	}
	defer errs.Close()
	c.Stdout, c.Stderr = out, errs
	p, err := h.Start(c)
	if err != nil {
		return "", err
	}
	err = p.Wait(ctx)
	if ctx.Err() != nil {
		p.Kill()
		<-p.Done()
		err = fmt.Errorf("%s: %s: %w", h.Name(), strings.Join(c.Args, " "), ctx.Err())
	}
	if e, ok := errors.AsType[*ExitError](err); ok {
		e.Stderr = content(errs)
	}
	return content(out), err
}

func memFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("lab", unix.MFD_CLOEXEC)
	return os.NewFile(uintptr(fd), "lab"), err
}

func content(f *os.File) string {
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, st.Size())
	n, _ := f.ReadAt(b, 0)
	return string(b[:n])
}
