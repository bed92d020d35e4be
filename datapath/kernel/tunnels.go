package kernel

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
	"github.com/heddle-net/heddle/datapath/wireguard"
)

const (
	wgIdle     = 3 * time.Second // in which the process of a device that gives no answer may do nothing at all
	wgPatience = time.Minute     // for the answer of one that does something: others may have the processors
)

// tunnels speaks with the WireGuard devices of one namespace. It is safe for concurrent use.
type tunnels struct {
	client  *wgctrl.Client
	command []string // of the processes
	idle    time.Duration
}

// openTunnels is for the namespace ns.
func openTunnels(ns *os.File, command []string) (*tunnels, error) {
	t := &tunnels{command: command, idle: wgIdle}
	err := netns.Do(ns, func() (err error) {
		t.client, err = wgctrl.New()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open WireGuard: %w", err)
	}
	return t, nil
}

func (t *tunnels) close() {
	if t != nil {
		_ = t.client.Close()
	}
}

// device reads a device. The error of one that is not there wraps os.ErrNotExist.
func (t *tunnels) device(name string) (*wgtypes.Device, error) {
	var d *wgtypes.Device
	err := t.ask(name, func() (err error) {
		d, err = t.client.Device(name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read WireGuard device %s: %w", name, err)
	}
	return d, nil
}

func (t *tunnels) configure(name string, c wgtypes.Config) error {
	if err := t.ask(name, func() error { return t.client.ConfigureDevice(name, c) }); err != nil {
		return fmt.Errorf("configure WireGuard device %s: %w", name, err)
	}
	return nil
}

// ask does not wait for ever for a process that hangs: it is ended, so that another takes its place.
// One that is only slow is not: with it would go what it carries.
func (t *tunnels) ask(name string, fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	begin, used := time.Now(), time.Duration(-1)
	for {
		select {
		case err := <-done:
			return err
		case <-time.After(t.idle):
		}
		waited := time.Since(begin).Round(time.Second)
		p, there := wireguard.Find(name)
		if !there || !p.Ours(t.command, name) {
			return fmt.Errorf("no answer within %v from %s", waited, p)
		}
		if now := p.Used(); now != used && waited < wgPatience {
			used = now
			continue
		}
		if err := p.Kill(); err != nil {
			return err
		}
		return fmt.Errorf("no answer within %v from %s, which is ended now: %w", waited, p, <-done)
	}
}

// tunnelsIn are those of an open namespace.
func (k *Kernel) tunnelsIn(h *handle) (t *tunnels, err error) {
	if h.tunnels == nil {
		h.tunnels, err = openTunnels(h.file, k.cfg.WireGuard)
	}
	return h.tunnels, err
}

// parsePeer is a row of a device. What heddle does not write so makes its address nobody's, so that
// it is written again.
func parsePeer(ns datapath.NS, link string, p *wgtypes.Peer) datapath.WGPeer {
	row := datapath.WGPeer{NS: ns, Link: link, Key: datapath.PublicKey(p.PublicKey), Keepalive: p.PersistentKeepaliveInterval != 0}
	if p.Endpoint != nil {
		at := p.Endpoint.AddrPort()
		row.Endpoint = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	}
	strange := row.Keepalive && p.PersistentKeepaliveInterval != keepalive || p.PresharedKey != wgtypes.Key{}
	if len(p.AllowedIPs) == 1 && !strange {
		a, _ := netip.AddrFromSlice(p.AllowedIPs[0].IP)
		if ones, bits := p.AllowedIPs[0].Mask.Size(); ones == bits {
			row.Address = a
		}
	}
	return row
}

// readWireGuard completes the row of a device and reads its peers. One whose process does not
// answer is not what is wanted.
func (r *reader) readWireGuard(h *handle, row *datapath.LinkState) error {
	t, err := r.k.tunnelsIn(h)
	if err != nil {
		return err
	}
	d, err := t.device(row.Name)
	if err != nil {
		row.Kind = tunKind
		return nil
	}
	r.k.underlays.add(row.NS)
	row.WireGuard = datapath.WireGuardAttr{Key: datapath.PrivateKey(d.PrivateKey), Port: uint16(d.ListenPort)}
	for i := range d.Peers {
		p := datapath.WGPeerState{WGPeer: parsePeer(row.NS, row.Name, &d.Peers[i])}
		p.Owner, p.Live = row.Owner, time.Since(d.Peers[i].LastHandshakeTime) < live
		r.s.WGPeers[p.ID()] = p
	}
	return nil
}

// lookAgain is how often WireGuard devices are looked at: nobody tells of their changes.
const lookAgain = 500 * time.Millisecond

// lookAt begins to look at the namespace's WireGuard devices if there are any. mu is held.
func (w *watcher) lookAt() {
	if !w.looking && len(w.devices()) > 0 {
		w.looking = true
		w.readers.Go(w.look)
	}
}

// devices are the names of WireGuard devices. mu is held.
func (w *watcher) devices() (names []string) {
	for _, l := range w.links {
		if l.kind == string(datapath.WireGuard) {
			names = append(names, l.name)
		}
	}
	return names
}

// look tells how the devices are, as long as there are any. It does so whether that is news or not:
// only who repairs them knows what was repaired since.
func (w *watcher) look() {
	t, err := openTunnels(w.file, w.command)
	if err != nil { // the sweep will do
		return
	}
	defer t.close()
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for {
		w.mu.Lock()
		names := w.devices()
		w.looking = len(names) > 0
		w.mu.Unlock()
		if len(names) == 0 {
			return
		}
		var news []datapath.News
		for _, name := range names {
			n := datapath.WGNews{Link: datapath.LinkKey{NS: w.ns, Name: name}}
			if d, err := t.device(name); err == nil {
				n.WireGuard, n.Peers = parseDevice(w.ns, d)
			}
			news = append(news, n)
		}
		w.room.add(news, false)
		select {
		case <-again.C:
		case <-w.closed:
			return
		}
	}
}

// parseDevice is what a device has that somebody may have changed.
func parseDevice(ns datapath.NS, d *wgtypes.Device) (a datapath.WireGuardAttr, peers []datapath.WGPeer) {
	for i := range d.Peers {
		p := parsePeer(ns, d.Name, &d.Peers[i])
		p.Endpoint = netip.AddrPort{}
		peers = append(peers, p)
	}
	return datapath.WireGuardAttr{Key: datapath.PrivateKey(d.PrivateKey), Port: uint16(d.ListenPort)}, peers
}
