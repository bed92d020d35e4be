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
	}
	return err
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
