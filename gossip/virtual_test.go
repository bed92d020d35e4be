//go:build !race

// These tests run in virtual time, which the race detector does not go with.

package gossip

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
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

// restart stops a node and starts it with an empty table and what its agent has on its disk.
func (w *world) restart(i int) *peer {
	w.peers[i].stop()
	p := w.start(i)
	for p.Join(context.Background(), []netip.AddrPort{w.peers[(i+1)%len(w.peers)].host.at}) != nil {
		time.Sleep(time.Second) // as the daemon does
	}
	said := p.said
	p.said = 0
	for e := range int(said) {
		p.attach(e)
	}
	return p
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

// A node whose disk was set back hears how much others hold of it, also when it has said as much
// again by then; what it has said itself is no news.
func TestANodeThatForgotWhatItSaid(t *testing.T) {
	virtual(t, 2, func(w *world) {
		a := w.peers[0]
		for e := range 5 {
			a.attach(e)
		}
		a.stop()
		p := w.start(0)
		p.said = 3
		p.Skip(blue, overlay.Version{Incarnation: 1, Number: 1}, overlay.Version{Incarnation: 1, Number: 3})
		if err := p.Join(context.Background(), []netip.AddrPort{w.peers[1].host.at}); err != nil {
			t.Fatal(err)
		}
		if err := p.Introduce(context.Background(), w.all[1]); err != nil {
			t.Fatal(err)
		}
		for e := range 5 {
			p.attach(10 + e)
		}
		if v := p.Stated(blue); v.Number != 5 {
			t.Errorf("it was told that it has said up to %d, want 5", v.Number)
		}
		time.Sleep(time.Minute)
		if v := p.Stated(blue); v.Number != 5 {
			t.Errorf("it hears of %d, which it has said itself", v.Number)
		}
	})
}

// A node whose disk was set back says what is true of it, whatever others have heard of it before,
// and learns under which number they listen.
func TestANodeThatForgotItsNumber(t *testing.T) {
	for _, lost := range []uint64{1000, 0} { // numbers; with 0 it has said something else under the last
		virtual(t, 3, func(w *world) {
			before := w.peers[1].Nodes()[w.all[0]].Number
			w.peers[0].stop()
			p := w.make(0)
			if err := p.enter(p.listConfig()); err != nil {
				t.Fatal(err)
			}
			p.AddNodes([]overlay.SignedNode{w.peers[1].SignedNodes()[w.all[1]]})
			p.host.at = netip.AddrPortFrom(netip.MustParseAddr("192.168.9.9"), 5378)
			if err := p.SetSelf(w.describeAs(0, before-lost)); err != nil {
				t.Fatal(err)
			}
			w.run(p)
			if err := p.Introduce(context.Background(), w.all[1]); err != nil {
				t.Fatal(err)
			}
			var theirs uint64
			select {
			case theirs = <-p.Surpassed():
			case <-time.After(time.Minute):
			}
			if r := p.Nodes()[p.Self]; theirs != before || r.Number != before-lost || r.Gossip != p.host.at {
				t.Fatalf("it hears of its record %d, want %d; its own is %d, at %s", theirs, before, r.Number, r.Gossip)
			}
			if err := p.SetSelf(w.describeAs(0, theirs+1)); err != nil {
				t.Fatal(err)
			}
			took := w.within(10*time.Second, "the others listen to it", func() bool {
				return w.peers[1].Nodes()[p.Self].Gossip == p.host.at && w.peers[2].Nodes()[p.Self].Gossip == p.host.at
			})
			if took > time.Second {
				t.Errorf("it took %s until the others listened", took)
			}
			if n := len(p.Surpassed()); n > 0 {
				t.Error("it is told again")
			}
		})
	}
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
			if err := w.peers[0].SetSelf(w.describe(0)); err != nil {
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

// Who is removed, or dies, while it is asked what it knows does not keep this node from knowing all.
func TestARemovedNodeHoldsUpNoSync(t *testing.T) {
	for _, fate := range []string{"lives", "is removed", "dies"} {
		virtual(t, 4, func(w *world) {
			w.split(3)
			p := w.peers[0]
			time.AfterFunc(500*time.Millisecond, func() {
				switch fate {
				case "is removed":
					_ = p.AddRemoval(state(t, overlay.DomainRemoval, sign, overlay.Removal{V: 1, Place: place, Node: w.all[3], Index: 9}))
				case "dies":
					delegate{p.Node}.NotifyLeave(&memberlist.Node{Name: string(w.all[3])})
				}
			})
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			if err := p.Sync(ctx, blue, p.lease); (err != nil) != (fate == "lives") {
				t.Errorf("a node that does not answer %s: %v", fate, err)
			}
		})
	}
}

// Where all others are dead nobody tells what they host, and this node does not know all.
func TestWithNobodyThereIsNoSync(t *testing.T) {
	virtual(t, 3, func(w *world) {
		p := w.peers[0]
		for _, id := range w.all[1:] {
			delegate{p.Node}.NotifyLeave(&memberlist.Node{Name: string(id)})
		}
		if err := p.Sync(context.Background(), blue, p.lease); overlay.KindOf(err) != overlay.Unavailable {
			t.Errorf("nobody answers: %v", err)
		}
	})
}

// What a node does ends with Run.
func TestRunLeavesNothing(t *testing.T) {
	virtual(t, 3, func(w *world) {
		w.split(1)
		w.peers[0].attach(upTo(50)...)
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
		if silent := w.peers[0].attach(upTo(50)...); len(silent) != 99 {
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

// Who was cut off, with others or alone, knows a second after the heal what the others have
// said meanwhile, and they know what it has said.
func TestACutHeals(t *testing.T) {
	for _, alone := range []int{1, 12} {
		virtual(t, 25, func(w *world) {
			a, b := w.peers[0], w.peers[20]
			for round := range 5 {
				w.split(alone)
				time.Sleep(time.Minute + time.Duration(rand.Int64N(int64(time.Second))))
				a.attach(2 * round)
				b.attach(2*round + 1)
				time.Sleep(time.Duration(round) * 7 * time.Second)
				w.lan.heal()
				took := w.within(10*time.Second, "both sides know", func() bool { return w.agree(a, b) })
				t.Logf("%d nodes cut off, round %d: %s", alone, round, took)
				if took > time.Second {
					t.Errorf("%d nodes were cut off: it took %s until both sides knew", alone, took)
				}
				time.Sleep(5 * time.Second)
			}
		})
	}
}

// What goes over streams, because it is large, is known soon after a cut of any length too.
func TestAShortCutHeals(t *testing.T) {
	virtual(t, 3, func(w *world) {
		for cut := 50 * time.Millisecond; cut < 4*time.Second; cut += 150 * time.Millisecond {
			w.split(1)
			w.peers[0].attach(upTo(20)...)
			w.peers[2].attach(upTo(20)...)
			time.Sleep(cut)
			w.lan.heal()
			if took := w.within(10*time.Second, "both sides know", func() bool { return w.agree(w.peers...) }); took > 600*time.Millisecond {
				t.Errorf("after a cut of %s it took %s", cut, took)
			}
			time.Sleep(5 * time.Second)
		}
	})
}

// What is said while nodes come and go, with a fifth of all packets lost, is known everywhere soon
// after.
func TestChurn(t *testing.T) {
	virtual(t, 25, func(w *world) {
		w.lan.loss, w.lan.twice = 0.2, 0.05
		for round := range 30 {
			i := rand.IntN(len(w.peers))
			w.peers[i].attach(int(w.peers[i].said))
			switch round % 6 {
			case 1:
				w.restart(rand.IntN(len(w.peers)))
			case 3:
				w.split(1 + rand.IntN(12))
			case 5:
				w.lan.heal()
			}
			time.Sleep(time.Duration(rand.Int64N(int64(2 * time.Second))))
		}
		took := w.within(time.Minute, "all know all", func() bool { return w.agree(w.peers...) })
		t.Logf("all knew all %s later", took)
		if took > 2*exchangeTime { // a stream that loses one segment time and again hangs for as long as an exchange may take
			t.Errorf("it took %s", took)
		}
	})
}

// Who misses a push is named, and knows when packets pass again, as does who hears it only later.
func TestMissedPushes(t *testing.T) {
	virtual(t, 10, func(w *world) {
		w.split(3)
		for e := range 5 {
			if silent := w.peers[9].attach(e); len(silent) != 3 {
				t.Errorf("silent: %v, want the first three", silent)
			}
		}
		w.lan.heal()
		if took := w.within(5*time.Second, "they know", func() bool { return w.agree(w.peers[9]) }); took > time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// What does not go in one frame comes in several, both ways.
func TestExchangesInParts(t *testing.T) {
	virtual(t, 2, func(w *world) {
		w.split(1)
		w.peers[0].attach(upTo(3000)...)
		w.peers[1].attach(upTo(3000)...)
		time.Sleep(10 * time.Second)
		w.lan.frame = 0
		w.lan.heal()
		took := w.within(10*time.Second, "both sides know", func() bool { return w.agree(w.peers...) })
		t.Logf("both sides knew %s later; the largest frame has %d bytes", took, w.lan.frame)
		if took > time.Second || w.lan.frame > maxGive {
			t.Errorf("it took %s, in frames of up to %d bytes", took, w.lan.frame)
		}
	})
}

// Who says what is refused is not asked for it over and over.
func TestWhatIsRefusedEndsAnExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.stop()
		w.given()
		a, b := w.peers[0], w.peers[1]
		a.Node.mu.Lock()
		for e := range 3000 {
			c := overlay.Claim{Signed: a.record(e), Lease: b.lease}
			if err := c.Signed.Decode(overlay.DomainRecord, &c.Record); err != nil {
				t.Fatal(err)
			}
			a.table.Merge(c)
		}
		a.Node.mu.Unlock()
		before := w.lan.dials.Load()
		if err := b.exchange(context.Background(), a.Self, exchangeTime); overlay.KindOf(err) != overlay.Unavailable {
			t.Errorf("it ends with %v", err)
		}
		if n := w.lan.dials.Load() - before; n > 2 {
			t.Errorf("it was asked %d times", n)
		}
	})
}

// What was said to nodes that are cut off comes to them by exchanges when that ends, and not, too,
// in as many streams.
func TestPushesDoNotPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 11)
		defer w.stop()
		w.given()
		p := w.peers[10]
		w.split(10)
		for range 100 {
			if silent := p.attach(upTo(10)...); len(silent) != 10 { // too large for packets
				t.Fatalf("silent: %v, want all others", silent)
			}
		}
		w.lan.heal()
		before := w.lan.dials.Load()
		took := w.within(10*time.Second, "all know", func() bool { return w.agree(p) })
		time.Sleep(5 * time.Second)
		if took > time.Second {
			t.Errorf("it took %s until all knew", took)
		}
		if n := w.lan.dials.Load() - before; n > 60 {
			t.Errorf("%d streams to ten nodes after the heal", n)
		}
	})
}

// Hosts that are off delay nobody who can be reached.
func TestSilentNodesDelayNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 60)
		defer w.stop()
		w.given()
		a, b := w.peers[58], w.peers[59]
		for e := range 5 {
			w.split(58)
			a.attach(2 * e)
			time.Sleep(5 * time.Second)
			w.lan.partition(func(from, to overlay.NodeID) bool { return from != to })
			a.attach(2*e + 1)
			time.Sleep(5 * time.Second)
			w.split(58)
			took := w.within(10*time.Second, "the other that is on knows", func() bool { return b.mark(a.Self).Number == a.said })
			if took > time.Second {
				t.Errorf("with 58 hosts off it took %s", took)
			}
		}
	})
}

// A node that was given what it lacks, and was cut off before it got it, still lacks it.
func TestWhatDidNotArriveIsGivenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.stop()
		w.given()
		a, b := w.peers[0], w.peers[1]
		w.lan.delay, w.lan.jitter = 100*time.Millisecond, 0
		a.Node.mu.Lock()
		c, err := w.trust.CheckRecord(a.record(0), a.lease)
		if err != nil {
			t.Fatal(err)
		}
		a.table.Merge(c)
		a.answers(b.Self)
		a.Node.mu.Unlock()
		time.Sleep(550 * time.Millisecond) // two round trips for the stream, and a half for the digest
		w.split(1)
		time.Sleep(15 * time.Second)
		w.lan.heal()
		if took := w.within(20*time.Second, "it is there", func() bool { return w.agree(a) }); took > 1500*time.Millisecond {
			t.Errorf("it took %s", took)
		}
	})
}

// Many pushes at the same time are packed together.
func TestManyPushesArePacked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 20)
		defer w.stop()
		w.given()
		p := w.peers[0]
		var g sync.WaitGroup
		for e := range 500 {
			r := p.record(e)
			g.Go(func() {
				if silent := p.say(100*time.Millisecond, r); len(silent) > 0 {
					t.Errorf("silent: %v", silent)
				}
			})
		}
		g.Wait()
		if !w.agree(p) {
			t.Error("not all know all")
		}
		if w.lan.sent > 1000 {
			t.Errorf("%d packets, for 500 records to 19 nodes", w.lan.sent)
		}
	})
}

// Who dies while it is being told lacks what it was told.
func TestANodeDiesAmidAPush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.stop()
		w.given()
		w.split(1)
		time.AfterFunc(50*time.Millisecond, func() { delegate{w.peers[0].Node}.NotifyLeave(&memberlist.Node{Name: string(w.all[1])}) })
		if silent := w.peers[0].attach(0); len(silent) > 0 {
			t.Errorf("silent: %v, and it is dead", silent)
		}
		time.Sleep(time.Minute)
		w.lan.heal()
		if took := w.within(time.Minute, "it knows", func() bool { return w.agree(w.peers[0]) }); took > time.Second {
			t.Errorf("it took %s", took)
		}
	})
}
