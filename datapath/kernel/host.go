package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

// HostAddr is an address of the host with its link.
type HostAddr struct {
	Addr netip.Addr
	Link string
	MTU  int
}

// GlobalAddrs are the host's addresses of global scope on devices that lead out: no
// loopback, tunnel or virtual bridge, nothing of heddle's. Sorted by link and address.
func (k *Kernel) GlobalAddrs() ([]HostAddr, error) {
	links, addrs, err := k.hostAddrs()
	if err != nil {
		return nil, err
	}
	out := slices.DeleteFunc(addrs, func(a HostAddr) bool {
		return !a.Addr.IsGlobalUnicast() || a.Addr.IsLinkLocalUnicast() || !leadsOut(links, a.Link)
	})
	slices.SortFunc(out, func(a, b HostAddr) int {
		if c := strings.Compare(a.Link, b.Link); c != 0 {
			return c
		}
		return a.Addr.Compare(b.Addr)
	})
	return out, nil
}

// LinkMTU is the link that has the address, with its MTU in bytes.
func (k *Kernel) LinkMTU(addr netip.Addr) (name string, mtu int, err error) {
	_, addrs, err := k.hostAddrs()
	if err != nil {
		return "", 0, err
	}
	for _, a := range addrs {
		if a.Addr == addr.Unmap().WithZone("") {
			return a.Link, a.MTU, nil
		}
	}
	return "", 0, fmt.Errorf("no link of this host has the address %s", addr)
}

// LinkNames are the names of all links in a namespace.
func (k *Kernel) LinkNames(ns datapath.NS) ([]string, error) {
	h, err := openHandle(k.pathOf(ns), ns.Inode)
	if err != nil {
		return nil, err
	}
	defer h.close()
	links, err := h.links()
	names := make([]string, 0, len(links))
	for _, l := range links {
		names = append(names, l.name)
	}
	return names, err
}

// leadsOut says whether a device may be one to reach other hosts by: a physical one, what
// is built on such, or a bridge that has one as its port.
func leadsOut(links []link, name string) bool {
	i := slices.IndexFunc(links, func(l link) bool { return l.name == name })
	if i < 0 || links[i].ours() || name == "lo" || strings.HasPrefix(name, "docker") {
		return false
	}
	physical := func(kind string) bool {
		return slices.Contains([]string{"", "vlan", "bond", "team", "macvlan", "ipvlan"}, kind)
	}
	switch l := links[i]; {
	case l.kind == "bridge":
		return slices.ContainsFunc(links, func(p link) bool { return p.master == l.index && physical(p.kind) })
	default:
		return physical(l.kind) || l.kind == "veth" || l.kind == "netkit"
	}
}

// hostAddrs reads links and addresses with a socket of its own, so that any goroutine may
// ask.
func (k *Kernel) hostAddrs() (links []link, addrs []HostAddr, err error) {
	h, err := openHandle(k.hostPath(), 0)
	if err != nil {
		return nil, nil, err
	}
	defer h.close()
	if links, err = h.links(); err != nil {
		return nil, nil, err
	}
	byIndex := make(map[int32]link, len(links))
	for _, l := range links {
		byIndex[l.index] = l
	}
	err = h.dump(request(unix.RTM_GETADDR, 0, ifaddr(unix.AF_UNSPEC, 0, 0)), func() { addrs = nil }, func(b []byte) {
		if len(b) < unix.SizeofIfAddrmsg {
			return
		}
		var ip netip.Addr
		flags := uint32(b[2])
		for t, v := range attributes(b[unix.SizeofIfAddrmsg:]) {
			switch {
			case t == unix.IFA_LOCAL, t == unix.IFA_ADDRESS && !ip.IsValid():
				ip, _ = netip.AddrFromSlice(v)
			case t == unix.IFA_FLAGS:
				flags = u32(v)
			}
		}
		const passing = unix.IFA_F_DEPRECATED | unix.IFA_F_DADFAILED
		if temporary := ip.Is6() && flags&unix.IFA_F_TEMPORARY != 0; ip.IsValid() && flags&passing == 0 && !temporary {
			l := byIndex[int32(u32(b[4:]))]
			addrs = append(addrs, HostAddr{Addr: ip, Link: l.name, MTU: l.mtu})
		}
	})
	return links, addrs, err
}

// Feature is something that heddle needs of a kernel.
type Feature struct {
	Name string
	Err  error // nil when it is there; else one line that says what to do
}

// Features tries what this kernel has, in a namespace that is gone afterwards.
func Features() []Feature {
	names := []string{"network namespaces", "bridge", "veth", "VXLAN", "nf_tables", "IPv6"}
	out := make([]Feature, len(names))
	for i := range out {
		out[i].Name = names[i]
	}
	err := netns.Temporary(func() error {
		c, err := dial()
		if err != nil {
			return err
		}
		defer c.close()
		out[1].Err = c.tryLink("t-bridge", "bridge", nil)
		out[2].Err = c.tryLink("t-veth", "veth", nil)
		out[3].Err = c.tryLink("t-vxlan", "vxlan", func(m *message) { vxlanInfo(m, datapath.VXLANAttr{VNI: 1, Port: 4789}) })
		out[4].Err = tryFilter()
		out[5].Err = c.tryIPv6()
		return nil
	})
	if err != nil {
		for i := range out {
			out[i].Err = err
		}
	}
	return out
}

func (c *conn) tryLink(name, kind string, info func(*message)) error {
	m := request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0, 0)).str(unix.IFLA_IFNAME, name)
	m.nest(unix.IFLA_LINKINFO, func() {
		if info != nil {
			info(m)
		} else {
			m.str(unix.IFLA_INFO_KIND, kind)
		}
	})
	if err := c.do(m); err != nil {
		return datapath.Errorf(datapath.Unsupported, "this kernel cannot make %s devices: %w; load the module %s", kind, err, kind)
	}
	return nil
}

func tryFilter() error {
	k := New(Config{})
	defer k.Close()
	return k.setFilter(datapath.Filter{Port: 4789, MinVNI: 1 << 23})
}

func (c *conn) tryIPv6() error {
	if err := writeSysctls([]sysctl{{"net/ipv6/conf/lo/disable_ipv6", "0"}}); err != nil {
		return err
	}
	ip := netip.MustParseAddr("fd00::1").AsSlice()
	err := c.do(request(unix.RTM_NEWADDR, unix.NLM_F_CREATE, ifaddr(unix.AF_INET6, 128, 1)).bytes(unix.IFA_LOCAL, ip).bytes(unix.IFA_ADDRESS, ip))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		return datapath.Errorf(datapath.Unsupported, "this kernel has no IPv6: %w; boot without ipv6.disable=1, or use networks without IPv6", err)
	}
	return err
}
