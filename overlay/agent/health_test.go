package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// serve makes web a service of blue, with a check where there is one.
func (w *world) serve(h overlay.Health) {
	id := overlay.ServiceID("5e000000000000000000000000000000")
	w.set(func() {
		f := *w.facts
		f.Revision++
		f.Services = map[overlay.ServiceID]overlay.Service{id: {ID: id, Network: blue, Updated: f.Revision, ServiceSpec: overlay.ServiceSpec{
			Name: "web", Mode: overlay.ModeVIP, Ports: []overlay.ServicePort{{Proto: "tcp", Port: 80, Target: 8080}}, Health: h, Selector: map[string]string{"tier": "front"},
		}}}
		if n, ok := w.saved.Counters[blue]; ok && n.Number > 0 {
			f.Networks = map[overlay.NetworkID]overlay.Network{blue: blueNet}
		}
		w.facts = &f
	})
	select {
	case w.factsCh <- struct{}{}:
	default:
	}
}

func attachTo(t *testing.T, a *Agent, service, name, netns string) overlay.Endpoint {
	t.Helper()
	r, err := a.Attach(t.Context(), overlay.AttachRequest{Name: name, Network: "blue", Netns: netns, Service: service})
	if err != nil {
		t.Fatal(err)
	}
	return r.Endpoint
}

// said are the records told since the last call: their healths, or "gone".
func (w *world) said(t *testing.T) string {
	t.Helper()
	var all []string
	for {
		select {
		case s := <-w.told:
			if r := record(t, s); r.Deleted {
				all = append(all, "gone")
			} else {
				all = append(all, `"`+r.Health+`"`)
			}
			continue
		default:
		}
		return strings.Join(all, " ")
	}
}

// probes counts those of what is in a namespace.
func (w *world) probes(netns string) (n int) {
	w.set(func() { n = w.probed[netns] })
	return n
}

// rotation are the workloads of web that this node uses, and why it does not use the others.
func rotation(t *testing.T, a *Agent) string {
	t.Helper()
	var all []string
	if err := a.do(t.Context(), func(context.Context) {
		for _, s := range a.network(blue).services {
			for _, b := range s.Backends {
				if b.Used != (b.Out == "") || b.Since.After(time.Now()) {
					t.Errorf("%+v", b)
				}
				all = append(all, strings.TrimSpace(b.Workload+" "+string(b.Out)))
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, ", ")
}

var tcp = overlay.Health{Kind: overlay.HealthTCP}

// A workload is starting until its first success, out of rotation soon after it is killed, and back
// when it is. Only what changes is told.
func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.serve(tcp)
		a, stop := start(t, w)
		state := func(when, told, row, inRotation string) {
			t.Helper()
			synctest.Wait()
			if got := w.said(t); got != told {
				t.Errorf("%s: told were %s, want %s", when, got, told)
			}
			if got := w.row(t, a, "w1").Health; got != row {
				t.Errorf("%s: it is %q, want %q", when, got, row)
			}
			if got := rotation(t, a); got != inRotation {
				t.Errorf("%s: in rotation is %s, want %s", when, got, inRotation)
			}
		}
		w.set(func() { w.sick["/w1"] = "refused" })
		attachTo(t, a, "web", "w1", "/w1")
		state("attached", `"starting"`, "starting", "w1 starting")
		time.Sleep(time.Minute)
		state("it does not start", `"starting: refused"`, "starting: refused", "w1 starting")
		w.set(func() { delete(w.sick, "/w1") })
		time.Sleep(550 * time.Millisecond)
		state("it starts", `"healthy"`, "healthy", "w1")
		time.Sleep(time.Minute)
		w.set(func() { w.sick["/w1"] = "refused\nby all" })
		time.Sleep(1100 * time.Millisecond)
		state("it is killed", `"unhealthy: refused by all"`, "unhealthy: refused by all", "w1 unhealthy")
		w.set(func() { w.sick["/w1"] = "otherwise" })
		time.Sleep(time.Minute)
		state("it fails for another reason", "", "unhealthy: refused by all", "w1 unhealthy")
		stop()
		a, stop = start(t, w)
		time.Sleep(time.Minute)
		state("restarted", `"unhealthy: refused by all"`, "unhealthy: refused by all", "w1 unhealthy") // by the same record
		w.set(func() { delete(w.sick, "/w1") })
		time.Sleep(550 * time.Millisecond)
		state("it is back", `"healthy"`, "healthy", "w1")
		stop()
		w.set(func() { w.sick["/w1"] = "refused" })
		a, stop = start(t, w)
		defer stop()
		state("restarted, and its first probe failed", `"healthy"`, "healthy", "w1")
		time.Sleep(600 * time.Millisecond)
		state("so did the next", `"unhealthy: refused"`, "unhealthy: refused", "w1 unhealthy")
		w.serve(overlay.Health{})
		state("it has no check any more", `""`, "", "w1")
		before := w.probes("/w1")
		time.Sleep(time.Minute)
		if w.probes("/w1") > before {
			t.Error("it is still probed")
		}
	})
}

// A check that a service gets later puts nothing out of rotation that does not fail, and says
// nothing before it knows.
func TestACheckComesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.size = 8
		w.serve(overlay.Health{})
		a, stop := start(t, w)
		defer stop()
		attachTo(t, a, "web", "w1", "/w1")
		attachTo(t, a, "web", "w2", "/w2")
		attachTo(t, a, "other", "w3", "/w3")
		time.Sleep(time.Second)
		if got := w.said(t); got != `"" "" ""` {
			t.Errorf("told were %s", got)
		}
		w.set(func() { w.sick["/w2"], w.sick["/w3"] = "refused", "refused" })
		w.serve(tcp)
		synctest.Wait()
		if got, in := w.said(t), rotation(t, a); got != `"healthy"` || !strings.Contains(in, "w1") || !strings.Contains(in, "w2") || strings.Contains(in, "unhealthy") {
			t.Errorf("told were %s; in rotation is %s", got, in)
		}
		time.Sleep(550 * time.Millisecond)
		if got := w.said(t); got != `"unhealthy: refused"` {
			t.Errorf("told were %s", got)
		}
		if w.probes("/w3") > 0 {
			t.Error("what is not in the service is probed")
		}
	})
}

// A workload may have a check of its own, and is healthy when it passes all.
func TestAllChecksCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.serve(tcp)
		a, stop := start(t, w)
		defer stop()
		_, err := a.Attach(t.Context(), overlay.AttachRequest{
			Name: "w1", Network: "blue", Netns: "/w1", Labels: map[string]string{"tier": "front"},
			Health: overlay.Health{Kind: overlay.HealthCmd, Command: "true", Interval: 10 * time.Second},
		})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := w.said(t); got != `"starting" "healthy"` {
			t.Errorf("told were %s", got)
		}
		time.Sleep(101 * time.Second)
		if n := w.probes("/w1"); n < 200+9 || n > 225+12 {
			t.Errorf("there were %d probes of two checks, every 0.5 and every 10 s", n)
		}
	})
}

// A workload's probes end with it, however that goes.
func TestProbesEndWithTheWorkload(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *world, *Agent){
		"detached": func(t *testing.T, _ *world, a *Agent) {
			if err := detach(t.Context(), a, "w1", ""); err != nil {
				t.Fatal(err)
			}
		},
		"lost": func(t *testing.T, w *world, a *Agent) { w.set(func() { w.inodes["/w1"] = gone }) },
		"its network is removed": func(t *testing.T, w *world, a *Agent) {
			w.set(func() {
				w.facts = &overlay.Facts{V: 1, Revision: 99, Place: place, Nodes: map[overlay.NodeID]overlay.Node{}}
			})
			w.factsCh <- struct{}{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.serve(tcp)
				a, stop := start(t, w)
				defer stop()
				attachTo(t, a, "web", "w1", "/w1")
				time.Sleep(time.Minute)
				end(t, w, a)
				time.Sleep(3 * time.Second)
				before := w.probes("/w1")
				time.Sleep(time.Minute)
				if before < 100 || w.probes("/w1") > before {
					t.Errorf("%d probes, then %d", before, w.probes("/w1"))
				}
			})
		})
	}
}

// Others are told although the disk is full.
func TestHealthOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.serve(tcp)
		a, stop := start(t, w)
		defer stop()
		attachTo(t, a, "web", "w1", "/w1")
		time.Sleep(time.Second)
		w.said(t)
		w.set(func() { w.saveErr, w.sick["/w1"] = errors.New("no space left on device"), "refused" })
		time.Sleep(time.Minute)
		if got := w.said(t); got != `"unhealthy: refused"` {
			t.Errorf("told were %s", got)
		}
	})
}

// A node that is given nothing more takes no new workloads, and leaves those that it has.
func TestNoNewWorkloads(t *testing.T) {
	for _, av := range []overlay.Availability{overlay.Pause, overlay.Drain} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.size = 8
			w.serve(tcp)
			a, stop := start(t, w)
			defer stop()
			attachTo(t, a, "web", "w1", "/w1")
			time.Sleep(time.Second)
			set := func(av overlay.Availability) {
				w.set(func() {
					f := *w.facts
					f.Revision++
					f.Networks = map[overlay.NetworkID]overlay.Network{blue: blueNet}
					f.Nodes = map[overlay.NodeID]overlay.Node{self: {ID: self, Name: "ay", Availability: av}}
					w.facts = &f
				})
				w.factsCh <- struct{}{}
				synctest.Wait()
			}
			set(av)
			_, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "w2", Network: "blue"})
			if overlay.KindOf(err) != overlay.Denied || !strings.Contains(err.Error(), string(av)) {
				t.Errorf("%s: a new one: %v", av, err)
			}
			attachTo(t, a, "web", "w1", "/w1") // again
			want := map[overlay.Availability]string{overlay.Pause: "w1", overlay.Drain: "w1 draining"}[av]
			if got := rotation(t, a); got != want {
				t.Errorf("%s: in rotation is %s, want %s", av, got, want)
			}
			set(overlay.Active)
			attachTo(t, a, "web", "w2", "/w2")
		})
	}
}
