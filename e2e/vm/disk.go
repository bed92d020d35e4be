//go:build linux

package vm

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Program is where the calling program stands in the hosts.
const Program = "/usr/local/lib/heddle-lab/program"

// diskSize is in bytes; what a host has not written takes no memory.
const diskSize = 1 << 30

const agentUnit = `[Unit]
Description=runs commands for the lab
DefaultDependencies=no

[Service]
ExecStart=` + Program + ` ` + agentArg + `
Restart=always
Environment=HOME=/root LANG=C.UTF-8

[Install]
WantedBy=sysinit.target
`

// underlay configures the network card. Without KeepConfiguration=, networkd takes the
// addresses away for some 50 ms each time that it starts.
const underlay = `[Match]
MACAddress=%s

[Network]
Address=%s
Address=%s
Gateway=%s
KeepConfiguration=static
`

// stage lays out a disk below dir: in "upper" what stands over the shared root file system,
// in "state" what becomes /var/lib/heddle, a directory of a plain ext4.
func stage(ctx context.Context, repo, dir string) error {
	for _, d := range []string{"work", "state", "upper/etc/systemd/network", "upper/etc/systemd/system/sysinit.target.wants"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	upper := filepath.Join(dir, "upper")
	// What runs is what was built, as with the other scenarios.
	if _, err := output(exec.CommandContext(ctx, "make", "-s", "-C", repo, "-o", "build", "install", "DESTDIR="+upper)); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Dir(upper+Program), 0o755); err != nil {
		return err
	}
	if err := copyFile(upper+Program, self); err != nil {
		return err
	}
	units := upper + "/etc/systemd/system"
	if err := os.WriteFile(units+"/lab-agent.service", []byte(agentUnit), 0o644); err != nil {
		return err
	}
	return os.Symlink("../lab-agent.service", units+"/sysinit.target.wants/lab-agent.service")
}

// newDisk makes the disk of a host, a file in memory. It adds the host's own files to dir.
func newDisk(ctx context.Context, dir string, h *Host, hosts int) (*os.File, error) {
	names := "127.0.0.1 localhost\n::1 localhost\n"
	for i := range hosts {
		names += fmt.Sprintf("%s n%d\n", addr4(i+1).Addr(), i+1)
	}
	for file, text := range map[string]string{
		"hostname":                            h.Name() + "\n",
		"hosts":                               names,
		"machine-id":                          fmt.Sprintf("%032x\n", h.n),
		"systemd/network/20-underlay.network": fmt.Sprintf(underlay, h.mac(), addr4(h.n), addr6(h.n), addr4(254).Addr()),
	} {
		if err := os.WriteFile(filepath.Join(dir, "upper/etc", file), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	fd, err := unix.MemfdCreate("disk of "+h.Name(), unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "disk of "+h.Name())
	if err := f.Truncate(diskSize); err != nil {
		f.Close()
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-d", dir, "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{f}
	if _, err := output(cmd); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err = io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
