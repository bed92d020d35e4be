package kernel

import (
	"errors"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
	"github.com/heddle-net/heddle/datapath/wireguard"
)

const (
	keepalive  = 5 * time.Second
	live       = 180 * time.Second // WireGuard's reject-after-time: a session without a handshake since is dead
	tunKind    = "tun"             // of a device whose packets a process carries
	portInUse  = "errno=-98"       // how wgctrl tells of such a process's EADDRINUSE
	viaKernel  = "kernel"
	viaProcess = "wireguard-go"
)

// Encryption is what this host encrypts by: "kernel", or "wireguard-go" in a process. An error
// says what it lacks. It is tried in a namespace that is gone afterwards. Any goroutine may ask.
func (*Kernel) Encryption() (kind string, err error) {
	err = netns.Temporary(func() error {
		c, err := dial()
		if err != nil {
			return err
		}
		defer c.close()
		kind = viaKernel
		if err = c.do(newWireGuard("t-wg")); !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
		kind = viaProcess
		f, err := wireguard.TUN("t-wg")
		if err != nil {
			return err
		}
		return f.Close()
	})
	if err != nil {
		kind = ""
	}
	return kind, err
}

func newWireGuard(name string) *message {
	m := request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0, 0)).str(unix.IFLA_IFNAME, name)
	return m.nest(unix.IFLA_LINKINFO, func() { m.str(unix.IFLA_INFO_KIND, string(datapath.WireGuard)) })
}

// addWireGuard makes a device by the kernel, or where it has none by a process. In both cases the
// UDP socket is in the host's namespace.
func (k *Kernel) addWireGuard(l datapath.Link) error {
	h, err := k.in(l.NS)
	if err != nil {
		return err
	}
	host, err := k.hostHandle()
	if err != nil {
		return err
	}
	delete(h.index, l.Name)
	err = addFrom(host, h, l.Name, newWireGuard(l.Name).u32(unix.IFLA_NET_NS_FD, uint32(h.file.Fd())))
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = k.startWireGuard(l, host, h)
	}
	if err != nil {
		return err
	}
	k.underlays.add(l.NS)
	return k.setWireGuard(l)
}

func (k *Kernel) startWireGuard(l datapath.Link, host, h *handle) error {
	if err := wireguard.Orphan(k.cfg.WireGuard, l.Name); err != nil {
		return err
	}
	pid, err := wireguard.Start(k.cfg.WireGuard, host.file, h.file, l.Name)
	if err == nil {
		k.children = append(k.children, pid)
	}
	return err
}

// reap takes note of processes that have ended.
func (k *Kernel) reap() {
	var running []int
	for _, pid := range k.children {
		if ended, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); ended == 0 && err == nil {
			running = append(running, pid)
		}
	}
	k.children = running
}

// setWireGuard writes what differs alone: a port that is written makes a process bind again.
func (k *Kernel) setWireGuard(l datapath.Link) error {
	h, err := k.in(l.NS)
	if err != nil {
		return err
	}
	if err := h.change(l.Name, l.MAC, l.MTU, nil); err != nil {
		return err
	}
	if err := writeLink(h, l); err != nil {
		return err
	}
	t, err := k.tunnelsIn(h)
	if err != nil {
		return err
	}
	have, err := t.device(l.Name)
	if err != nil {
		return err
	}
	var c wgtypes.Config
	if key := wgtypes.Key(l.WireGuard.Key); have.PrivateKey != key {
		c.PrivateKey = &key
	}
	if port := int(l.WireGuard.Port); have.ListenPort != port {
		c.ListenPort = &port
	}
	if c.PrivateKey == nil && c.ListenPort == nil {
		return nil
	}
	return k.explainPort(l, t.configure(l.Name, c))
}

func (k *Kernel) explainPort(l datapath.Link, err error) error {
	if err == nil || !errors.Is(err, unix.EADDRINUSE) && !strings.Contains(err.Error(), portInUse) {
		return err
	}
	return datapath.Errorf(datapath.Taken, "UDP port %d for WireGuard is taken by %s (%w); end that, or set another wireguard-port in /etc/heddle/heddle.toml", l.WireGuard.Port, k.holder(l.WireGuard.Port), err)
}

// delWireGuard deletes a device. When it returns, its port is free.
func (k *Kernel) delWireGuard(h *handle, name string) error {
	p, there := wireguard.Find(name)
	delete(h.index, name)
	if err := gone(h.do(request(unix.RTM_DELLINK, 0, ifinfo(0, 0, 0)).str(unix.IFLA_IFNAME, name))); err != nil {
		return err
	}
	defer k.reap()
	if there && p.Ours(k.cfg.WireGuard, name) {
		return p.End()
	}
	return nil
}

// setWGPeer also begins a session, where the device is up.
func (k *Kernel) setWGPeer(p datapath.WGPeer) error {
	interval := time.Duration(0)
	if p.Keepalive {
		interval = keepalive
	}
	bits := p.Address.BitLen()
	row := wgtypes.PeerConfig{
		PublicKey: wgtypes.Key(p.Key), PresharedKey: &wgtypes.Key{}, PersistentKeepaliveInterval: &interval, ReplaceAllowedIPs: true,
		AllowedIPs: []net.IPNet{{IP: p.Address.AsSlice(), Mask: net.CIDRMask(bits, bits)}},
	}
	if p.Endpoint.IsValid() {
		row.Endpoint = net.UDPAddrFromAddrPort(p.Endpoint)
	}
	if err := k.configurePeers(p.NS, p.Link, row); err != nil || p.Keepalive {
		return err
	}
	return k.beginSessions(p.NS, p.Link, row.PublicKey)
}

// beginSessions begins sessions with peers that are not kept alive. Packets that one side has sent
// before the other knew it are lost, and it would try again after 5 s only: the side that comes to
// know the other later makes up for it. What WireGuard sends at once is a keepalive that is turned on.
func (k *Kernel) beginSessions(ns datapath.NS, link string, peers ...wgtypes.Key) error {
	for _, interval := range []time.Duration{keepalive, 0} {
		var rows []wgtypes.PeerConfig
		for _, key := range peers {
			rows = append(rows, wgtypes.PeerConfig{PublicKey: key, UpdateOnly: true, PersistentKeepaliveInterval: &interval})
		}
		if err := k.configurePeers(ns, link, rows...); err != nil {
			return err
		}
	}
	return nil
}

// upWireGuard begins the sessions of a device that is up now.
func (k *Kernel) upWireGuard(h *handle, l datapath.Link) error {
	t, err := k.tunnelsIn(h)
	if err != nil {
		return err
	}
	d, err := t.device(l.Name)
	if err != nil {
		return err
	}
	var peers []wgtypes.Key
	for _, p := range d.Peers {
		if p.PersistentKeepaliveInterval == 0 {
			peers = append(peers, p.PublicKey)
		}
	}
	return k.beginSessions(l.NS, l.Name, peers...)
}

func (k *Kernel) delWGPeer(p datapath.WGPeer) error {
	return gone(k.configurePeers(p.NS, p.Link, wgtypes.PeerConfig{PublicKey: wgtypes.Key(p.Key), Remove: true, UpdateOnly: true}))
}

// configurePeers changes some peers. The sessions of others stay.
func (k *Kernel) configurePeers(ns datapath.NS, link string, rows ...wgtypes.PeerConfig) error {
	h, err := k.in(ns)
	if err != nil {
		return err
	}
	t, err := k.tunnelsIn(h)
	if err != nil {
		return err
	}
	return t.configure(link, wgtypes.Config{Peers: rows})
}
