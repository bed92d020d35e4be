//go:build !race

// These tests run in virtual time, which the race detector does not go with.

package gossip

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/overlay"
)

// virtual runs a test with a world of n nodes in contact.
func virtual(t *testing.T, n int, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, n)
		defer w.stop()
		w.contact()
		f(w)
	})
}

// split cuts the first n nodes off from the others.
func (w *world) split(n int) {
	side := map[overlay.NodeID]bool{}
	for _, id := range w.all[:n] {
		side[id] = true
	}
	w.lan.partition(func(from, to overlay.NodeID) bool { return side[from] != side[to] })
}

// All know of a change while the attach that makes it still waits.
func TestAPushReachesAll(t *testing.T) {
	virtual(t, 25, func(w *world) {
		if silent := w.peers[3].attach(1); len(silent) > 0 {
			t.Errorf("silent: %v", silent)
		}
		if !w.agree(w.peers[3]) {
			t.Error("not all know")
		}
	})
}

// A node with an empty table has all that was said when Sync returns.
func TestAnEmptyTable(t *testing.T) {
	virtual(t, 10, func(w *world) {
		for i, p := range w.peers {
			p.attach(i)
		}
		w.peers[4].stop()
		p := w.start(4)
		if err := p.Join(context.Background(), []netip.AddrPort{w.peers[0].host.at}); err != nil {
			t.Fatal(err)
		}
		if err := p.Introduce(context.Background(), w.all[0]); err != nil {
			t.Fatal(err)
		}
		if err := p.Sync(context.Background(), blue, p.lease); err != nil {
			t.Fatal(err)
		}
		for i, other := range w.peers {
			if i != 4 && p.mark(other.Self).Number < other.said {
				t.Errorf("after Sync it lacks what node %d says", i)
			}
		}
		if v := p.Stated(blue); v.Number != 1 {
			t.Errorf("it was told that it has said up to %d, want 1", v.Number)
		}
	})
}

// However packets are lost, doubled and late, and whoever is cut off when: when that has ended, all
// know all.
func TestNothingIsLost(t *testing.T) {
	const nodes = 4
	type step struct{ Node, Cut, Pause, Loss, Twice int }
	steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		return step{
			rapid.IntRange(0, nodes-1).Draw(t, "node"), rapid.IntRange(0, nodes-1).Draw(t, "cut off"), rapid.IntRange(0, 3000).Draw(t, "ms"),
			rapid.IntRange(0, 60).Draw(t, "% lost"), rapid.IntRange(0, 30).Draw(t, "% doubled"),
		}
	}), 1, 8)
	rapid.Check(t, func(rt *rapid.T) {
		todo, ok := steps.Draw(rt, "steps"), true
		virtual(t, nodes, func(w *world) {
			w.lan.jitter = 100 * time.Millisecond
			for e, s := range todo {
				w.lan.loss, w.lan.twice = float64(s.Loss)/100, float64(s.Twice)/100
				w.split(s.Cut)
				w.peers[s.Node].attach(e % 3)
				time.Sleep(time.Duration(s.Pause) * time.Millisecond)
			}
			w.lan.heal()
			w.lan.loss, w.lan.twice = 0, 0
			time.Sleep(10 * time.Second)
			ok = w.agree(w.peers...)
		})
		if !ok {
			rt.Error("not all know all")
		}
	})
}

// Nobody waits for a node that was removed, and nobody tries to bring it up.
func TestARemovedNodeIsNotWaitedFor(t *testing.T) {
	virtual(t, 4, func(w *world) {
		removal := state(t, overlay.DomainRemoval, sign, overlay.Removal{V: 1, Place: place, Node: w.all[3], Index: 9})
		w.split(3)
		w.peers[0].attach(0) // misses node 3
		w.peers[0].AddRemoval(removal)
		for e := range 3 {
			if silent := w.peers[0].attach(e); len(silent) > 0 {
				t.Errorf("silent: %v", silent)
			}
			if err := w.peers[0].SetSelf(w.record(0)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second)
		}
		w.peers[0].Node.mu.Lock()
		defer w.peers[0].Node.mu.Unlock()
		if n := w.peers[0].Node; len(n.behind)+len(n.pending) > 0 {
			t.Errorf("behind %v, pending %v", n.behind, n.pending)
		}
	})
}

// What a node does ends with Run.
func TestRunLeavesNothing(t *testing.T) {
	virtual(t, 3, func(w *world) {
		w.split(1)
		var many []int
		for e := range 50 {
			many = append(many, e)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		w.peers[0].publish(ctx, many...)
		w.peers[0].stop()
		if n := w.peers[0].host.dialling.Load(); n != 0 {
			t.Errorf("%d streams are being opened after Run has returned", n)
		}
	})
}

// A large push goes to each node once, however long that takes.
func TestALargePushGoesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 100)
		defer w.stop()
		w.given()
		w.lan.delay = 50 * time.Millisecond
		var many []int
		for e := range 50 {
			many = append(many, e)
		}
		if silent := w.peers[0].attach(many...); len(silent) != 99 {
			t.Errorf("%d are silent, want all: the way is long", len(silent))
		}
		time.Sleep(time.Second)
		if !w.agree(w.peers[0]) {
			t.Error("not all know")
		}
		if n := w.lan.dials.Load(); n != 99 {
			t.Errorf("%d streams for 99 nodes", n)
		}
	})
}
