package agent

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

var churn = flag.Int("churn", 3000, "workloads that come and go in TestTombstonesGo")

// hearer is what another node holds of what it is told, where nothing is lost.
type hearer struct {
	t     *testing.T
	most  int
	floor overlay.Version
	held  map[overlay.EndpointID]overlay.Record
}

// hear takes in all that was told.
func (h *hearer) hear(w *world) {
	w.set(func() {
		for _, s := range w.published {
			var r overlay.Record
			if err := s.Decode(overlay.DomainRecord, &r); err != nil {
				h.t.Fatal(err)
			}
			if r.Version().Compare(h.held[r.Endpoint].Version()) > 0 && r.Version().Compare(h.floor) > 0 {
				h.held[r.Endpoint] = r
			}
			if r.Floor > 0 {
				h.floor = overlay.Version{Incarnation: r.Incarnation, Number: r.Floor}
			}
			maps.DeleteFunc(h.held, func(_ overlay.EndpointID, old overlay.Record) bool { return old.Version().Compare(h.floor) <= 0 })
		}
		w.published = nil
	})
	h.most = max(h.most, len(h.held))
}

// standing are the workloads that it takes to stand.
func (h *hearer) standing() (names []string) {
	for _, r := range h.held {
		if !r.Deleted {
			names = append(names, r.Workload)
		}
	}
	slices.Sort(names)
	return names
}

// cycle attaches and detaches some workloads.
func cycle(t *testing.T, a *Agent, n int) {
	t.Helper()
	for range n {
		attach(t, a, "brief")
		if err := detach(t.Context(), a, "brief", ""); err != nil {
			t.Fatal(err)
		}
	}
}

// kept is how many of its records an agent keeps.
func kept(t *testing.T, a *Agent) (n int) {
	t.Helper()
	if err := a.do(t.Context(), func(context.Context) { n = len(a.networks[blue].own) }); err != nil {
		t.Fatal(err)
	}
	return n
}

// listen takes what is told off the channel, until the end of the test.
func (w *world) listen(t *testing.T) {
	end := make(chan struct{})
	var g sync.WaitGroup
	g.Go(func() {
		for {
			select {
			case <-w.told:
			case <-end:
				return
			}
		}
	})
	t.Cleanup(func() { close(end); g.Wait() })
}

// However many workloads come and go, what is kept of them stays small, here, on the disk and with
// others. Nobody ever hears that one that stands is gone.
func TestTombstonesGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.floors = true
		w.listen(t)
		a, stop := start(t, w)
		h := hearer{t: t, held: map[overlay.EndpointID]overlay.Record{}}
		var want []string
		for i := range 3 {
			attach(t, a, fmt.Sprint("stays-", i))
			want = append(want, fmt.Sprint("stays-", i))
			for range *churn / 300 {
				cycle(t, a, 100)
				time.Sleep(tidyEvery)
				attach(t, a, "stays-0") // again
				if h.hear(w); !slices.Equal(h.standing(), want) {
					t.Fatalf("others hear that %v stand, want %v", h.standing(), want)
				}
				w.set(func() {
					if n := len(w.saved.Records); n > 1000 {
						t.Errorf("%d records are on the disk", n)
					}
				})
			}
		}
		stop()
		a, stop = start(t, w)
		defer stop()
		attach(t, a, "after")
		if h.hear(w); !slices.Equal(h.standing(), append([]string{"after"}, want...)) {
			t.Errorf("after a restart others hear that %v stand", h.standing())
		}
		if n := kept(t, a); h.most > 2*keptGone+200 || n > 2*keptGone+200 {
			t.Errorf("others held up to %d records, and this node holds %d", h.most, n)
		}
	})
}

// Nothing goes while one that is told does not go by floors.
func TestTombstonesStayForWhoNeedsThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.listen(t)
		a, stop := start(t, w)
		defer stop()
		cycle(t, a, 1000)
		time.Sleep(2 * tidyEvery)
		if n := kept(t, a); n != 1000 {
			t.Errorf("%d tombstones are left of 1000", n)
		}
		w.set(func() { w.floors = true })
		time.Sleep(2 * tidyEvery)
		if n := kept(t, a); n > keptGone+1 {
			t.Errorf("%d tombstones are left, and nobody needs them", n)
		}
	})
}

// What is on its way while tombstones go counts, whatever becomes of it.
func TestTombstonesGoBesideAnAttach(t *testing.T) {
	for _, outcome := range []error{nil, errKilled} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.floors = true
			w.listen(t)
			a, stop := start(t, w)
			defer stop()
			h := hearer{t: t, held: map[overlay.EndpointID]overlay.Record{}}
			cycle(t, a, 300)
			held, free := w.slowDown(func(c Change) bool { return c.Put != nil && c.Put.Workload == "slow" })
			attached := make(chan error, 1)
			go func() {
				_, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "slow", Network: "blue"})
				attached <- err
			}()
			<-held
			cycle(t, a, 300)
			time.Sleep(2 * tidyEvery)
			if h.hear(w); len(h.held) > 2*keptGone+300 || len(h.standing()) > 0 {
				t.Errorf("%d records are held of 600; %v stand", len(h.held), h.standing())
			}
			free(outcome)
			var want []string
			if err := <-attached; err == nil {
				want = append(want, "slow")
			} else if len(w.skipped) == 0 {
				t.Error("others wait for the record that was never said")
			}
			for range 2 {
				if h.hear(w); !slices.Equal(h.standing(), want) {
					t.Errorf("%v stand, want %v", h.standing(), want)
				}
				cycle(t, a, 300)
				time.Sleep(2 * tidyEvery)
			}
		})
	}
}

// What can't be made durable is not said, and keeps nobody waiting for its numbers.
func TestTombstonesOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.floors = true
		w.listen(t)
		a, stop := start(t, w)
		defer stop()
		attach(t, a, "stays")
		cycle(t, a, 400)
		w.set(func() { w.published, w.saveErr = nil, errKilled })
		time.Sleep(tidyEvery + time.Second)
		w.set(func() {
			if len(w.published) > 0 || len(w.skipped) != 2 {
				t.Errorf("%d records were said, %v skipped; want none, and two", len(w.published), w.skipped)
			}
			w.saveErr = nil
		})
		time.Sleep(tidyEvery)
		if n := kept(t, a); n > keptGone+2 {
			t.Errorf("%d records are kept", n)
		}
	})
}
