package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

// sysctl is a setting under /proc/sys of the namespace of the calling thread.
type sysctl struct{ path, value string }

func (s sysctl) file() string { return filepath.Join("/proc/sys", s.path) }

// namespaceSysctls are what every namespace of heddle's has: no packet filter of the host
// sees bridged frames, IPv6 is there and nobody can configure it.
var namespaceSysctls = []sysctl{
	{"net/bridge/bridge-nf-call-iptables", "0"},
	{"net/bridge/bridge-nf-call-ip6tables", "0"},
	{"net/bridge/bridge-nf-call-arptables", "0"},
	{"net/ipv4/conf/all/promote_secondaries", "1"},
	{"net/ipv6/conf/all/disable_ipv6", "0"},
	{"net/ipv6/conf/default/disable_ipv6", "0"},
	{"net/ipv6/conf/default/accept_ra", "0"},
}

// settings are a namespace's: it forwards if it has an uplink. No redirects are sent to
// workloads, whose gateway is the right way.
func settings(n datapath.Namespace) []sysctl {
	forward := "0"
	if n.Uplink != "" {
		forward = "1"
	}
	return append(slices.Clip(namespaceSysctls), sysctl{"net/ipv4/ip_forward", forward}, sysctl{"net/ipv4/conf/all/send_redirects", "0"}, sysctl{"net/ipv6/conf/all/forwarding", forward})
}

// writeSysctls writes what differs. What this kernel does not have is left out.
func writeSysctls(list []sysctl) error {
	for _, s := range list {
		if s.holds() {
			continue
		}
		if err := os.WriteFile(s.file(), []byte(s.value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("write %s: %w", s.file(), err)
		}
	}
	return nil
}

// holds says whether the setting is as wanted, or does not exist.
func (s sysctl) holds() bool {
	b, err := os.ReadFile(s.file())
	return errors.Is(err, os.ErrNotExist) || err == nil && strings.TrimSpace(string(b)) == s.value
}

func (k *Kernel) setNamespace(n datapath.Namespace) error {
	prepare := func() error { return prepareNamespace(n) }
	err := k.cfg.Netns.Make(n.Name, prepare)
	made := err == nil
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	h, err := openHandle(k.cfg.Netns.Path(n.Name), 0)
	if err != nil {
		return err
	}
	if !made {
		lo, err := h.byName("lo")
		if err == nil && !lo.ours() {
			err = datapath.Errorf(datapath.Foreign, "namespace %s exists and is not heddle's; remove it with `ip netns del %s`, or choose another name", n.Name, n.Name)
		}
		if err == nil {
			err = netns.Do(h.file, prepare)
		}
		if err != nil {
			h.close()
			return err
		}
	}
	if err := k.keep(n.Name, h); err != nil {
		return err
	}
	bare := n.Uplink == "" && n.Names == ""
	if bare && made {
		return nil
	}
	return k.nftIn(h.file, func(c *nftables.Conn) error {
		if bare {
			return namespaceRules(n).remove(c)
		}
		return namespaceRules(n).write(c)
	})
}

// keep holds a namespace of heddle's open, and reads its notifications. On an error it is closed.
func (k *Kernel) keep(name string, h *handle) error {
	if err := k.watchNames(); err != nil {
		h.close()
		return err
	}
	var err error
	if h.watcher, err = k.watchIn(datapath.Namespace{Name: name}.NS(), h); err != nil {
		h.close()
		return err
	}
	if old := k.own[name]; old != nil {
		old.close()
	}
	delete(k.foreign, name)
	k.own[name] = h
	k.rules.tell(datapath.Namespace{Name: name}.NS(), 0, false)
	return nil
}

// prepareNamespace makes the calling thread's namespace one of heddle's. The mark is the
// alias of its loopback, and comes last.
func prepareNamespace(n datapath.Namespace) error {
	if err := writeSysctls(settings(n)); err != nil {
		return err
	}
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	return c.do(request(unix.RTM_NEWLINK, 0, ifinfo(0, unix.IFF_UP, unix.IFF_UP)).
		str(unix.IFLA_IFNAME, "lo").str(unix.IFLA_IFALIAS, mark+string(n.Owner)))
}

// delNamespace removes a namespace of heddle's. Its VXLAN and WireGuard devices go
// first: the namespace itself ends later, in a kernel worker, and until then would hold their VNIs
// and ports.
func (k *Kernel) delNamespace(name string) error {
	h := k.own[name]
	if h == nil {
		return nil
	}
	defer k.dropOwn(name)
	if inode, err := netns.Inode(k.cfg.Netns.Path(name)); err != nil || inode != h.inode {
		return nil // somebody took the name away; what stands there is not heddle's
	}
	if err := k.delTunnels(h); err != nil {
		return err
	}
	return k.cfg.Netns.Remove(name)
}

// delTunnels deletes a namespace's VXLAN and WireGuard devices, and with the latter the VXLAN
// devices of other namespaces that have them as their underlay. A process that carries packets keeps
// its namespace alive.
func (k *Kernel) delTunnels(h *handle) error {
	links, err := h.links()
	if err != nil {
		return err
	}
	underlay := false
	for _, l := range links {
		switch datapath.Kind(l.kind) {
		case datapath.VXLAN:
			err = gone(h.do(request(unix.RTM_DELLINK, 0, ifinfo(l.index, 0, 0))))
		case datapath.WireGuard:
			underlay = true
			err = k.delWireGuard(h, l.name)
		}
		if err != nil {
			return err
		}
	}
	if !underlay {
		return nil
	}
	for _, other := range k.own {
		if err := other.delVXLANsOver(h); err != nil {
			return err
		}
	}
	return nil
}

func (h *handle) delVXLANsOver(underlay *handle) error {
	id, ok, err := h.idOf(underlay)
	if err != nil || !ok {
		return err
	}
	links, err := h.links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.kind == string(datapath.VXLAN) && l.abroad && l.netnsID == id {
			if err := gone(h.do(request(unix.RTM_DELLINK, 0, ifinfo(l.index, 0, 0)))); err != nil {
				return err
			}
		}
	}
	return nil
}

// idOf is by what number this namespace knows another, if it does: asking makes none.
func (h *handle) idOf(other *handle) (id uint32, ok bool, err error) {
	err = h.get(request(unix.RTM_GETNSID, 0, make([]byte, rtgenmsg)).u32(unix.NETNSA_FD, uint32(other.file.Fd())), func(b []byte) {
		for t, v := range attributes(b[min(rtgenmsg, len(b)):]) {
			if t == unix.NETNSA_NSID {
				id, ok = u32(v), int32(u32(v)) >= 0
			}
		}
	})
	if err != nil {
		return 0, false, fmt.Errorf("find namespace %s: %w", other.file.Name(), err)
	}
	return id, ok, nil
}

const rtgenmsg = 4 // bytes of rtnetlink's smallest header, aligned

// findNamespaces opens the namespaces that carry heddle's mark and closes those that are
// gone or replaced.
func (k *Kernel) findNamespaces() error {
	names, err := k.cfg.Netns.List()
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, name := range names {
		inode, err := netns.Inode(k.cfg.Netns.Path(name))
		if err != nil {
			continue // removed meanwhile
		}
		if h := k.own[name]; h != nil && h.inode == inode {
			there[name] = true
			continue
		}
		if k.foreign[name] == inode {
			continue
		}
		h, err := openHandle(k.cfg.Netns.Path(name), inode)
		if err != nil {
			continue
		}
		if lo, err := h.byName("lo"); err != nil || !lo.ours() {
			k.foreign[name] = inode
			h.close()
			continue
		}
		k.dropOwn(name)
		if err := k.keep(name, h); err != nil {
			return err
		}
		there[name] = true
	}
	for name := range k.own {
		if !there[name] {
			k.dropOwn(name)
		}
	}
	return nil
}

// dropOwn lets go of a namespace whose name somebody took away. Its devices would
// hold their VNIs and ports for as long as the namespace lives.
func (k *Kernel) dropOwn(name string) {
	if h := k.own[name]; h != nil {
		_ = k.delTunnels(h) // a namespace without a name; nobody else will
		h.close()
		delete(k.own, name)
	}
}

// namespace is the row of an open namespace that is wanted with an uplink or without. Wrong
// settings make it nobody's, so that it is prepared again.
func (k *Kernel) namespace(h *handle, name string, lo link, want datapath.Namespace) (datapath.Namespace, error) {
	n := datapath.Namespace{Name: name, Owner: lo.owner(), Uplink: want.Uplink, Names: want.Names}
	if !lo.up {
		n.Owner = ""
	}
	err := netns.Do(h.file, func() error {
		for _, s := range settings(n) {
			if !s.holds() {
				n.Owner = ""
			}
		}
		return nil
	})
	if err != nil || n.Uplink == "" && n.Names == "" {
		return n, err
	}
	return n, k.nftIn(h.file, func(c *nftables.Conn) error {
		stands, err := namespaceRules(n).stands(c)
		if !stands {
			n.Owner = ""
		}
		return err
	})
}
