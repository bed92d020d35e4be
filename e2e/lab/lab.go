//go:build linux

// Package lab makes hosts on one machine: each a set of namespaces (network, mount, pid,
// uts, ipc) with its own first process, /run, /etc and /var/lib/heddle, joined by an underlay
// switch in a network namespace of its own.
//
// It needs root and the programs ip (iproute2) and, for faults, nft. Programs that use it
// call Main first of all, since the first process of a host is the calling program itself.
// Everything that a lab makes goes away with the process that made it: the hosts' first
// processes end, and with them all namespaces, mounts and links. What stays on the disk after
// a crash is removed by the next New.
package lab

import (
	"bytes"
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

	"golang.org/x/sys/unix"
)

// Config says what lab to make. The zero value is one host.
type Config struct {
	Hosts int    // default 1, at most 200
	MTU   int    // of the underlay; default 1500
	IPv6  bool   // the underlay has IPv6 beside IPv4
	Bin   string // a directory that stands first in the hosts' PATH; "" is none
	Dir   string // where the lab's directory is made, on a real disk; default $HEDDLE_LAB_DIR or /var/tmp/heddle-lab
}

func (c *Config) setDefaults() error {
	if c.Hosts == 0 {
		c.Hosts = 1
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if c.Dir == "" {
		c.Dir = os.Getenv("HEDDLE_LAB_DIR")
	}
	if c.Dir == "" {
		c.Dir = "/var/tmp/heddle-lab"
	}
	switch {
	case c.Hosts < 0 || c.Hosts > 200:
		return fmt.Errorf("lab: Hosts is %d; use 1 to 200", c.Hosts)
	case c.MTU < 1280 || c.MTU > 65535:
		return fmt.Errorf("lab: MTU is %d; use 1280 to 65535", c.MTU)
	case os.Geteuid() != 0:
		return errors.New("lab: needs root to make namespaces; run this as root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return errors.New("lab: the program ip is missing; apt-get install iproute2")
	}
	return nil
}

// Lab is a set of hosts and their switch. Its methods may be called by many goroutines.
type Lab struct {
	dir   string
	lock  *os.File // held while the lab lives
	hosts []*Host
	sw    *os.File      // the switch's network namespace
	close func()        // ends the goroutine that the hosts' parent thread belongs to
	ended chan struct{} // closed when it has ended

	mu     sync.Mutex // guards faults
	faults faults
}

// New makes a lab. The name is part of its directory's name. The hosts are up when it
// returns: addresses set, first processes ready.
func New(ctx context.Context, name string, cfg Config) (*Lab, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	dir, lock, err := claimDir(cfg.Dir, name)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	l := &Lab{dir: dir, lock: lock, ended: make(chan struct{}), close: func() {}}
	if err := l.build(ctx, cfg); err != nil {
		l.Close()
		return nil, fmt.Errorf("lab: %w", err)
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context, cfg Config) error {
	var err error
	if l.sw, err = newNetNS(); err != nil {
		return fmt.Errorf("make a network namespace for the switch: %w", err)
	}
	for i := range cfg.Hosts {
		h, err := newHost(l, i+1, cfg)
		if err != nil {
			return err
		}
		l.hosts = append(l.hosts, h)
	}
	if err := l.startHosts(); err != nil {
		return err
	}
	if err := recordHosts(l.dir, l.hosts); err != nil {
		return err
	}
	if err := l.wire(cfg); err != nil {
		return err
	}
	for _, h := range l.hosts {
		if err := h.waitUp(ctx); err != nil {
			return err
		}
	}
	return nil
}

// startHosts starts the first processes from one thread that lives as long as the lab: the
// kernel sends a parent-death signal when the thread that made the child ends.
func (l *Lab) startHosts() error {
	stop := make(chan struct{})
	l.close = sync.OnceFunc(func() { close(stop) })
	started := make(chan error)
	go func() {
		defer close(l.ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var err error
		for _, h := range l.hosts {
			if err = h.start(); err != nil {
				break
			}
		}
		started <- err
		<-stop
		for _, h := range l.hosts {
			h.end()
		}
	}()
	return <-started
}

// Host is the i-th host, counted from 1; its name is "n" and the number.
func (l *Lab) Host(i int) *Host { return l.hosts[i-1] }

// Hosts are all hosts in order.
func (l *Lab) Hosts() []*Host { return l.hosts }

// Dir is the lab's directory on the disk; Close removes it.
func (l *Lab) Dir() string { return l.dir }

// Close ends all hosts and removes everything. It may be called more than once.
func (l *Lab) Close() error {
	started := false
	for _, h := range l.hosts {
		started = started || h.cmd.Process != nil
	}
	l.close()
	if started {
		<-l.ended
	}
	if l.sw != nil {
		l.sw.Close()
	}
	err := os.RemoveAll(l.dir)
	l.lock.Close()
	return err
}

// Underlay addresses of host number i; number 254 is the switch.
func addr4(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 77, byte(i)}), 24)
}

func addr6(i int) netip.Prefix {
	a := netip.MustParseAddr("fd77::").As16()
	a[15] = byte(i)
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// wire makes the switch and one cable to each host.
func (l *Lab) wire(cfg Config) error {
	var b strings.Builder
	fmt.Fprintf(&b, "link set lo up\nlink add br0 address 02:77:00:00:00:fe type bridge forward_delay 0 mcast_snooping 0\n")
	fmt.Fprintf(&b, "addr add %s dev br0\nlink set br0 up\n", addr4(254))
	for _, h := range l.hosts {
		fmt.Fprintf(&b, "link add %s mtu %d type veth peer name eth0 mtu %d netns %s\n", h.port(), cfg.MTU, cfg.MTU, h.nsPath())
		fmt.Fprintf(&b, "link set %s master br0 up\n", h.port())
	}
	if err := ipBatch(l.sw, b.String()); err != nil {
		return fmt.Errorf("make the switch: %w", err)
	}
	if err := inNetNS(l.sw, noFilter); err != nil {
		return fmt.Errorf("make the switch: %w", err)
	}
	for _, h := range l.hosts {
		s := fmt.Sprintf("link set lo up\naddr add %s dev eth0\nlink set eth0 up\nroute add default via %s\n", addr4(h.n), addr4(254).Addr())
		if cfg.IPv6 {
			s += fmt.Sprintf("addr add %s dev eth0 nodad\n", addr6(h.n))
		}
		if err := h.ip(s); err != nil {
			return fmt.Errorf("wire %s: %w", h.Name(), err)
		}
	}
	return nil
}

// noFilter keeps the kernel from handing bridged frames to iptables, which no switch does and
// which would slow all traffic. A kernel without br_netfilter has no such files.
func noFilter() error {
	files, err := filepath.Glob("/proc/sys/net/bridge/bridge-nf-call-*")
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.WriteFile(f, []byte("0"), 0); err != nil {
			return err
		}
	}
	return nil
}

// newNetNS makes a network namespace that lives while the file is open.
func newNetNS() (f *os.File, err error) {
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		f, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return f, err
}

// InNetNS runs fn on a thread that is in the network namespace at path.
func InNetNS(path string, fn func() error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return inNetNS(f, fn)
}

func inNetNS(ns *os.File, fn func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return fn()
	})
}

// onOwnThread runs fn on a thread whose network namespace fn may change.
func onOwnThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		err = fn()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the thread ends with the goroutine
		}
		done <- err
	}()
	return <-done
}

// ipBatch gives lines to ip(8) in a network namespace.
func ipBatch(ns *os.File, lines string) error {
	return inNetNS(ns, func() error { return feed(lines, "ip", "-batch", "-") })
}

// feed runs a program of this machine with the text as its input.
func feed(input, prog string, args ...string) error {
	cmd := exec.Command(prog, args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(prog), err, bytes.TrimSpace(out))
	}
	return nil
}
