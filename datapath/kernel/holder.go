package kernel

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
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
// port.
func socketsAt(p datapath.Port) (inodes []string) {
	eachSocket(p.Proto, func(s socket) {
		if s.at.Port == p.Port && (p.Proto == "udp" || s.state == listening) {
			inodes = append(inodes, "socket:["+s.inode+"]")
		}
	})
	return inodes
}

// Bound are the ports of the host at which programs wait for whoever comes. Any goroutine may call it.
func (k *Kernel) Bound() (out []datapath.Port, err error) {
	err = k.visit(datapath.NS{}, func() error {
		for _, proto := range []string{"tcp", "udp"} {
			eachSocket(proto, func(s socket) {
				if s.at.Port != 0 && s.state == map[string]string{"tcp": listening, "udp": unconnected}[proto] {
					out = append(out, s.at)
				}
			})
		}
		return nil
	})
	return out, err
}

// socket is a line about one (proc_net_tcp in the kernel's documentation). Its address is zero where it
// is bound to all.
type socket struct {
	at           datapath.Port
	state, inode string
}

const listening, unconnected = "0A", "07"

// eachSocket reads the calling thread's namespace.
func eachSocket(proto string, fn func(socket)) {
	const local, state, inode = 1, 3, 9 // fields of a line
	for _, family := range []string{"", "6"} {
		file, err := os.Open("/proc/thread-self/net/" + proto + family)
		if err != nil {
			continue
		}
		for s := bufio.NewScanner(file); s.Scan(); {
			fields := strings.Fields(s.Text())
			if len(fields) <= inode {
				continue
			}
			addr, number, _ := strings.Cut(fields[local], ":")
			if port, err := strconv.ParseUint(number, 16, 16); err == nil {
				fn(socket{datapath.Port{Proto: proto, Port: uint16(port), At: boundTo(addr)}, fields[state], fields[inode]})
			}
		}
		file.Close()
	}
}

// boundTo reads an address: words of four bytes, each as the number that the host sees in them.
func boundTo(s string) netip.Addr {
	words, err := hex.DecodeString(s)
	if err != nil || len(words)%4 != 0 {
		return netip.Addr{}
	}
	for i := 0; i < len(words); i += 4 {
		binary.NativeEndian.PutUint32(words[i:], binary.BigEndian.Uint32(words[i:]))
	}
	a, _ := netip.AddrFromSlice(words)
	if a = a.Unmap(); a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
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
