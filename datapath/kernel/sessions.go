package kernel

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// underlays are namespaces that have had WireGuard devices. They are safe for concurrent use.
type underlays struct {
	mu  sync.Mutex
	all []datapath.NS
}

func (u *underlays) add(ns datapath.NS) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !slices.Contains(u.all, ns) {
		u.all = append(u.all, ns)
	}
}

// each calls fn with a handle of its own of every one that is there.
func (u *underlays) each(k *Kernel, fn func(*handle) error) error {
	u.mu.Lock()
	all := slices.Clone(u.all)
	u.mu.Unlock()
	for _, ns := range all {
		h, err := openHandle(k.path(ns), 0)
		if datapath.FaultOf(err) == datapath.NoNamespace {
			continue
		}
		if err != nil {
			return err
		}
		err = fn(h)
		h.close()
		if err != nil {
			return fmt.Errorf("in namespace %s: %w", ns, err)
		}
	}
	return nil
}

// Session is what a WireGuard device has with a peer.
type Session struct {
	Link      string // the device
	Key       datapath.PublicKey
	Handshake time.Time // the last one; zero is none
	Received  uint64    // bytes
	Sent      uint64
	Routed    bool // what is for the peer's address goes by this device
}

// Sessions are those of the WireGuard devices of a namespace as they are now; of one that is not
// there, none. Any goroutine may ask.
func (k *Kernel) Sessions(ns datapath.NS) ([]Session, error) {
	h, err := openHandle(k.path(ns), 0)
	if datapath.FaultOf(err) == datapath.NoNamespace {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer h.close()
	return k.sessionsIn(h)
}

func (k *Kernel) sessionsIn(h *handle) (out []Session, err error) {
	t, err := k.tunnelsIn(h)
	if err != nil {
		return nil, err
	}
	links, err := h.links()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if l.kind != string(datapath.WireGuard) || !l.ours() {
			continue
		}
		d, err := t.device(l.name)
		if err != nil {
			return nil, err
		}
		for i := range d.Peers {
			p := &d.Peers[i]
			out = append(out, Session{
				Link: l.name, Key: datapath.PublicKey(p.PublicKey), Handshake: p.LastHandshakeTime,
				Received: uint64(p.ReceiveBytes), Sent: uint64(p.TransmitBytes),
				Routed: h.leadsTo(parsePeer(datapath.NS{}, l.name, p).Address, l.index),
			})
		}
	}
	return out, nil
}

// leadsTo says whether what is sent to an address goes by a link.
func (h *handle) leadsTo(a netip.Addr, index int32) (by bool) {
	if !a.IsValid() {
		return false
	}
	head := make([]byte, unix.SizeofRtMsg)
	head[0], head[1] = family(a), uint8(a.BitLen())
	_ = h.get(request(unix.RTM_GETROUTE, 0, head).bytes(unix.RTA_DST, a.AsSlice()), func(b []byte) {
		for t, v := range attributes(b[min(unix.SizeofRtMsg, len(b)):]) {
			by = by || t == unix.RTA_OIF && int32(u32(v)) == index
		}
	}) // there is no way to an unreachable address
	return by
}
