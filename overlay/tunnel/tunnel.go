// Package tunnel decides how a node that has two WireGuard devices replaces their keys, one
// after the other, so that no packet is lost: by which device traffic to a peer goes, and when a
// device carries nothing any more.
//
// It is pure. Any two nodes choose alike, from what both say of themselves, and each changes
// over by itself once a session stands: packets are taken on both devices at all times.
package tunnel

import (
	"maps"
	"slices"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// Session is what the kernel had of a peer at the last look.
type Session struct {
	Routed bool    // there is a route to it
	By     int     // the device by which the route goes
	Made   [2]Pair // with what keys a session stood, by device; zero: none did
	Heard  [2]bool // something had come by a device since the look before
}

// Pair are the public keys of a device's two ends. A session is theirs alone: one of two nodes that
// has a new key, or hears of one, knows by this that what it has seen does not stand any more.
type Pair struct{ Self, Peer overlay.WireGuardKey }

// Between is the pair of a device of two nodes.
func Between(self, peer overlay.WireGuard, device int) Pair {
	return Pair{self.Tunnels[device].Key, peer.Tunnels[device].Key}
}

// stood says whether there was a session on a device.
func (s Session) stood(device int) bool { return s.Made[device] != Pair{} }

// Alike says whether Choose makes the same of two sessions.
func (s Session) Alike(o Session) bool {
	s.Heard, o.Heard = [2]bool{}, [2]bool{}
	return s == o
}

// Choose says by which device traffic to a peer goes now, and by which it is to go as soon as a
// session stands there: the first, unless one of the two wants it left.
func Choose(self, peer overlay.WireGuard, s Session) (now, wanted int) {
	if self.Tunnels[0].Leaving || peer.Tunnels[0].Leaving {
		wanted = 1
	}
	stands := s.stood(wanted) && s.Made[wanted] == Between(self, peer, wanted)
	if s.Routed && s.By != wanted && !stands {
		return s.By, wanted
	}
	return wanted, wanted
}

const (
	// Age is how old a key becomes before it is replaced.
	Age = 7 * 24 * time.Hour
	// settle is how long a device must have been left before its key goes. Peers hear of it in
	// milliseconds; what they send before they do is still taken, for at least a minute, since a
	// session outlives the key that it was made with.
	settle = 5 * time.Second
	// patience bounds the wait for peers that do not leave a device.
	patience = 2 * time.Minute
)

// Keys are a node's WireGuard keys, and how far their replacement is.
type Keys struct {
	Private [2][32]byte  `json:"private"`
	Made    [2]time.Time `json:"made"`
	Renew   time.Time    `json:"renew,omitzero"` // keys that are not younger are to be replaced
	Leaving [2]bool      `json:"leaving"`
}

// New are two keys. draw makes one, clamped as Curve25519 wants it.
func New(now time.Time, draw func() [32]byte) Keys {
	return Keys{Private: [2][32]byte{draw(), draw()}, Made: [2]time.Time{now, now}}
}

// Begin asks for the replacement of both keys.
func (k *Keys) Begin(now time.Time) {
	for _, made := range k.Made {
		if now.Before(made) {
			now = made // the clock was set back
		}
	}
	k.Renew = now
}

// Due says whether a key is old enough to be replaced.
func (k Keys) Due(now time.Time) bool {
	return slices.ContainsFunc(k.Made[:], func(made time.Time) bool { return now.Sub(made) >= Age })
}

// Renewing is the device whose key is the next to be replaced; ok is false when none is.
func (k Keys) Renewing() (device int, ok bool) {
	for i, made := range k.Made {
		if !made.After(k.Renew) {
			return i, true
		}
	}
	return 0, false
}

// Rotation is a replacement under way. Its zero value is one that has just begun, or goes on
// after a restart.
type Rotation struct {
	device int
	since  time.Time // the device was asked to be left
	busy   time.Time // it carried traffic, last
}

// Step takes the replacement a step on, if it can: it returns the new keys, or ok is false. late
// are peers that still use a device whose key is replaced all the same.
func (r *Rotation) Step(k Keys, now time.Time, sessions map[overlay.NodeID]Session, draw func() [32]byte) (next Keys, late []overlay.NodeID, ok bool) {
	device, renewing := k.Renewing()
	if !renewing {
		return k, nil, false
	}
	if r.since.IsZero() || r.device != device { // another, when a replacement is asked for amid one
		*r = Rotation{device, now, now}
		k.Leaving = [2]bool{}
		k.Leaving[device] = true
		return k, nil, true
	}
	late = on(device, sessions)
	if len(late) > 0 {
		r.busy = now
	}
	if now.Sub(r.busy) < settle && now.Sub(r.since) < patience {
		return k, nil, false
	}
	*r = Rotation{}
	k.Leaving[device] = false
	k.Private[device], k.Made[device] = draw(), now
	if !k.Made[device].After(k.Renew) {
		k.Made[device] = k.Renew.Add(1)
	}
	return k, late, true
}

// on are the peers with whom traffic goes by a device, either way.
func on(device int, sessions map[overlay.NodeID]Session) []overlay.NodeID {
	var out []overlay.NodeID
	for _, id := range slices.Sorted(maps.Keys(sessions)) {
		if s := sessions[id]; s.Routed && s.By == device && s.stood(device) || s.Heard[device] {
			out = append(out, id)
		}
	}
	return out
}
