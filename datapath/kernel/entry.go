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

// neighbor is the request that adds or replaces, or deletes, a permanent entry.
func neighbor(typ uint16, link int32, n datapath.Neighbor) *message {
	if typ == unix.RTM_DELNEIGH {
		return request(typ, 0, ndmsg(family(n.IP), link, unix.NUD_PERMANENT, 0)).bytes(unix.NDA_DST, n.IP.AsSlice())
	}
	return request(typ, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, ndmsg(family(n.IP), link, unix.NUD_PERMANENT, 0)).
		bytes(unix.NDA_DST, n.IP.AsSlice()).bytes(unix.NDA_LLADDR, n.MAC[:])
}

// newFDB is the request that writes an entry: a remote one into the bridge and the VXLAN device
// at once.
func newFDB(link int32, f datapath.FDBEntry) *message {
	m := request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, ndmsg(unix.AF_BRIDGE, link, nudStatic, places(f))).
		bytes(unix.NDA_LLADDR, f.MAC[:])
	if f.VTEP.IsValid() {
		m.bytes(unix.NDA_DST, f.VTEP.AsSlice())
	}
	return m
}

func delFDB(link int32, f datapath.FDBEntry, places uint8) *message {
	return request(unix.RTM_DELNEIGH, 0, ndmsg(unix.AF_BRIDGE, link, nudStatic, places)).bytes(unix.NDA_LLADDR, f.MAC[:])
}

// places are where an entry stands.
func places(f datapath.FDBEntry) uint8 {
	if f.VTEP.IsValid() {
		return unix.NTF_MASTER | unix.NTF_SELF
	}
	return unix.NTF_MASTER
}

func (k *Kernel) delFDB(f datapath.FDBEntry) error {
	h, i, err := k.linkIn(f.NS, f.Link)
	if err != nil {
		return gone(err)
	}
	err = h.do(delFDB(i, f, places(f)))
	if f.VTEP.IsValid() && errors.Is(err, unix.ENOENT) { // one half is missing: the kernel stops at the first
		return errors.Join(gone(h.do(delFDB(i, f, unix.NTF_MASTER))), gone(h.do(delFDB(i, f, unix.NTF_SELF))))
	}
	return gone(err)
}

// entry is the request of an operation on a neighbour or forwarding entry, and where it goes.
func (k *Kernel) entry(op datapath.Op) (h *handle, m *message, err error) {
	at := op.At()
	h, i, err := k.linkIn(at.NS, at.Name)
	if err != nil {
		return nil, nil, err
	}
	switch op := op.(type) {
	case datapath.SetNeighbor:
		m = neighbor(unix.RTM_NEWNEIGH, i, op.Neighbor)
	case datapath.DelNeighbor:
		m = neighbor(unix.RTM_DELNEIGH, i, op.Neighbor)
	case datapath.SetFDB:
		m = newFDB(i, op.FDBEntry)
	case datapath.DelFDB:
		m = delFDB(i, op.FDBEntry, places(op.FDBEntry))
	}
	return h, m, nil
}

// setEntry does one operation on an entry.
func (k *Kernel) setEntry(op datapath.Op) error {
	h, m, err := k.entry(op)
	if err != nil {
		return err
	}
	return h.do(m)
}
