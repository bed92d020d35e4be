package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

// What heddle doctor looks at besides heddle's own objects. Any goroutine may call these.

// Settings reads files under /proc/sys in a namespace. What this kernel does not have is left out.
func (k *Kernel) Settings(ns datapath.NS, paths ...string) (map[string]string, error) {
	out := map[string]string{}
	err := k.visit(ns, func() error {
		for _, p := range paths {
			b, err := os.ReadFile(sysctl{path: p}.file())
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			if err == nil {
				out[p] = strings.TrimSpace(string(b))
			}
		}
		return nil
	})
	return out, err
}

// visit runs fn in a namespace, which nothing keeps open afterwards.
func (k *Kernel) visit(ns datapath.NS, fn func() error) error {
	path := k.hostPath()
	if ns.Path != "" {
		path = k.path(ns)
	}
	f, err := netns.Open(path, ns.Inode)
	if err != nil {
		return err
	}
	defer f.Close()
	return netns.Do(f, fn)
}

// Path is how the host sends to an address.
type Path struct {
	Link string
	MTU  int // of packets to it as far as the host has learned; 0 is the link's
}

// PathTo asks the host's routing for the way to an address.
func (k *Kernel) PathTo(a netip.Addr) (p Path, err error) {
	h, err := openHandle(k.hostPath(), 0)
	if err != nil {
		return p, err
	}
	defer h.close()
	links, err := h.links()
	if err != nil {
		return p, err
	}
	const metricMTU = 2 // RTAX_MTU
	head := make([]byte, unix.SizeofRtMsg)
	head[0], head[1] = family(a), uint8(a.BitLen())
	err = h.get(request(unix.RTM_GETROUTE, 0, head).bytes(unix.RTA_DST, a.AsSlice()), func(b []byte) {
		if len(b) < unix.SizeofRtMsg {
			return
		}
		for t, v := range attributes(b[unix.SizeofRtMsg:]) {
			switch t {
			case unix.RTA_OIF:
				for _, l := range links {
					if l.index == int32(u32(v)) {
						p.Link = l.name
					}
				}
			case unix.RTA_METRICS:
				for t, v := range attributes(v) {
					if t == metricMTU {
						p.MTU = int(u32(v))
					}
				}
			}
		}
	})
	if err != nil {
		err = fmt.Errorf("look up the route to %s: %w", a, err)
	}
	return p, err
}

// NeighborTable is ARP's or ND's table: the kernel has one for all namespaces.
type NeighborTable struct {
	Six     bool
	Limit   int    // gc_thresh3: entries, but for permanent ones, that there can be at most
	Entries int    // with permanent ones
	Full    uint64 // how often an entry was refused, since the boot
}

// NeighborTables reads the limits of neighbour entries.
func (k *Kernel) NeighborTables() (out []NeighborTable, err error) {
	h, err := openHandle(k.hostPath(), 0)
	if err != nil {
		return nil, err
	}
	defer h.close()
	const ( // of struct ndtmsg and what follows it (linux/neighbour.h)
		headSize               = 4
		thresh3, config, stats = 4, 5, 7
		entriesAt, fullsAt     = 4, 10 * 8
	)
	err = h.dump(request(unix.RTM_GETNEIGHTBL, 0, make([]byte, headSize)), func() { out = nil }, func(b []byte) {
		var t NeighborTable
		main := false
		if len(b) < headSize || b[0] != unix.AF_INET && b[0] != unix.AF_INET6 {
			return
		}
		t.Six = b[0] == unix.AF_INET6
		for typ, v := range attributes(b[headSize:]) {
			switch typ {
			case thresh3:
				t.Limit = int(u32(v))
			case config: // of the table, not of a link
				if main = len(v) >= entriesAt+4; main {
					t.Entries = int(u32(v[entriesAt:]))
				}
			case stats:
				if len(v) >= fullsAt+8 {
					t.Full = binary.NativeEndian.Uint64(v[fullsAt:])
				}
			}
		}
		if main {
			out = append(out, t)
		}
	})
	if err != nil {
		err = fmt.Errorf("read the limits of neighbour entries: %w", err)
	}
	return out, err
}

// Listening is what stands between heddle and the kernel's notifications.
type Listening struct {
	Inotify error  // why no more directories can be watched, or nil
	Buffer  int    // bytes that the kernel keeps for a reader that is behind
	Wanted  int    // what heddle asks for
	Lost    uint64 // how often more came than was kept
}

// Listening tries what heddle needs to be told of changes.
func (k *Kernel) Listening() (l Listening, err error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if l.Inotify = err; err == nil {
		unix.Close(fd)
	}
	s, err := listen(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return l, err
	}
	defer s.Close()
	raw, err := s.SyscallConn()
	if err != nil {
		return l, err
	}
	var opt error
	err = raw.Control(func(fd uintptr) { l.Buffer, opt = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) })
	l.Buffer /= 2 // the kernel doubles what it is asked for
	l.Wanted, l.Lost = newsBuffer, k.newsroom.overruns.Load()
	return l, errors.Join(err, opt)
}

// LegacyTables are iptables' own tables of before nf_tables, which heddle does not read.
func (k *Kernel) LegacyTables() (out []string, err error) {
	err = k.visit(datapath.NS{}, func() error {
		for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			for _, name := range strings.Fields(string(b)) {
				out = append(out, strings.TrimSuffix(file, "_tables_names")+" "+name)
			}
		}
		return nil
	})
	return out, err
}
