package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

// held counts a lease's addresses of a family.
func held(l overlay.Lease, v4 bool) (n int) {
	for _, g := range l.Grants {
		for ip := g.First; ip.Is4() == v4 && g.Has(ip); ip = ip.Next() {
			n++
		}
	}
	return n
}

func (w *world) leased() overlay.Lease {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lease
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// Managers of the first feature level take nothing back: what idles stays, and is not barred.
func TestALeaseStaysAtTheFirstLevel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.size, w.limit, w.facts.Level = 72, 72, 1
		a, _ := start(t, w)
		attach(t, a, "web")
		time.Sleep(5 * time.Minute)
		if n := held(w.leased(), true); n != 72 {
			t.Errorf("%d of 72 addresses are leased", n)
		}
		_ = a.do(t.Context(), func(context.Context) {
			for _, n := range a.networks {
				if len(n.barred) > 0 {
					t.Errorf("barred are %v", n.barred)
				}
			}
		})
	})
}

// 60 attached and 55 detached: what idles goes back within two minutes, and nothing that is
// in use.
func TestALeaseShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.size, w.limit = 72, 72
		a, stop := start(t, w)
		kept := map[string]netip.Addr{}
		for i := range 60 {
			e := attach(t, a, fmt.Sprint("w", i))
			<-w.told
			if i%12 == 0 {
				kept[e.Name] = e.IPv4.Addr()
			}
		}
		time.Sleep(5 * time.Minute)
		if n := held(w.leased(), true); n != 72 {
			t.Errorf("60 are attached and %d addresses are leased, of 72", n)
		}
		for i := range 60 {
			if i%12 != 0 {
				if err := detach(t.Context(), a, fmt.Sprint("w", i), ""); err != nil {
					t.Fatal(err)
				}
				<-w.told
			}
		}
		time.Sleep(2 * time.Minute)
		for _, v4 := range []bool{true, false} {
			if n := held(w.leased(), v4); n > 16 || n < 5+reserve {
				t.Errorf("5 are attached and %d addresses are leased", n)
			}
		}
		for name, ip := range kept {
			if _, ok := w.leased().Granted(ip); !ok {
				t.Errorf("%s was given back, and %s uses it", ip, name)
			}
		}
		w.set(func() {
			if n := w.saved.Networks[len(w.saved.Networks)-1].Revision; len(w.saved.Barred[blue]) > 0 || n != w.lease.Index {
				t.Errorf("the disk bars %v, with the lease of revision %d", w.saved.Barred[blue], n)
			}
		})
		stop()
		again, _ := start(t, w)
		if e := attach(t, again, "new"); e.IPv4.Addr() == kept["w0"] {
			t.Errorf("%s is there twice", e.IPv4)
		} else if _, ok := w.leased().Granted(e.IPv4.Addr()); !ok {
			t.Errorf("%s is not leased any more", e.IPv4)
		}
		<-w.told
	})
}

// What was given up stays barred over a restart until the managers have heard of it.
func TestWhatIsGivenUpIsBarred(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.size, w.limit = 6, 6 // .2 to .7
		a, stop := start(t, w)
		attach(t, a, "a")
		<-w.told
		r, err := a.Release(t.Context(), overlay.ReleaseRequest{Network: blue, Want: 3})
		if err != nil || r.Release == nil {
			t.Fatalf("%+v, %v", r, err)
		}
		w.set(func() { w.down = true })
		stop()
		a, _ = start(t, w)
		for _, name := range []string{"b", "c"} {
			if e := attach(t, a, name); netip.MustParseAddr("10.20.0.4").Less(e.IPv4.Addr()) {
				t.Errorf("%s was given up, and %s has it", e.IPv4, name)
			}
			<-w.told
		}
		if d, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "d", Network: "blue"}); err == nil {
			t.Errorf("a fourth workload has %s, of three addresses", d.Endpoint.IPv4)
		}
		w.set(func() { w.down = false })
		time.Sleep(2 * tidyEvery)
		if n := held(w.leased(), true); n != 3 {
			t.Errorf("%d addresses are leased, want 3", n)
		}
		w.set(func() {
			if len(w.saved.Barred[blue]) > 0 {
				t.Errorf("barred for ever: %v", w.saved.Barred[blue])
			}
		})
	})
}

func TestReleaseByName(t *testing.T) {
	w := newWorld()
	w.size, w.limit = 6, 6
	a, _ := start(t, w)
	e := attach(t, a, "a")
	idle := netip.MustParseAddr("10.20.0.5")
	r, err := a.Release(t.Context(), overlay.ReleaseRequest{Network: blue, Addrs: []netip.Addr{e.IPv4.Addr(), idle}})
	if err != nil || r.InUse[e.IPv4.Addr()] != "a" || len(r.InUse) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	var s overlay.Release
	if err := r.Release.Decode(overlay.DomainRelease, &s); err != nil || len(s.Grants) != 1 || s.Grants[0].First != idle || s.Grants[0].Last != idle {
		t.Errorf("%+v, %v", s, err)
	}
	if r, err := a.Release(t.Context(), overlay.ReleaseRequest{Network: "c1000000000000000000000000000000", Want: 1}); err != nil || r.Release != nil {
		t.Errorf("of a network that this node is not in: %+v, %v", r, err)
	}
}

// An address that could not be barred on the disk stays this node's.
func TestReleaseOnAFullDisk(t *testing.T) {
	w := newWorld()
	w.size, w.limit = 2, 2
	a, _ := start(t, w)
	attach(t, a, "a")
	w.set(func() { w.saveErr = errors.New("no space left on device") })
	if r, err := a.Release(t.Context(), overlay.ReleaseRequest{Network: blue, Want: 1}); err == nil || r.Release != nil {
		t.Errorf("%+v, %v", r, err)
	}
	w.set(func() { w.saveErr = nil })
	attach(t, a, "b")
}

// A node that does not have all of what the others host keeps entries that may lead to a removed
// node: it does not say that it acts by the removal.
func TestForgot(t *testing.T) {
	for _, partial := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			a, stop := start(t, w)
			attach(t, a, "web")
			stop()
			if partial {
				w.syncErr = overlay.Errorf(overlay.Unavailable, "no answer")
			}
			f := *w.facts
			f.Removals = map[overlay.NodeID]overlay.Signed{other: {}}
			w.facts = &f
			a, stop = start(t, w)
			defer stop()
			time.Sleep(time.Second)
			if err := a.Forgot(t.Context(), other); (overlay.KindOf(err) == overlay.Unavailable) != partial {
				t.Errorf("partial is %v: %v", partial, err)
			}
		})
	}
}

// What could not be fetched at a first attach is fetched soon after it can be: until then the kernel
// keeps what nobody may want.
func TestAFetchIsDoneAgain(t *testing.T) {
	for _, away := range []time.Duration{0, 3 * time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.syncErr = overlay.Errorf(overlay.Unavailable, "no answer")
			a, stop := start(t, w)
			defer stop()
			partial := func() bool {
				synctest.Wait()
				w.mu.Lock()
				defer w.mu.Unlock()
				return slices.ContainsFunc(w.config.Namespaces, func(n datapath.Namespace) bool { return n.Partial })
			}
			time.Sleep(300 * time.Millisecond)
			attach(t, a, "web")
			time.Sleep(away)
			if !partial() {
				t.Error("all of it is known")
			}
			w.set(func() { w.syncErr = nil })
			if time.Sleep(min(100*time.Millisecond+away, time.Second)); partial() {
				t.Errorf("after %s without an answer it is not fetched again", away)
			}
		})
	}
}
