package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// abroad tells of rules in namespaces of others. A socket in such a namespace would keep it alive;
// one in the host's hears of all namespaces that have a number there. The number does not keep a
// namespace alive, and goes with it.
type abroad struct {
	mu      sync.Mutex
	numbers map[datapath.NS]number
	changed func(ns datapath.NS, generation uint32, lost bool) // nil while nobody watches
}

// number is what the host calls a namespace of that inode.
type number struct {
	id    uint32
	inode uint64
}

// know gives a namespace a number in the host's, if it has none.
func (a *abroad) know(k *Kernel, ns datapath.NS, h *handle) error {
	a.mu.Lock()
	known := a.numbers[ns].inode == h.inode
	a.mu.Unlock()
	if ns.Path == "" || known {
		return nil
	}
	host, err := openHandle(k.hostPath(), 0)
	if err != nil {
		return err
	}
	defer host.close()
	const any = 1<<32 - 1
	m := request(unix.RTM_NEWNSID, 0, make([]byte, rtgenmsg)).u32(unix.NETNSA_FD, uint32(h.file.Fd())).u32(unix.NETNSA_NSID, any)
	if err := host.do(m); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("number the namespace %s: %w", ns, err)
	}
	id, ok, err := host.idOf(h)
	if err != nil || !ok {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.numbers == nil {
		a.numbers = map[datapath.NS]number{}
	}
	a.numbers[ns] = number{id, h.inode}
	return nil
}

// tell passes on that something has changed in a namespace.
func (a *abroad) tell(ns datapath.NS, generation uint32, lost bool) {
	a.mu.Lock()
	changed := a.changed
	a.mu.Unlock()
	if changed != nil {
		changed(ns, generation, lost)
	}
}

func (a *abroad) watch(changed func(ns datapath.NS, generation uint32, lost bool)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.changed = changed
}

// find is the namespace with a number.
func (a *abroad) find(id uint32) (datapath.NS, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for ns, n := range a.numbers {
		if n.id == id {
			return ns, true
		}
	}
	return datapath.NS{}, false
}

// ForgetRules says that no balancer of a namespace is wanted any more. Any goroutine may call it.
func (k *Kernel) ForgetRules(ns datapath.NS) {
	k.rules.mu.Lock()
	defer k.rules.mu.Unlock()
	delete(k.rules.numbers, ns)
}

// WatchRules calls changed when rules of nf_tables have changed in a namespace that was opened by
// Balance, with the generation that they have now, and with 0 when heddle has made the namespace, until
// ctx ends. With lost some calls are missing, and ns and generation mean nothing. One goroutine may
// call it at a time.
func (k *Kernel) WatchRules(ctx context.Context, changed func(ns datapath.NS, generation uint32, lost bool)) error {
	var s *os.File
	err := k.visit(datapath.NS{}, func() (err error) {
		s, err = listen(unix.NETLINK_NETFILTER, []int{unix.NFNLGRP_NFTABLES})
		return err
	})
	if err != nil {
		return fmt.Errorf("watch rules: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	defer s.Close()
	raw, err := s.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch rules: %w", err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1) }); cerr != nil || err != nil {
		return fmt.Errorf("watch rules in all namespaces: %w", errors.Join(cerr, err))
	}
	k.rules.watch(changed)
	defer k.rules.watch(nil)
	buf, oob := make([]byte, newsDatagram), make([]byte, 64)
	for {
		var n, oobn int
		closed := raw.Read(func(fd uintptr) bool {
			n, oobn, _, _, err = unix.Recvmsg(int(fd), buf, oob, 0)
			return err != unix.EAGAIN
		})
		switch {
		case closed != nil:
			return ctx.Err()
		case err == unix.ENOBUFS:
			k.rules.tell(datapath.NS{}, 0, true)
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("watch rules: %w", err)
		default:
			k.rules.read(buf[:n], oob[:oobn])
		}
	}
}

// read passes on which namespace has a new generation.
func (a *abroad) read(b, oob []byte) {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return
	}
	for _, m := range messages {
		if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN || len(m.Data) < nfgenmsg {
			continue
		}
		generation := be32(attribute(m.Data[nfgenmsg:], unix.NFTA_GEN_ID))
		if ns, known := a.origin(oob); known {
			a.tell(ns, generation, false)
		}
	}
}

// origin is the namespace that a notification comes from; without a number it is the host's.
func (a *abroad) origin(oob []byte) (ns datapath.NS, known bool) {
	control, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return ns, false
	}
	for _, c := range control {
		if c.Header.Level == unix.SOL_NETLINK && c.Header.Type == unix.NETLINK_LISTEN_ALL_NSID && len(c.Data) >= 4 {
			return a.find(binary.NativeEndian.Uint32(c.Data))
		}
	}
	return ns, true
}
