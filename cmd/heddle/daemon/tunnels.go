//go:build linux

package daemon

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/kernel"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/plan"
	"github.com/heddle-net/heddle/overlay/tunnel"
	"github.com/heddle-net/heddle/overlay/wire"
)

const (
	tunnelTick  = time.Second
	tunnelSight = 5               // ticks between two looks at the kernel while nothing changes over
	tunnelTry   = 10              // ticks between two looks whether this host can encrypt by now
	sessionLife = 3 * time.Minute // WireGuard's Reject-After-Time
)

// tunnels owns this node's WireGuard keys. It replaces them when they are old or somebody asks,
// and tells the agent which sessions stand.
type tunnels struct {
	m       *member
	changed chan struct{} // size 1, for the agent
	begin   chan struct{} // size 1: a replacement was asked for

	mu       sync.Mutex
	kind     string // what makes the devices; "" is nothing
	keys     tunnel.Keys
	public   [2]overlay.WireGuardKey // of keys
	seen     map[overlay.NodeID]tunnel.Session
	received map[heard]uint64 // bytes, at the last look
	rotation tunnel.Rotation
	renewed  chan struct{} // closed and replaced when a replacement is done

	why string // this host can't encrypt; for run alone
}

// openTunnels loads this node's keys, or makes them.
func openTunnels(m *member) (*tunnels, error) {
	t := &tunnels{m: m, changed: make(chan struct{}, 1), begin: make(chan struct{}, 1), renewed: make(chan struct{})}
	t.try()
	keys, err := m.d.store.LoadTunnelKeys()
	switch {
	case err != nil:
		return nil, err
	case keys != nil:
		t.use(*keys)
		return t, nil
	}
	t.use(tunnel.New(time.Now(), drawKey))
	return t, m.d.store.SaveTunnelKeys(t.keys)
}

// use goes on with keys. Locked by the caller, or before others run.
func (t *tunnels) use(keys tunnel.Keys) {
	t.keys = keys
	for i, k := range keys.Private {
		t.public[i] = publicKey(k)
	}
}

// try finds out whether this host can encrypt, if it could not before. It says whether that has
// changed.
func (t *tunnels) try() bool {
	if t.kind != "" {
		return false
	}
	kind, err := t.m.d.kernel.Encryption()
	if why := fmt.Sprint(err); err != nil && why != t.why {
		t.m.log.Warn("this node can't take part in encrypted networks", "err", err)
		t.why = why
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kind = kind
	return kind != ""
}

// drawKey makes a private key, clamped as Curve25519 wants it (RFC 7748, section 5).
func drawKey() (k [32]byte) {
	_, _ = rand.Read(k[:]) // never fails
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

func publicKey(private [32]byte) (pub overlay.WireGuardKey) {
	k, err := ecdh.X25519().NewPrivateKey(private[:])
	if err == nil { // any 32 bytes are a key
		copy(pub[:], k.PublicKey().Bytes())
	}
	return pub
}

// says is what others are told of the devices. Locked by the caller.
func (t *tunnels) says() overlay.WireGuard {
	w := overlay.WireGuard{Kind: t.kind}
	for i, k := range t.public {
		w.Tunnels[i] = overlay.Tunnel{Key: k, Port: t.m.d.cfg.WireGuardPorts()[i], Leaving: t.keys.Leaving[i]}
	}
	return w
}

// Says is what others are told of the devices, or nil where this node can't encrypt.
func (t *tunnels) Says() *overlay.WireGuard {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w := t.says(); w.Kind != "" {
		return &w
	}
	return nil
}

// Tunnels is what a plan needs of the devices.
func (t *tunnels) Tunnels() plan.Tunnels {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := plan.Tunnels{Says: t.says(), Seen: t.seen}
	for i, k := range t.keys.Private {
		p.Keys[i] = datapath.PrivateKey(k)
	}
	return p
}

// Changed signals that Tunnels answers something else.
func (t *tunnels) Changed() <-chan struct{} { return t.changed }

// Rotate replaces both keys and returns when it is done.
func (t *tunnels) Rotate(ctx context.Context) error {
	t.mu.Lock()
	t.keys.Begin(time.Now())
	t.mu.Unlock()
	signal(t.begin)
	wire.Waiting(ctx, "peers to use the other WireGuard device while a key is replaced")
	for {
		t.mu.Lock()
		_, renewing := t.keys.Renewing()
		renewed := t.renewed
		t.mu.Unlock()
		if !renewing {
			return nil
		}
		select {
		case <-renewed:
		case <-ctx.Done():
			return overlay.Errorf(overlay.Unavailable, "gave up waiting; the keys are replaced all the same: %w", ctx.Err())
		}
	}
}

// run watches the sessions and replaces keys, until ctx ends.
func (t *tunnels) run(ctx context.Context) error {
	tick := time.NewTicker(tunnelTick)
	defer tick.Stop()
	for n := 0; ; n++ {
		if n%tunnelSight == 0 || t.moving() {
			t.look()
		}
		t.renew(time.Now())
		if n%tunnelTry == tunnelTry-1 && t.try() {
			t.tell()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.begin:
		case <-tick.C:
		}
	}
}

// moving says whether a peer is to be reached by another device than it is, or a key is replaced.
func (t *tunnels) moving() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, renewing := t.keys.Renewing(); renewing {
		return true
	}
	says, nodes := t.says(), t.m.gossip.Load().Nodes()
	for id, s := range t.seen {
		if w := nodes[id].WireGuard; w != nil {
			if now, wanted := tunnel.Choose(says, *w, s); now != wanted || s.By != now {
				return true
			}
		}
	}
	return false
}

// look reads which sessions stand. While it can't, what was seen stays.
func (t *tunnels) look() {
	sessions, err := t.m.d.kernel.Sessions(plan.TunnelsNS())
	if err != nil {
		t.m.log.Warn("read the WireGuard sessions; trying again", "err", err)
		return
	}
	t.mu.Lock()
	seen := sight(sessions, t.says(), t.m.gossip.Load().Nodes(), t.keys.Made, t.received, time.Now())
	changed := !maps.EqualFunc(seen, t.seen, tunnel.Session.Alike)
	t.seen, t.received = seen, map[heard]uint64{}
	for _, s := range sessions {
		t.received[heard{s.Link, s.Key}] = s.Received
	}
	t.mu.Unlock()
	if changed {
		signal(t.changed)
	}
}

// heard names the peer of a device.
type heard struct {
	link string
	key  datapath.PublicKey
}

// sight sorts the kernel's sessions by node. One that was made before this node's present key
// does not count. received is how much had come at the last look.
func sight(sessions []kernel.Session, says overlay.WireGuard, nodes map[overlay.NodeID]overlay.NodeRecord, made [2]time.Time, received map[heard]uint64, now time.Time) map[overlay.NodeID]tunnel.Session {
	type peer struct {
		device int
		key    overlay.WireGuardKey
	}
	owner := map[peer]overlay.NodeID{}
	for id, r := range nodes {
		if r.WireGuard == nil {
			continue
		}
		for i, k := range r.WireGuard.Tunnels {
			owner[peer{i, k.Key}] = id
		}
	}
	out := map[overlay.NodeID]tunnel.Session{}
	for _, s := range sessions {
		i, ok := plan.DeviceIndex(s.Link)
		id, known := owner[peer{i, overlay.WireGuardKey(s.Key)}]
		if !ok || !known {
			continue
		}
		p := out[id]
		if s.Handshake.After(made[i]) && now.Sub(s.Handshake) < sessionLife {
			p.Made[i] = tunnel.Between(says, *nodes[id].WireGuard, i)
		}
		p.Heard[i] = s.Received > received[heard{s.Link, s.Key}]
		if s.Routed {
			p.Routed, p.By = true, i
		}
		out[id] = p
	}
	return out
}

// renew takes the replacement of keys a step on, or begins one when they are old, and tells
// of it.
func (t *tunnels) renew(now time.Time) {
	changed, err := t.step(now)
	if err != nil {
		t.m.log.Error("keep new WireGuard keys; trying again", "err", err)
	}
	if !changed {
		return
	}
	t.tell()
}

// tell tells the agent and the other nodes what is new.
func (t *tunnels) tell() {
	signal(t.changed)
	if err := t.m.restate(0); err != nil {
		t.m.log.Error("tell of new WireGuard keys; trying again", "err", err)
	}
}

// step does what of it concerns this node alone. New keys are on the disk before they are used.
func (t *tunnels) step(now time.Time) (changed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, renewing := t.keys.Renewing(); !renewing && t.keys.Due(now) {
		t.keys.Begin(now)
	}
	next, late, ok := t.rotation.Step(t.keys, now, t.seen, drawKey)
	if !ok {
		return false, nil
	}
	if err := t.m.d.store.SaveTunnelKeys(next); err != nil {
		t.rotation = tunnel.Rotation{}
		return false, err
	}
	for _, id := range late {
		t.m.log.Warn("a WireGuard key was replaced while a peer still used it; it follows when it hears of the new one", "node", id)
	}
	t.use(next)
	if _, renewing := next.Renewing(); !renewing {
		close(t.renewed)
		t.renewed = make(chan struct{})
		t.m.log.Info("this node's WireGuard keys are new")
	}
	return true, nil
}
