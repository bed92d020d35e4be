//go:build !race

package gossip

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/heddle-net/heddle/overlay"
)

func (p *peer) suspends(id overlay.NodeID) bool {
	_, is := p.Suspended()[id]
	return is
}

// Membership alone suspends nobody: only who does not answer to this node itself, either. Both ways
// it signals a change, and leaves what was said as it is.
func TestSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.stop()
		w.given()
		a, b := w.peers[0], w.peers[1]
		b.attach(0, 1)
		said := func(lives bool) {
			if m := (&memberlist.Node{Name: string(b.Self)}); lives {
				delegate{a.Node}.NotifyJoin(m)
			} else {
				delegate{a.Node}.NotifyLeave(m)
			}
		}
		revision := a.Revision()
		steady := func(when string) {
			t.Helper()
			if r := a.Revision(); r != revision {
				t.Errorf("%s: %d changes were signalled", when, r-revision)
			}
			revision = a.Revision()
		}
		changed := func(when string, suspended bool, within time.Duration) {
			t.Helper()
			took := w.within(10*time.Second, when, func() bool { return a.suspends(b.Self) == suspended })
			if r := a.Revision(); r != revision+1 || took > within {
				t.Errorf("%s: %d changes were signalled, after %s", when, r-revision, took)
			}
			revision = a.Revision()
		}
		said(false)
		time.Sleep(10 * time.Second)
		if a.suspends(b.Self) {
			t.Error("a node that answers is suspended")
		}
		steady("membership alone")
		w.split(1)
		time.Sleep(time.Millisecond)
		changed("it answers no more", true, 3*time.Second)
		if at := a.Suspended()[b.Self]; at.After(time.Now()) || time.Since(at) > time.Second {
			t.Errorf("it is suspended since %s, and it is %s", at, time.Now())
		}
		time.Sleep(time.Minute)
		steady("it stays away")
		if n := len(a.Claims(blue)); n != 2 {
			t.Errorf("%d of its endpoints are known, want 2", n)
		}
		w.lan.heal()
		changed("it answers, whatever membership says", false, time.Second)
		w.split(1)
		changed("it is away again", true, 3*time.Second)
		said(true)
		changed("membership has heard of it", false, 0)
		time.Sleep(10 * time.Second)
		steady("membership says it lives")
		said(false)
		changed("both say it is dead", true, 2*time.Second)
		removal := state(t, overlay.DomainRemoval, sign, overlay.Removal{V: 1, Place: place, Node: b.Self, Index: 9})
		if err := a.AddRemoval(removal); err != nil {
			t.Fatal(err)
		}
		if len(a.Suspended()) > 0 || len(a.doubts) > 0 {
			t.Error("a removed node is suspended")
		}
	})
}

// Who is cut off suspends the others, and they it; a second after the heal nobody is.
func TestSuspendedByACut(t *testing.T) {
	virtual(t, 9, func(w *world) {
		suspended := func() (n int) {
			for _, p := range w.peers {
				n += len(p.Suspended())
			}
			return n
		}
		for range 3 {
			w.split(1)
			took := w.within(5*time.Minute, "all see the cut", func() bool { return suspended() == 8+8 })
			t.Logf("all have seen the cut %s later", took)
			time.Sleep(10 * time.Second)
			w.lan.heal()
			if took := w.within(10*time.Second, "all are back", func() bool { return suspended() == 0 }); took > time.Second {
				t.Errorf("it took %s after the heal", took)
			}
			time.Sleep(10 * time.Second)
			if n := suspended(); n != 0 {
				t.Errorf("%d are suspended again", n)
			}
		}
	})
}

// A node whose process hangs takes streams, and answers by none.
func TestAHangingNodeIsSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.stop()
		w.given()
		a, b := w.peers[0], w.peers[1]
		b.stop()
		w.lan.mu.Lock()
		b.host.closed = make(chan struct{}) // the kernel goes on taking streams
		w.lan.hosts[hostPort(b.host.at)] = b.host
		w.lan.mu.Unlock()
		delegate{a.Node}.NotifyLeave(&memberlist.Node{Name: string(b.Self)})
		w.within(3*time.Second, "it is suspended", func() bool { return a.suspends(b.Self) })
	})
}
