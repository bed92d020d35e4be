package tunnel

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/overlay"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestChoose(t *testing.T) {
	var steady overlay.WireGuard
	steady.Tunnels[0].Key, steady.Tunnels[1].Key = overlay.WireGuardKey{1}, overlay.WireGuardKey{2}
	leaves0, leaves1, renewed := steady, steady, steady
	renewed.Tunnels[0].Key = overlay.WireGuardKey{3}
	both := [2]Pair{Between(steady, steady, 0), Between(steady, steady, 1)}
	only0, only1 := [2]Pair{both[0]}, [2]Pair{1: both[1]}
	leaves0.Tunnels[0].Leaving, leaves1.Tunnels[1].Leaving = true, true
	for _, tt := range []struct {
		name        string
		self, peer  overlay.WireGuard
		s           Session
		now, wanted int
	}{
		{"a new peer", steady, steady, Session{}, 0, 0},
		{"a new peer of a device that is left", steady, leaves0, Session{}, 1, 1},
		{"nothing to do", steady, steady, Session{Routed: true}, 0, 0},
		{"no session there yet", leaves0, steady, Session{Routed: true, Made: only0}, 0, 1},
		{"a session stands", leaves0, steady, Session{Routed: true, Made: both}, 1, 1},
		{"the peer wants it", steady, leaves0, Session{Routed: true, Made: both}, 1, 1},
		{"and back", steady, steady, Session{Routed: true, By: 1, Made: both}, 0, 0},
		{"not back before there is a session", steady, steady, Session{Routed: true, By: 1, Made: only1}, 1, 0},
		{"not back by a session of an older key", steady, renewed, Session{Routed: true, By: 1, Made: both}, 1, 0},
		{"both leave another", leaves0, leaves1, Session{Routed: true, Made: both}, 1, 1},
	} {
		if now, wanted := Choose(tt.self, tt.peer, tt.s); now != tt.now || wanted != tt.wanted {
			t.Errorf("%s: by %d, wanted %d; want %d, %d", tt.name, now, wanted, tt.now, tt.wanted)
		}
		if now, wanted := Choose(tt.peer, tt.self, tt.s); now != tt.now || wanted != tt.wanted {
			t.Errorf("%s: the other side chooses %d, %d", tt.name, now, wanted)
		}
	}
}

func TestDueAndBegin(t *testing.T) {
	n := byte(0)
	k := New(start, func() [32]byte { n++; return [32]byte{n} })
	if _, renewing := k.Renewing(); renewing || k.Due(start.Add(Age-1)) || !k.Due(start.Add(Age)) || k.Private[0] == k.Private[1] {
		t.Errorf("new keys: %+v", k)
	}
	k.Begin(start.Add(-time.Hour)) // the clock was set back
	if d, renewing := k.Renewing(); !renewing || d != 0 {
		t.Errorf("device %d, %v", d, renewing)
	}
}

// node is one of two that hear of each other some time later.
type node struct {
	keys  Keys
	rot   Rotation
	last  byte
	heard []overlay.WireGuard // what the other said; it acts by the first
	late  int                 // seconds since it heard something
	by    int                 // the device by which it sends
	seen  Session             // at its last look
	odd   int                 // seconds for which that has had no session
}

func (n *node) draw() [32]byte { n.last++; return [32]byte{n.last} }

func (n *node) says() (w overlay.WireGuard) {
	for i := range w.Tunnels {
		w.Tunnels[i] = overlay.Tunnel{Key: n.keys.Private[i], Leaving: n.keys.Leaving[i]}
	}
	return w
}

// session says whether both know the present keys of each other on a device.
func session(a, b *node, device int) bool {
	return a.heard[0].Tunnels[device].Key == b.keys.Private[device] && b.heard[0].Tunnels[device].Key == a.keys.Private[device]
}

// Two nodes replace their keys whenever they like, and hear of each other up to three seconds
// late. While one does, neither sends by the device whose key is replaced. When both do at once, one
// may: it is without a session on its device for much less than the minute for which what it sends
// is still taken.
func TestNothingIsLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := [2]*node{{}, {last: 100}}
		for _, n := range nodes {
			n.keys = New(start, n.draw)
		}
		nodes[0].heard, nodes[1].heard = []overlay.WireGuard{nodes[1].says()}, []overlay.WireGuard{nodes[0].says()}
		for second := range 400 {
			now := start.Add(time.Duration(second+1) * time.Second)
			for i, n := range nodes {
				other := nodes[1-i]
				if second < 100 && rapid.IntRange(0, 30).Draw(t, "rotate") == 0 {
					n.keys.Begin(now)
				}
				n.hear(t)
				n.choose(t, other) // by what it has seen before
				n.look(other)
				n.choose(t, other)
				if n.odd++; session(n, other, n.by) {
					n.odd = 0
				}
				if n.odd > 15 {
					t.Fatalf("second %d: node %d has had no session on device %d for %d s", second, i, n.by, n.odd)
				}
				before := n.keys
				next, late, ok := n.rot.Step(n.keys, now, map[overlay.NodeID]Session{"other": n.seen}, n.draw)
				if !ok {
					continue
				}
				n.keys = next
				n.choose(t, other)
				other.heard = append(other.heard, n.says())
				_, both := other.keys.Renewing()
				for d := range next.Private {
					if next.Private[d] != before.Private[d] && !both && (other.by == d || n.by == d || len(late) > 0) {
						t.Fatalf("second %d: node %d replaces the key of device %d; it sends by %d, the other by %d, late %v", second, i, d, n.by, other.by, late)
					}
				}
			}
		}
		for i, n := range nodes {
			if d, renewing := n.keys.Renewing(); renewing || slices.Contains(n.keys.Leaving[:], true) || n.by != 0 {
				t.Errorf("node %d is not done: device %d of %+v", i, d, n.keys)
			}
		}
	})
}

func (n *node) look(other *node) {
	n.seen = Session{Routed: true, By: n.by}
	for i := range n.seen.Made {
		if session(n, other, i) {
			n.seen.Made[i] = Between(n.says(), n.heard[0], i)
		}
	}
}

// choose changes over to the device where a session is to stand, as far as the node can know: what
// it has seen may be a second old, and it may have heard of a new key since, or made one.
func (n *node) choose(t *rapid.T, other *node) {
	was := n.by
	n.by, _ = Choose(n.says(), n.heard[0], n.seen)
	if n.seen.By = n.by; n.by != was && n.heard[0].Tunnels[n.by].Key == other.keys.Private[n.by] && !session(n, other, n.by) {
		t.Fatalf("changed over to device %d, where there is no session", n.by)
	}
}

func (n *node) hear(t *rapid.T) {
	if n.late++; len(n.heard) > 1 && (n.late >= 3 || rapid.Bool().Draw(t, "hears")) {
		n.heard, n.late = n.heard[len(n.heard)-1:], 0
	}
}

func TestPatience(t *testing.T) {
	var r Rotation
	k := New(start, (&node{}).draw)
	k.Begin(start)
	stuck := map[overlay.NodeID]Session{"b": {Routed: true, Made: [2]Pair{{overlay.WireGuardKey{1}, overlay.WireGuardKey{2}}}}}
	for now, steps := start, 0; ; now = now.Add(time.Second) {
		next, late, ok := r.Step(k, now, stuck, (&node{last: 9}).draw)
		if !ok {
			continue
		}
		k = next
		if steps++; steps == 1 {
			continue // asked to be left
		}
		if waited := now.Sub(start); waited != patience || !slices.Equal(late, []overlay.NodeID{"b"}) || k.Private[0][0] != 10 {
			t.Errorf("after %v: late %v, key %v", waited, late, k.Private[0])
		}
		return
	}
}
