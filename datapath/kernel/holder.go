package kernel

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

// Program names the process that has a port of the host open, as in "dnsmasq (PID 812)", or is ""
// when none is found. Any goroutine may call it.
func (k *Kernel) Program(p datapath.Port) string {
	f, err := netns.Open(k.hostPath(), 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	var sockets []string
	if err := netns.Do(f, func() error { sockets = socketsAt(p); return nil }); err != nil {
		return ""
	}
	return processWith(sockets)
}

// holder names who has the UDP port of a VXLAN device that can't be set up.
func (k *Kernel) holder(port uint16) string {
	return cmp.Or(k.Program(datapath.Port{Proto: "udp", Port: port}), k.deviceAt(port), "something that is not seen from here")
}

// socketsAt are the inodes of the sockets in the calling thread's namespace that are bound to a
// port (proc_net_tcp in the kernel's documentation).
func socketsAt(p datapath.Port) (inodes []string) {
	const listening, local, state, inode = "0A", 1, 3, 9 // fields of a line
	for _, family := range []string{"", "6"} {
		file, err := os.Open("/proc/thread-self/net/" + p.Proto + family)
		if err != nil {
			continue
		}
		for s := bufio.NewScanner(file); s.Scan(); {
			fields := strings.Fields(s.Text())
			if len(fields) <= inode || p.Proto == "tcp" && fields[state] != listening {
				continue
			}
			_, hex, _ := strings.Cut(fields[local], ":")
			if port, err := strconv.ParseUint(hex, 16, 16); err == nil && uint16(port) == p.Port {
				inodes = append(inodes, "socket:["+fields[inode]+"]")
			}
		}
		file.Close()
	}
	return inodes
}

// processWith names the first process that has one of the sockets open.
func processWith(sockets []string) string {
	if len(sockets) == 0 {
		return ""
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && slices.Contains(sockets, to) {
			dir := filepath.Dir(filepath.Dir(fd))
			comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
			return fmt.Sprintf("%s (PID %s)", strings.TrimSpace(string(comm)), filepath.Base(dir))
		}
	}
	return ""
}

// deviceAt names a VXLAN device of the host that has a port: its socket is the kernel's own.
func (k *Kernel) deviceAt(port uint16) string {
	h, err := openHandle(k.hostPath(), 0)
	if err != nil {
		return ""
	}
	defer h.close()
	links, err := h.links()
	if err != nil {
		return ""
	}
	for _, l := range links {
		if datapath.Kind(l.kind) == datapath.VXLAN && l.vxlan.Port == port && !l.ours() {
			return "the VXLAN device " + l.name
		}
	}
	return ""
}
