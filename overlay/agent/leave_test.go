package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// departing is a world with a workload of a service that is being detached.
type departing struct {
	*world
	t    *testing.T
	a    *Agent
	stop func()
	busy bool  // a connection stands
	err  error // why that can't be seen
	done chan error
	late []string
}

// depart runs f a moment after the detach of a workload has begun. prepare may change the world
// before.
func depart(t *testing.T, grace string, prepare func(*departing), f func(*departing)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := &departing{world: newWorld(), t: t, busy: true}
		d.size = 8
		d.connected = func(string) (bool, error) { return d.busy, d.err }
		d.serve(tcp)
		d.a, d.stop = start(t, d.world)
		defer func() { d.stop() }()
		attachTo(d.t, d.a, "web", "w1", "/w1")
		attach(d.t, d.a, "client")
		time.Sleep(time.Second)
		d.said(d.t)
		prepare(d)
		d.done = d.detach(grace)
		time.Sleep(time.Millisecond)
		f(d)
	})
}

func nothing(*departing) {}

// detach begins to detach w1 with a grace, "" for the default.
func (d *departing) detach(grace string) chan error {
	r := overlay.DetachRequest{Name: "w1"}
	if g, err := time.ParseDuration(grace); err == nil {
		r.Grace = &g
	}
	done := make(chan error, 1)
	go func() {
		reply, err := d.a.Detach(d.t.Context(), r)
		d.set(func() { d.late = append(d.late, reply.Silent...) })
		done <- err
	}()
	return done
}

// leaves fails the test unless the workload leaves, and is still whole.
func (d *departing) leaves(when string) {
	d.t.Helper()
	e := d.row(d.t, d.a, "w1")
	if in := rotation(d.t, d.a); e.Health != overlay.HealthLeaving || e.State != overlay.EndpointReady || len(d.wanted(e)) == 0 || in != "w1 leaving" {
		d.t.Errorf("%s: %+v, in rotation is %s", when, e, in)
	}
	select {
	case err := <-d.done:
		d.t.Errorf("%s: the detach has ended: %v", when, err)
	default:
	}
}

// goes fails the test unless the workload is gone after a while from now, and was not before.
func (d *departing) goes(when string, from, to time.Duration) {
	d.t.Helper()
	begin := time.Now()
	err := <-d.done
	took := time.Since(begin)
	rows, _ := d.a.Endpoints(d.t.Context())
	if err != nil || took < from || took > to || len(rows) != 1 || len(d.saved.Endpoints) != 1 { // the client stays
		d.t.Errorf("%s: it took %s, want %s to %s: %v, %+v", when, took, from, to, err, rows)
	}
	if got := d.said(d.t); got != `"leaving" gone` {
		d.t.Errorf("%s: told were %s", when, got)
	}
}

// What is in a service goes when its last connection has ended, or its grace is over.
func TestLeaving(t *testing.T) {
	set := func(d *departing, f func()) { d.set(f) }
	depart(t, "", nothing, func(d *departing) {
		d.leaves("a connection stands")
		time.Sleep(5 * time.Second)
		d.leaves("it stands still")
		set(d, func() { d.busy = false })
		d.goes("the last has ended", 0, 150*time.Millisecond)
	})
	depart(t, "", nothing, func(d *departing) { d.goes("a connection stays", graceTime-time.Second, graceTime) })
	depart(t, "3s", nothing, func(d *departing) { d.goes("a connection stays, with a grace", 2900*time.Millisecond, 3*time.Second) })
	depart(t, "0s", nothing, func(d *departing) { d.goes("without grace", 0, time.Millisecond) })
	quiet := func(d *departing) { d.busy = false }
	depart(t, "", quiet, func(d *departing) { d.goes("without connections", 0, 50*time.Millisecond) })
	unseen := func(d *departing) { d.err = errors.New("no sock_diag") }
	depart(t, "4s", unseen, func(d *departing) { d.goes("what can't be seen", 3900*time.Millisecond, 4*time.Second) })
	gone := func(d *departing) { d.err = overlay.Errorf(overlay.NotFound, "no namespace") }
	depart(t, "", gone, func(d *departing) { d.goes("without a namespace", 0, time.Millisecond) })
	for acks, at := range map[time.Duration]time.Duration{300 * time.Millisecond: 400 * time.Millisecond, time.Hour: aloneTime + 100*time.Millisecond} {
		depart(t, "", func(d *departing) { set(d, func() { d.busy, d.acks = false, acks }) }, func(d *departing) {
			time.Sleep(min(acks, aloneTime) - 10*time.Millisecond)
			d.leaves("not all have acknowledged")
			d.goes("all have, or it was long enough", 0, at-min(acks, aloneTime)+50*time.Millisecond)
			if late := len(d.late) > 0; late != (acks > aloneTime) {
				t.Errorf("late are %v", d.late)
			}
		})
	}
	depart(t, "", func(d *departing) { set(d, func() { d.silent = []overlay.NodeID{other} }) }, func(d *departing) {
		set(d, func() { d.busy = false })
		d.goes("one does not acknowledge", 0, 150*time.Millisecond)
		if !slices.Equal(d.late, []string{"bee"}) {
			t.Errorf("late are %v", d.late)
		}
	})
}

// What nobody comes to by more than its own name goes at once, by one record.
func TestWhoServesNobodyDoesNotLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.connected = func(string) (bool, error) { t.Error("its connections are looked at"); return true, nil }
		w.serve(tcp)
		a, stop := start(t, w)
		defer stop()
		r := overlay.AttachRequest{Name: "db", Network: "blue", Netns: "/db", Labels: map[string]string{"tier": "back"}, Aliases: []string{"store"}}
		if _, err := a.Attach(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := detach(t.Context(), a, "db", ""); err != nil {
			t.Fatal(err)
		}
		if got := w.said(t); got != `"" gone` || time.Since(begin) > 0 {
			t.Errorf("told were %s, after %s", got, time.Since(begin))
		}
		attachTo(t, a, "web", "w1", "/w1") // and so does who is alone
		time.Sleep(time.Second)
		w.said(t)
		if err := detach(t.Context(), a, "w1", ""); err != nil || w.said(t) != "gone" {
			t.Error(err)
		}
	})
}

// A second detach cuts the grace short, and lengthens none; who has gone meanwhile ends nothing.
func TestAGraceIsCutShort(t *testing.T) {
	depart(t, "", nothing, func(d *departing) {
		time.Sleep(time.Second)
		longer, shorter := d.detach("1m"), d.detach("2s")
		time.Sleep(time.Second)
		d.leaves("two want it otherwise")
		last := d.detach("0s")
		d.goes("one wants it now", 0, time.Millisecond)
		for _, other := range []chan error{longer, shorter, last} {
			if err := <-other; err != nil {
				t.Errorf("another detach: %v", err)
			}
		}
	})
	depart(t, "", nothing, func(d *departing) {
		ctx, cancel := context.WithTimeout(d.t.Context(), time.Second)
		defer cancel()
		if err := detach(ctx, d.a, "w1", ""); overlay.KindOf(err) != overlay.Unavailable || !strings.Contains(err.Error(), "--grace 0") {
			t.Errorf("who gives up is told %v", err)
		}
		d.leaves("one has given up")
		d.goes("the grace is over", 8*time.Second, 9*time.Second)
	})
}

// The same name is attached again when it has left, wherever that is.
func TestAttachedAgainWhileItLeaves(t *testing.T) {
	depart(t, "", nothing, func(d *departing) {
		before := d.row(d.t, d.a, "w1")
		attached := make(chan overlay.Endpoint)
		go func() { attached <- attachTo(d.t, d.a, "web", "w1", "/elsewhere") }()
		time.Sleep(time.Second)
		d.leaves("another waits for its name")
		d.set(func() { d.busy = false })
		if err := <-d.done; err != nil {
			t.Error(err)
		}
		if e := <-attached; e.ID == before.ID || e.IPv4 == before.IPv4 || e.Namespace != "/elsewhere" {
			t.Errorf("%+v, before %+v", e, before)
		}
	})
}

// A node that is stopped or killed meanwhile goes on when it is back, within the same grace.
func TestRestartedWhileAWorkloadLeaves(t *testing.T) {
	for name, away := range map[string]time.Duration{"for a moment": time.Second, "for longer": time.Minute} {
		depart(t, "", nothing, func(d *departing) {
			time.Sleep(time.Second)
			d.stop()
			if err := <-d.done; overlay.KindOf(err) != overlay.Unavailable {
				t.Errorf("%s: who waited is told %v", name, err)
			}
			d.said(d.t)
			time.Sleep(away)
			d.a, d.stop = start(d.t, d.world)
			begin := time.Now()
			for len(d.row(d.t, d.a, "w1").ID) > 0 {
				if away < graceTime && time.Since(begin) < 7*time.Second {
					d.leaves("restarted")
				}
				time.Sleep(10 * time.Millisecond)
			}
			if took, most := time.Since(begin), max(0, graceTime-away)+20*time.Millisecond; took > most || d.said(d.t) != `"" "leaving" gone` {
				t.Errorf("%s: it took %s, want at most %s", name, took, most)
			}
			if len(d.saved.Endpoints) != 1 {
				t.Errorf("%s: on the disk: %+v", name, d.saved.Endpoints)
			}
		})
	}
	depart(t, "", nothing, func(d *departing) {
		d.stop()
		<-d.done
		d.set(func() { d.busy = false })
		d.a, d.stop = start(d.t, d.world)
		time.Sleep(50 * time.Millisecond)
		if e := d.row(d.t, d.a, "w1"); e.ID != "" {
			t.Errorf("its connections have ended: %+v", e)
		}
	})
	depart(t, "10m", nothing, func(d *departing) {
		d.stop()
		<-d.done
		d.boot = "b2"
		d.a, d.stop = start(d.t, d.world)
		time.Sleep(50 * time.Millisecond)
		if e := d.row(d.t, d.a, "w1"); e.ID != "" {
			t.Errorf("after a reboot nothing is left of it: %+v", e)
		}
	})
}

// What can't be written to the disk does not leave, and is as before.
func TestLeavingOnAFullDisk(t *testing.T) {
	full := errors.New("no space left on device")
	depart(t, "", func(d *departing) { d.set(func() { d.saveErr = full }) }, func(d *departing) {
		if err := <-d.done; !errors.Is(err, full) {
			t.Errorf("it ends with %v", err)
		}
		e := d.row(d.t, d.a, "w1")
		if in := rotation(d.t, d.a); e.Health != "healthy" || in != "w1" || d.said(d.t) != "" {
			t.Errorf("%+v, in rotation is %s", e, in)
		}
		d.set(func() { d.saveErr, d.sick["/w1"] = nil, "refused" })
		time.Sleep(2 * time.Second)
		if got := d.said(d.t); got != `"unhealthy: refused"` {
			t.Errorf("it is probed no more: told were %s", got)
		}
		d.set(func() { d.busy = false })
		d.done = d.detach("")
		d.goes("there is room", 0, 150*time.Millisecond)
	})
}

// Who leaves the cluster waits for no connection.
func TestDropWaitsForNoConnection(t *testing.T) {
	depart(t, "", nothing, func(d *departing) {
		attachTo(d.t, d.a, "web", "w2", "/w2")
		synctest.Wait()
		d.said(d.t)
		begin := time.Now()
		if err := d.a.Drop(d.t.Context()); err != nil || time.Since(begin) > time.Millisecond {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
		if err := <-d.done; err != nil {
			t.Error(err)
		}
		if got := d.said(d.t); got != "gone gone gone" {
			t.Errorf("told were %s", got)
		}
	})
}
