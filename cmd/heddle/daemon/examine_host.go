//go:build linux

package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/cmd/heddle/daemon/doctor"
	"github.com/heddle-net/heddle/datapath/kernel"
)

// readHost reads what any host has, whether or not heddle runs on it.
func readHost(k *kernel.Kernel, dataDir string) doctor.Host {
	h := doctor.Host{DataDir: dataDir}
	for _, f := range kernel.Features() {
		row := doctor.Feature{Name: f.Name}
		if f.Err != nil {
			row.Err = f.Err.Error()
		}
		h.Features = append(h.Features, row)
	}
	var err error
	if h.Encryption, err = k.Encryption(); err != nil {
		h.Sealing = err.Error()
	}
	h.Free, h.Size = disk(dataDir)
	if l, err := k.Listening(); err == nil {
		h.Buffer, h.BufferWant = l.Buffer, l.Wanted
		if l.Inotify != nil {
			h.Inotify = l.Inotify.Error()
		}
	}
	h.Legacy, _ = k.LegacyTables() // where there are none, the files are missing
	running := programs()
	h.Networkd = doctor.Manager{Running: running["systemd-network"], Files: readFiles(".network", // a command's name has 15 bytes
		"/lib/systemd/network", "/usr/lib/systemd/network", "/usr/local/lib/systemd/network", "/run/systemd/network", "/etc/systemd/network")}
	slices.SortFunc(h.Networkd.Files, func(a, b doctor.File) int { return strings.Compare(filepath.Base(a.Path), filepath.Base(b.Path)) })
	h.NetMan = doctor.Manager{Running: running["NetworkManager"], Files: readFiles(".conf",
		"/usr/lib/NetworkManager/conf.d", "/run/NetworkManager/conf.d", "/etc/NetworkManager", "/etc/NetworkManager/conf.d")}
	return h
}

// disk is the room on the disk of a directory, or of the nearest one above it that is there.
func disk(dir string) (free, size uint64) {
	var st unix.Statfs_t
	for err := unix.Statfs(dir, &st); err != nil; err = unix.Statfs(dir, &st) {
		if dir == "/" {
			return 0, 0
		}
		dir = filepath.Dir(dir)
	}
	return st.Bavail * uint64(st.Bsize), st.Blocks * uint64(st.Bsize)
}

// programs are the names of what runs here, as far as the kernel keeps them.
func programs() map[string]bool {
	out := map[string]bool{}
	files, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil {
			out[strings.TrimSpace(string(b))] = true
		}
	}
	return out
}

// readFiles reads configuration out of directories, of which a later one's file takes the place of
// one with its name. One that is empty, or a link to /dev/null, only does that.
func readFiles(suffix string, dirs ...string) (out []doctor.File) {
	for _, dir := range dirs {
		files, _ := filepath.Glob(dir + "/*" + suffix)
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			out = slices.DeleteFunc(out, func(old doctor.File) bool { return filepath.Base(old.Path) == filepath.Base(f) })
			out = append(out, doctor.File{Path: f, Text: string(b)})
		}
	}
	return out
}
