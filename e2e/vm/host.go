//go:build linux

package vm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/e2e/lab"
)

// bootTimeout is ten times what a boot takes when the machine has nothing else to do.
const bootTimeout = 90 * time.Second

// kernelArgs leave out what costs an emulated processor time and protects nothing here.
const kernelArgs = "console=ttyS0 quiet mitigations=off panic=-1"

// Host is one virtual machine. Its methods may be called by many goroutines, but Boot and
// PullPlug by one at a time.
type Host struct {
	lab    *Lab
	n      int
	memory int
	disk   *os.File

	console screen
	link    *link
	ended   chan struct{} // closed when qemu has ended
	off     func()        // ends qemu
}

// Name is the host's name, which its neighbours can look up too.
func (h *Host) Name() string { return fmt.Sprintf("n%d", h.n) }

// Addr is the host's IPv4 address on the underlay.
func (h *Host) Addr() netip.Addr { return addr4(h.n).Addr() }

func (h *Host) mac() string { return fmt.Sprintf("52:54:00:77:00:%02x", h.n) }

// Underlay addresses of host number i.
func addr4(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 77, byte(i)}), 24)
}

func addr6(i int) netip.Prefix {
	a := netip.MustParseAddr("fd77::").As16()
	a[15] = byte(i)
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// Boot switches the host on and waits until systemd has started everything; a unit that has
// failed is an error. It must be off.
func (h *Host) Boot(ctx context.Context) error {
	if err := h.switchOn(); err != nil {
		return fmt.Errorf("switch %s on: %w", h.Name(), err)
	}
	return h.waitBooted(ctx, "")
}

// Reboot has systemd reboot the host, and waits as Boot does.
func (h *Host) Reboot(ctx context.Context) error {
	before, _, _ := h.link.state()
	if err := h.Run(ctx, "systemctl", "reboot"); err != nil && !errors.Is(err, errNewBoot) {
		return err
	}
	return h.waitBooted(ctx, before)
}

// waitBooted waits for another system than the one of before, and for its end of booting.
func (h *Host) waitBooted(ctx context.Context, before string) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	for {
		boot, news, down := h.link.state()
		if down != nil {
			return fmt.Errorf("%s did not boot, %w; its console shows:\n%s", h.Name(), down, h.Console())
		}
		if boot != before {
			break
		}
		select {
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("%s did not boot, %w; its console shows:\n%s", h.Name(), ctx.Err(), h.Console())
		}
	}
	state, err := h.Output(ctx, "systemctl", "is-system-running", "--wait")
	if err == nil {
		return nil
	}
	failed, _ := h.Output(ctx, "systemctl", "--failed", "--no-legend")
	return fmt.Errorf("%s has booted and is %s: %s", h.Name(), strings.TrimSpace(state), failed)
}

// switchOn starts qemu from a thread that lives as long as it: the kernel sends a
// parent-death signal when the thread that made the child ends.
func (h *Host) switchOn() error {
	agent, agentFar, err := socketPair(unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer agentFar.Close()
	cable, unplug, err := h.lab.sw.plug()
	if err != nil {
		agent.Close()
		return err
	}
	defer cable.Close()
	cmd := h.qemu(h.disk, agentFar, cable)
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		unplug()
		agent.Close()
	}()
	if err := <-started; err != nil {
		return err
	}
	h.link, h.ended = newLink(agent), ended
	h.off = func() { _ = cmd.Process.Kill() }
	return nil
}

// qemu is the command for a machine with a disk, a serial line to its agent and a cable.
func (h *Host) qemu(disk, agent, cable *os.File) *exec.Cmd {
	image := func(name string) string { return filepath.Join(h.lab.image, name) }
	cmd := exec.Command("qemu-system-x86_64",
		"-name", h.Name(), "-machine", "q35", "-accel", "tcg", "-cpu", "Nehalem", "-smp", "1", "-m", fmt.Sprint(h.memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
		"-kernel", image("vmlinux"), "-initrd", image("initrd"), "-append", kernelArgs,
		"-drive", "if=virtio,format=raw,readonly=on,file="+image("root.ext4"),
		"-drive", "if=virtio,format=raw,cache=unsafe,file=/proc/self/fd/3",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,fd=4", "-device", "virtserialport,chardev=agent,name="+portName,
		"-netdev", "socket,id=cable,fd=5", "-device", "virtio-net-pci,netdev=cable,mac="+h.mac(),
		"-device", "virtio-rng-pci")
	cmd.ExtraFiles = []*os.File{disk, agent, cable}
	cmd.Stdout, cmd.Stderr = &h.console, &h.console
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: unix.SIGKILL,
		Setpgid:   true, // the terminal's Ctrl-C is not for the host
	}
	return cmd
}

// PullPlug switches the host off without a warning: what it had not written to its disk is
// lost.
func (h *Host) PullPlug() error {
	if h.off != nil {
		h.off()
		<-h.ended
		h.off = nil
	}
	return nil
}

// Process is a command that runs in a host.
type Process struct {
	host *Host
	link *link
	id   int
	args []string
	end  <-chan ending
}

// Start starts a command. It does not wait for its end.
func (h *Host) Start(args ...string) (*Process, error) {
	id, end, err := h.link.start(args)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", h.Name(), strings.Join(args, " "), err)
	}
	return &Process{host: h, link: h.link, id: id, args: args, end: end}, nil
}

// Signal sends a signal to the process group.
func (p *Process) Signal(s unix.Signal) error { return p.link.signal(p.id, s) }

// Wait waits for the command's end and returns what it wrote to its standard output. An
// *lab.ExitError carries the code and the standard error. When ctx ends, so does the command.
// It is called once.
func (p *Process) Wait(ctx context.Context) (string, error) {
	var a ending
	select {
	case a = <-p.end:
	case <-ctx.Done():
		_ = p.Signal(unix.SIGKILL)
		return "", fmt.Errorf("%s: %s: %w", p.host.Name(), strings.Join(p.args, " "), ctx.Err())
	}
	if a.Failed != "" {
		a.err = errors.New(a.Failed)
	}
	if a.err != nil {
		return "", fmt.Errorf("%s: %s: %w", p.host.Name(), strings.Join(p.args, " "), a.err)
	}
	if a.Code != 0 {
		return string(a.Out), &lab.ExitError{Host: p.host.Name(), Args: p.args, Code: a.Code, Stderr: string(a.Err)}
	}
	return string(a.Out), nil
}

// Output runs a command in the host, as Process.Wait says.
func (h *Host) Output(ctx context.Context, args ...string) (string, error) {
	p, err := h.Start(args...)
	if err != nil {
		return "", err
	}
	return p.Wait(ctx)
}

// Run is Output for a command whose output does not matter.
func (h *Host) Run(ctx context.Context, args ...string) error {
	_, err := h.Output(ctx, args...)
	return err
}

// Console is the end of what the host's kernel and qemu have said.
func (h *Host) Console() string { return h.console.String() }

// screen keeps the end of what is written to it.
type screen struct {
	mu   sync.Mutex
	text []byte
}

const screenSize = 4 << 10

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, b...)
	s.text = s.text[max(0, len(s.text)-screenSize):]
	return len(b), nil
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.TrimSpace(string(s.text))
}
