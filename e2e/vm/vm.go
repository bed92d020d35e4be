//go:build linux

// Package vm makes hosts that are virtual machines: Debian's kernel and Debian's systemd
// under qemu, which emulates the processor, joined by an underlay switch in this process. The
// machine that they run on is not touched: no link, no mount, no installed package but qemu.
//
// Programs that use it call Main first of all, since the agent that runs commands in a host
// is the calling program itself; CGO_ENABLED=0 keeps it independent of the C library there.
// Everything that a Lab makes goes away with the process that made it: qemu ends with it, and
// the disks are files without a name.
package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
)

// Config says what machines to make.
type Config struct {
	Hosts  int                     // at most 200
	Memory int                     // MiB of each; default 512
	Files  func(root string) error // puts more files into the hosts' root file systems, below root
}

// Lab is a set of virtual machines and their switch.
type Lab struct {
	image string
	sw    *netSwitch
	hosts []*Host
}

// Missing says what this machine lacks for virtual machines, or is "".
func Missing() string {
	if runtime.GOARCH != "amd64" {
		return "virtual machines are made of Debian's packages for amd64"
	}
	for prog, pkg := range map[string]string{"qemu-system-x86_64": "qemu-system-x86", "mke2fs": "e2fsprogs", "dpkg-deb": "dpkg", "apt-get": "apt"} {
		if _, err := exec.LookPath(prog); err != nil {
			return fmt.Sprintf("the program %s is missing; apt-get install %s", prog, pkg)
		}
	}
	if os.Geteuid() != 0 {
		return "unpacking a root file system needs root"
	}
	return ""
}

// New boots hosts and waits until systemd has started all of each. heddle is installed in
// them by `make install` and not yet enabled.
func New(ctx context.Context, cfg Config) (*Lab, error) {
	if cfg.Memory == 0 {
		cfg.Memory = 512
	}
	l := &Lab{sw: newSwitch()}
	err := l.prepare(ctx, cfg)
	if err == nil {
		err = each(l.hosts, func(h *Host) error { return h.Boot(ctx) })
	}
	if err != nil {
		return nil, fmt.Errorf("vm: %w", errors.Join(err, l.Close()))
	}
	return l, nil
}

// prepare makes the image and the hosts' disks.
func (l *Lab) prepare(ctx context.Context, cfg Config) error {
	repo, err := repository()
	if err != nil {
		return err
	}
	if l.image, err = output(exec.CommandContext(ctx, filepath.Join(repo, "tools/vm-image.sh"))); err != nil {
		return fmt.Errorf("make the image: %w", err)
	}
	root, err := os.MkdirTemp("", "heddle-vm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if err := stage(ctx, repo, root); err != nil {
		return err
	}
	if cfg.Files != nil {
		if err := cfg.Files(filepath.Join(root, "upper")); err != nil {
			return err
		}
	}
	for i := range cfg.Hosts {
		h := &Host{lab: l, n: i + 1, memory: cfg.Memory}
		if h.disk, err = newDisk(ctx, root, h, cfg.Hosts); err != nil {
			return fmt.Errorf("make the disk of %s: %w", h.Name(), err)
		}
		l.hosts = append(l.hosts, h)
	}
	return nil
}

// Hosts are all hosts in order.
func (l *Lab) Hosts() []*Host { return l.hosts }

// Close ends all hosts and removes everything. It may be called more than once.
func (l *Lab) Close() error {
	err := each(l.hosts, (*Host).PullPlug)
	for _, h := range l.hosts {
		h.disk.Close()
	}
	return err
}

// repository is the directory of go.mod, at or above the working directory.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("the working directory is not in heddle's repository")
}

// output runs a program of this machine. What it says besides its output is this process's
// own to say.
func output(cmd *exec.Cmd) (string, error) {
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w", filepath.Base(cmd.Path), err)
	}
	return strings.TrimSpace(string(out)), err
}

// each runs a step for all hosts at once.
func each(hosts []*Host, step func(*Host) error) error {
	errs := make([]error, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() { errs[i] = step(h) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
