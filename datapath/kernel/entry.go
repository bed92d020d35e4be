package kernel

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

const (
	ifaProto    = 11 // IFA_PROTO: who added the address; Linux 5.18, ignored before
	protoHeddle = 0x68

	// A static bridge entry. The VXLAN device accepts it too, and ages neither.
	nudStatic = unix.NUD_NOARP | unix.NUD_REACHABLE
)

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (k *Kernel) setAddress(a datapath.Address) error {
	h, i, err := k.linkIn(a.NS, a.Link)
	if err != nil {
		return err
	}
	m := func() *message {
		ip := a.Prefix.Addr().AsSlice()
		return request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, ifaddr(family(a.Prefix.Addr()), a.Prefix.Bits(), i)).
			bytes(unix.IFA_LOCAL, ip).bytes(unix.IFA_ADDRESS, ip).
			u32(unix.IFA_FLAGS, unix.IFA_F_NODAD|unix.IFA_F_PERMANENT).u8(ifaProto, protoHeddle)
	}
	err = h.do(m())
	if a.Prefix.Addr().Is6() {
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) { // IPv6 was switched off meanwhile
			if werr := netns.Do(h.file, func() error { return writeSysctls(farEndSysctls(a.Link)) }); werr != nil {
				return werr
			}
			err = h.do(m())
		}
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
			return datapath.Errorf(datapath.Unsupported, "this kernel has no IPv6, so %s cannot be set (%w); boot without ipv6.disable=1, or use a network without IPv6", a.Prefix, err)
		}
		if err == nil {
			return h.waitAddresses(a.Link)
		}
	}
	return err
}

// waitAddresses returns when the IPv6 addresses of a link that is up are answered for.
// Even without duplicate address detection the kernel joins the address's group and makes
// its local route in a worker, after the address itself is there.
func (h *handle) waitAddresses(name string) error {
	l, err := h.byName(name)
	if err != nil || !l.up {
		return err
	}
	var ips []netip.Addr
	err = h.dump(request(unix.RTM_GETADDR, 0, ifaddr(unix.AF_INET6, 0, 0)), func() { ips = ips[:0] }, func(b []byte) {
		if len(b) < unix.SizeofIfAddrmsg || int32(u32(b[4:])) != l.index || b[2]&unix.IFA_F_NODAD == 0 {
			return
		}
		for t, v := range attributes(b[unix.SizeofIfAddrmsg:]) {
			if ip, ok := netip.AddrFromSlice(v); ok && t == unix.IFA_ADDRESS && !ip.IsLinkLocalUnicast() {
				ips = append(ips, ip)
			}
		}
	})
	if err != nil {
		return err
	}
	for _, ip := range ips {
		if err := poll("local route of "+ip.String(), func() (bool, error) { return h.isLocal(ip), nil }); err != nil {
			return err
		}
	}
	return nil
}

// isLocal says whether the namespace takes packets to the address as its own.
func (h *handle) isLocal(ip netip.Addr) (local bool) {
	head := make([]byte, unix.SizeofRtMsg)
	head[0], head[1] = unix.AF_INET6, 128
	_ = h.get(request(unix.RTM_GETROUTE, 0, head).bytes(unix.RTA_DST, ip.AsSlice()), func(b []byte) {
		local = len(b) >= unix.SizeofRtMsg && b[7] == unix.RTN_LOCAL
	}) // an unreachable address is not local
	return local
}

func (k *Kernel) delAddress(a datapath.Address) error {
	h, i, err := k.linkIn(a.NS, a.Link)
	if err != nil {
		return gone(err)
	}
	ip := a.Prefix.Addr().AsSlice()
	return gone(h.do(request(unix.RTM_DELADDR, 0, ifaddr(family(a.Prefix.Addr()), a.Prefix.Bits(), i)).
		bytes(unix.IFA_LOCAL, ip).bytes(unix.IFA_ADDRESS, ip)))
}

// linkIn is an open handle of the namespace and the link's index there.
func (k *Kernel) linkIn(ns datapath.NS, name string) (*handle, int32, error) {
	h, err := k.in(ns)
	if err != nil {
		return nil, 0, err
	}
	i, err := h.indexOf(name)
	return h, i, err
}

// neighbor adds or replaces, or deletes, a permanent entry.
func (k *Kernel) neighbor(typ uint16, n datapath.Neighbor) error {
	h, i, err := k.linkIn(n.NS, n.Link)
	if err != nil {
		return err
	}
	var flags uint16
	if typ == unix.RTM_NEWNEIGH {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	m := request(typ, flags, ndmsg(family(n.IP), i, unix.NUD_PERMANENT, 0)).bytes(unix.NDA_DST, n.IP.AsSlice())
	if typ == unix.RTM_NEWNEIGH {
		m.bytes(unix.NDA_LLADDR, n.MAC[:])
	}
	return h.do(m)
}

// setFDB writes an entry: a remote one into the bridge and the VXLAN device at once.
func (k *Kernel) setFDB(f datapath.FDBEntry) error {
	h, i, err := k.linkIn(f.NS, f.Link)
	if err != nil {
		return err
	}
	flags := uint8(unix.NTF_MASTER)
	if f.VTEP.IsValid() {
		flags |= unix.NTF_SELF
	}
	m := request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, ndmsg(unix.AF_BRIDGE, i, nudStatic, flags)).
		bytes(unix.NDA_LLADDR, f.MAC[:])
	if f.VTEP.IsValid() {
		m.bytes(unix.NDA_DST, f.VTEP.AsSlice())
	}
	return h.do(m)
}

func (k *Kernel) delFDB(f datapath.FDBEntry) error {
	h, i, err := k.linkIn(f.NS, f.Link)
	if err != nil {
		return gone(err)
	}
	del := func(flags uint8) error {
		return h.do(request(unix.RTM_DELNEIGH, 0, ndmsg(unix.AF_BRIDGE, i, nudStatic, flags)).bytes(unix.NDA_LLADDR, f.MAC[:]))
	}
	if !f.VTEP.IsValid() {
		return gone(del(unix.NTF_MASTER))
	}
	err = del(unix.NTF_MASTER | unix.NTF_SELF)
	if errors.Is(err, unix.ENOENT) { // one half is missing: the kernel stops at the first
		return errors.Join(gone(del(unix.NTF_MASTER)), gone(del(unix.NTF_SELF)))
	}
	return gone(err)
}
