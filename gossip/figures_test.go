//go:build !race

package gossip

import (
	"bytes"
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"text/tabwriter"
	"time"
)

var (
	participants = flag.Int("participants", 100, "participants of the network in TestFigures")
	endpoints    = flag.Int("endpoints", 100, "endpoints that appear on one node in TestFigures")
)

// TestFigures simulates the figures of the design's section 10 that need more nodes than a machine
// has. heddle's own part is the real one, with all its checks. Membership is given: memberlist
// sends packets and detects nothing, since a thousand of its nodes say little about heddle. Each
// node has one core, which is charged what the work was measured to take on this machine.
//
// As a test it is small; `make sim` has the design's numbers.
func TestFigures(t *testing.T) {
	cost, record := measure(t)
	var table bytes.Buffer
	out := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "what\tp50\tp99\tlast\twanted p99\t\tpackets\tdropped\tstreams")
	figure := func(what string, n int, loss float64, wanted time.Duration, run func(w *world) []time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, n)
			defer w.stop()
			w.given()
			w.lan.delay, w.lan.jitter, w.lan.loss, w.lan.cost = 500*time.Microsecond, time.Millisecond, loss, cost
			took := run(w)
			slices.Sort(took)
			p99, verdict := took[len(took)*99/100], "met"
			if p99 > wanted {
				verdict = "MISSED"
				t.Errorf("%s: %s, wanted %s", what, p99, wanted)
			}
			fmt.Fprintf(out, "%s\t%.1f ms\t%.1f ms\t%.1f ms\t≤ %s\t%s\t%d\t%d\t%d\n",
				what, ms(took[len(took)/2]), ms(p99), ms(took[len(took)-1]), wanted, verdict, w.lan.sent, w.lan.over, w.lan.dials.Load())
		})
	}
	change := func(w *world) (all []time.Duration) {
		for i := range 5 {
			all = append(all, w.spread(w.peers[i], func() { w.peers[i].attach(0) })...)
			time.Sleep(time.Second)
		}
		return all
	}
	one := fmt.Sprintf("one change on one node → at %d others", *participants-1)
	many := fmt.Sprintf("%d endpoints on one node → at 100 others", *endpoints)
	figure(one+", no loss", *participants, 0, 250*time.Millisecond, change)
	figure(one+", 30 % loss", *participants, 0.3, 2*time.Second, change)
	figure(many+", in one push", 101, 0, time.Second, func(w *world) []time.Duration {
		return w.spread(w.peers[0], func() { w.peers[0].attach(upTo(*endpoints)...) })
	})
	figure(many+", attached at the same time", 101, 0, time.Second, func(w *world) []time.Duration {
		return w.spread(w.peers[0], func() {
			var g sync.WaitGroup
			for e := range *endpoints {
				r := w.peers[0].record(e)
				g.Go(func() { w.peers[0].say(100*time.Millisecond, r) })
			}
			g.Wait()
		})
	})
	out.Flush()
	t.Logf("on each node's core a packet costs %s, a record %s, a stream %s and %.2f ns per byte; one way is 0.5 to 1.5 ms\n%s",
		cost.packet, record, cost.handshake, cost.streamByte, &table)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// spread says how long it takes from when a node begins to say something until each other node
// knows all of it.
func (w *world) spread(speaker *peer, say func()) (took []time.Duration) {
	var mu sync.Mutex
	at := map[*peer]time.Time{}
	begin := time.Now()
	for _, p := range w.peers {
		if p != speaker {
			p.mu.Lock()
			p.watch[speaker.Self] = func() {
				mu.Lock()
				defer mu.Unlock()
				at[p] = time.Now()
			}
			p.mu.Unlock()
		}
	}
	say()
	w.within(time.Minute, "all know", func() bool { return w.agree(speaker) })
	synctest.Wait()
	for _, t := range at {
		took = append(took, t.Sub(begin))
	}
	return took
}
