//go:build !race

package gossip

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// owner is what an agent does with a node's records: endpoints come and go, and tombstones are
// dropped.
type owner struct {
	*peer
	own  map[overlay.EndpointID]overlay.Record
	ever []overlay.Signed
}

func (o *owner) say(rs ...overlay.Record) {
	var signed []overlay.Signed
	for _, r := range rs {
		o.said++
		r.V, r.Place, r.Network, r.Owner, r.Incarnation, r.Number = 1, place, blue, o.Self, 1, o.said
		o.own[r.Endpoint] = r
		signed = append(signed, state(o.world.t, overlay.DomainRecord, seed(string(o.Self)), r))
	}
	o.ever = append(o.ever, signed...)
	o.peer.say(100*time.Millisecond, signed...)
}

// change attaches or detaches an endpoint.
func (o *owner) change(e int) {
	r := overlay.Record{Endpoint: overlay.EndpointID(fmt.Sprintf("%032x", e+1)), Deleted: true}
	if old, there := o.own[r.Endpoint]; !there || old.Deleted {
		r.Deleted, r.Workload, r.MAC, r.IPs = false, "web", overlay.MAC{2, 0, 0, 0, 0, byte(e)}, []netip.Addr{addrAt(0, e)}
	}
	o.say(r)
}

// sink drops the tombstones but the newest.
func (o *owner) sink(keep uint64) {
	floor := o.said - keep
	var again []overlay.Record
	for id, r := range o.own {
		if r.Number <= floor {
			delete(o.own, id)
			if !r.Deleted {
				again = append(again, r)
			}
		}
	}
	o.say(append(again, overlay.Record{Endpoint: overlay.EndpointID(fmt.Sprintf("ff%030x", o.said)), Deleted: true, Floor: floor})...)
}

// restart starts the owner again with what its disk keeps.
func (o *owner) restart() {
	o.stop()
	o.peer = o.world.start(0)
	for o.Join(context.Background(), []netip.AddrPort{o.world.peers[1].host.at}) != nil {
		time.Sleep(time.Second)
	}
	var signed []overlay.Signed
	for _, r := range slices.SortedFunc(maps.Values(o.own), func(x, y overlay.Record) int { return x.Version().Compare(y.Version()) }) {
		signed = append(signed, state(o.world.t, overlay.DomainRecord, seed(string(o.Self)), r))
	}
	o.peer.say(0, signed...)
	o.Skip(blue, overlay.Version{Incarnation: 1, Number: 1}, overlay.Version{Incarnation: 1, Number: o.said})
}

// late gives a node something that was said long ago.
func (o *owner) late(to *peer, s overlay.Signed) {
	to.takeParts([]part{{Network: blue, Batches: []batch{{Owner: o.Self, Leases: []overlay.Signed{o.lease}, Records: []record{{Signed: s}}}}}})
}

func (o *owner) standing() (ids []overlay.EndpointID) {
	for id, r := range o.own {
		if !r.Deleted {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (p *peer) standing() (ids []overlay.EndpointID) {
	for _, c := range p.Claims(blue) {
		ids = append(ids, c.Record.Endpoint)
	}
	return ids
}

// Endpoints come and go for long, with packets lost, nodes cut off, and what was said long ago
// brought by whoever has it. In the end all hold what stands, and little else, and what is late
// brings nothing back.
func TestTombstonesGoEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5)
		defer w.stop()
		w.contact()
		w.lan.loss, w.lan.twice, w.lan.jitter = 0.1, 0.1, 20*time.Millisecond
		o := owner{peer: w.peers[0], own: map[overlay.EndpointID]overlay.Record{}}
		for round := range 24 {
			switch round % 6 {
			case 1, 4:
				side := map[overlay.NodeID]bool{w.all[1+rand.IntN(4)]: true, w.all[1+rand.IntN(4)]: true}
				w.lan.partition(func(from, to overlay.NodeID) bool { return side[from] != side[to] })
			case 3:
				w.lan.heal()
			case 5:
				w.lan.heal()
				w.peers[1+rand.IntN(4)].stop()
			}
			for range 25 {
				o.change(rand.IntN(20))
				o.late(w.peers[1+rand.IntN(4)], o.ever[rand.IntN(len(o.ever))])
			}
			if round%2 == 1 {
				o.sink(20)
			}
			for i, p := range w.peers {
				if p.life.Err() != nil {
					w.start(i)
					_ = w.peers[i].Join(context.Background(), []netip.AddrPort{w.peers[0].host.at, w.peers[1].host.at})
				}
			}
			if round == 12 {
				o.restart()
			}
		}
		o.sink(0)
		w.lan.heal()
		w.lan.loss, w.lan.twice = 0, 0
		w.within(time.Minute, "all know", func() bool { return w.agree(o.peer) })
		for range 2 {
			for i, p := range w.peers {
				p.Node.mu.Lock()
				held := len(p.table.Missing(blue, nil)[0].Claims)
				p.Node.mu.Unlock()
				if !slices.Equal(p.standing(), o.standing()) || held > len(o.own) {
					t.Errorf("node %d holds %d records; to it %v stand, want %v", i, held, p.standing(), o.standing())
				}
				for _, s := range o.ever {
					o.late(p, s)
				}
			}
		}
		t.Logf("%d records were said, %d are left, of %d endpoints; the largest frame had %d bytes", len(o.ever), len(o.own), len(o.standing()), w.lan.frame)
	})
}
