package agent

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// slowDisk holds writes up, each until release is closed. With err they fail then: as if the node
// was killed before.
type slowDisk struct {
	hold    func(Change) bool
	held    chan struct{} // a write has come that far
	release chan struct{}
	err     error
}

var errKilled = errors.New("killed")

// slowDown holds writes up that hold picks, until free is called, with what they come to.
func (w *world) slowDown(hold func(Change) bool) (held <-chan struct{}, free func(error)) {
	d := &slowDisk{hold: hold, held: make(chan struct{}, 64), release: make(chan struct{})}
	w.set(func() { w.slow = d })
	return d.held, func(err error) {
		w.set(func() { w.slow, d.err = nil, err })
		close(d.release)
	}
}

func deletes(c Change) bool { return len(c.Delete) > 0 }

// A repeated attach has the first one's outcome: it does not answer before that is durable and
// known, and when the first fails it attaches itself.
func TestARepeatedAttachWaitsForTheFirst(t *testing.T) {
	for _, outcome := range []error{nil, errKilled} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			a, stop := start(t, w)
			defer stop()
			held, free := w.slowDown(func(c Change) bool { return c.Put != nil })
			attach := func(ctx context.Context) <-chan error {
				done := make(chan error, 1)
				go func() { _, err := a.Attach(ctx, overlay.AttachRequest{Name: "web", Network: "blue"}); done <- err }()
				return done
			}
			first := attach(t.Context())
			<-held
			second := attach(t.Context())
			impatient, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := <-attach(impatient); overlay.KindOf(err) != overlay.Unavailable {
				t.Errorf("who gives up is told %v", err)
			}
			select {
			case err := <-second:
				t.Errorf("the second answered %v while the first was under way", err)
			default:
			}
			free(outcome)
			if err := <-first; !errors.Is(err, outcome) {
				t.Errorf("the first: %v", err)
			}
			if err := <-second; err != nil {
				t.Errorf("the second: %v", err)
			}
			if e := w.row(t, a, "web"); e.State != overlay.EndpointReady || len(w.saved.Endpoints) != 1 {
				t.Errorf("%+v, on the disk %+v", e, w.saved.Endpoints)
			}
		})
	}
}

// A workload that is attached again while its lost endpoint is being detached is attached.
func TestDetachOfALostWorkloadMeetsItsAttach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.size = 8
		a, stop := start(t, w)
		defer stop()
		attachIn(t, a, "web", "/web")
		w.set(func() { w.inodes["/web"], w.inodes["/web2"] = gone, 9 })
		time.Sleep(3 * time.Second)
		held, free := w.slowDown(deletes)
		detached, attached := make(chan error, 1), make(chan error, 1)
		go func() { detached <- detach(t.Context(), a, "web", "") }()
		<-held
		go func() {
			_, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "web", Network: "blue", Netns: "/web2"})
			attached <- err
		}()
		synctest.Wait()
		free(nil)
		if err := errors.Join(<-detached, <-attached); err != nil {
			t.Fatal(err)
		}
		if e := w.row(t, a, "web"); e.State != overlay.EndpointReady || e.Namespace != "/web2" || len(w.wanted(e)) == 0 {
			t.Errorf("%+v", e)
		}
	})
}

// What was given up stays given up, whatever the node was killed between: the row of a lost
// workload brings no address back that is barred, or another's.
func TestAnAddressIsNotBroughtBack(t *testing.T) {
	for name, take := range map[string]func(*testing.T, *Agent, netip.Addr){
		"released": func(t *testing.T, a *Agent, ip netip.Addr) {
			if r, err := a.Release(t.Context(), overlay.ReleaseRequest{Network: blue, Addrs: []netip.Addr{ip}}); err != nil || r.Release == nil {
				t.Fatalf("%+v, %v", r, err)
			}
		},
		"another's": func(t *testing.T, a *Agent, _ netip.Addr) { attach(t, a, "next") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.size, w.limit = 1, 1
				a, stop := start(t, w)
				web := attachIn(t, a, "web", "/web")
				w.set(func() { w.inodes["/web"], w.inodes["/web2"] = gone, 9 })
				time.Sleep(3 * time.Second)
				_, free := w.slowDown(func(c Change) bool { return deletes(c) && c.Barred == nil && c.Put == nil })
				take(t, a, web.IPv4.Addr())
				free(errKilled)
				stop()
				w.set(func() { w.limit = 8 })
				a, stop = start(t, w)
				defer stop()
				if again := attachIn(t, a, "web", "/web2"); again.IPv4 == web.IPv4 {
					t.Errorf("%s is back", again.IPv4)
				}
			})
		})
	}
}

// An attach that failed, and could not be taken off the disk, leaves no row that has the address of
// the next one.
func TestARowThatCouldNotBeDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.size, w.limit = 1, 1
		a, stop := start(t, w)
		w.set(func() { w.broken["eth0"] = overlay.Errorf(overlay.Exists, "foreign eth0") })
		_, free := w.slowDown(deletes)
		failed := make(chan error, 1)
		go func() {
			_, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "web", Network: "blue"})
			failed <- err
		}()
		synctest.Wait()
		free(errKilled)
		if err := <-failed; err == nil {
			t.Fatal("it was attached")
		}
		w.set(func() { delete(w.broken, "eth0") })
		attach(t, a, "next")
		stop()
		a, stop = start(t, w)
		defer stop()
		if rows, err := a.Endpoints(t.Context()); err != nil || len(rows) != 1 || rows[0].Name != "next" {
			t.Errorf("%+v, %v", rows, err)
		}
	})
}

// A node that is killed when it begins a new life of its records goes on with it at the next
// start.
func TestKilledInANewLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.size = 8
		a, stop := start(t, w)
		attach(t, a, "web")
		attach(t, a, "db")
		w.set(func() { w.stated = overlay.Version{Incarnation: 1, Number: 50} })
		_, free := w.slowDown(func(c Change) bool { return c.Put == nil && len(c.Records) > 1 })
		w.peersCh <- struct{}{}
		synctest.Wait()
		all := func(when string) {
			t.Helper()
			newest := map[string]uint64{}
			for _, s := range w.published {
				r := record(t, s)
				newest[r.Workload] = max(newest[r.Workload], r.Incarnation)
			}
			for _, name := range []string{"web", "db", "late"} {
				if newest[name] != 2 {
					t.Errorf("%s was stated in life %d %s, want 2", name, newest[name], when)
				}
			}
			w.set(func() { w.published = nil })
		}
		attach(t, a, "late") // puts the new life on the disk, and takes the old one from the others
		all("with the first of it")
		free(errKilled)
		stop()
		_, stop = start(t, w)
		defer stop()
		synctest.Wait()
		all("after a restart")
	})
}

// A lease is not cut into more pieces than a statement holds.
func TestALeaseIsNotShredded(t *testing.T) {
	w := newWorld()
	w.size, w.limit = 240, 240
	a, _ := start(t, w)
	attach(t, a, "web")
	var asked []netip.Addr
	ip := netip.MustParseAddr("10.20.0.3")
	for range 115 {
		asked = append(asked, ip)
		ip = ip.Next().Next()
	}
	r, err := a.Release(t.Context(), overlay.ReleaseRequest{Network: blue, Addrs: asked})
	if err != nil || r.Release == nil {
		t.Fatalf("%+v, %v", r, err)
	}
	var s overlay.Release
	if err := r.Release.Decode(overlay.DomainRelease, &s); err != nil {
		t.Fatal(err)
	}
	left, _ := overlay.Split(w.leased().Grants, s.Grants)
	if len(s.Grants) < maxRuns/2 || len(s.Grants) > maxRuns || len(left) > maxRuns {
		t.Errorf("%d runs are given up, and the lease is left with %d", len(s.Grants), len(left))
	}
}

// A detach whose asker has gone meanwhile is told all the same: nobody would tell of it later.
func TestADetachIsToldThoughItsAskerHasGone(t *testing.T) {
	for range 20 { // a call to the loop takes either way when its context has ended
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			a, stop := start(t, w)
			defer stop()
			attach(t, a, "web")
			held, free := w.slowDown(deletes)
			w.set(func() { w.published = nil })
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- detach(ctx, a, "web", "") }()
			<-held
			cancel()
			free(nil)
			<-done
			if len(w.published) != 1 || !record(t, w.published[0]).Deleted {
				t.Errorf("%d records were told, want the tombstone", len(w.published))
			}
		})
	}
}
