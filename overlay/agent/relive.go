package agent

import (
	"context"
	"maps"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// relive begins a new life of this node's records in networks of which others hold more of them
// than this node remembers, as after its disk was set back: what it said in the life before
// does not count any more, and what stands is said again. It may have come to the same numbers
// meanwhile, and mean something else by them. In the loop.
func (a *Agent) relive(ctx context.Context) {
	for id, n := range a.networks {
		stated := a.Peers.Stated(id)
		lease, leased := n.leases[a.Self]
		if n.def.ID == "" || !leased || stated.Compare(n.known) <= 0 || stated.Incarnation < n.Incarnation {
			continue
		}
		a.Log.Warn("others hold more of this node's records than it remembers; was its disk set back? its endpoints are stated anew",
			"network", n.def.Name, "theirs", stated, "own", n.known)
		n.Counter = Counter{Incarnation: stated.Incarnation + 1}
		n.renewed = nil
		c := a.anew(n)
		n.renewed = c.Records
		a.background(func() {
			if !a.saveInTheEnd(ctx, c) {
				return // the next start goes on
			}
			defer func() {
				_ = a.do(context.Background(), func(context.Context) {
					if n.Incarnation == c.Counter.Incarnation {
						n.renewed = nil
					}
				})
			}()
			wait, cancel := context.WithTimeout(ctx, ackTimeout)
			defer cancel()
			if _, err := a.Peers.Publish(wait, id, signed(c), lease); err != nil {
				a.Log.Error("state endpoints anew", "network", id, "err", err)
			}
		})
	}
}

// anew is the change that states what stands in a network in the counter's life, where it is not
// yet, and that there is such a life even with nothing in it. What was said before goes. In the
// loop, or before it runs.
func (a *Agent) anew(n *network) Change {
	maps.DeleteFunc(n.own, func(_ overlay.EndpointID, s overlay.Signed) bool { return number(s).Incarnation < n.Incarnation })
	records := []overlay.Record{{Endpoint: overlay.NewID[overlay.EndpointID](random[[16]byte](a)), Deleted: true}}
	for _, e := range a.endpoints {
		if e.Network == n.def.ID && e.state != overlay.EndpointLost && number(n.own[e.ID]).Incarnation != n.Incarnation {
			records = append(records, e.record())
		}
	}
	c := n.change()
	for _, r := range records {
		s, err := a.sign(n, r)
		if err != nil {
			a.Log.Error("state an endpoint anew", "endpoint", r.Endpoint, "err", err)
			continue
		}
		c.Records = append(c.Records, OwnRecord{Network: n.def.ID, Endpoint: r.Endpoint, Signed: s})
	}
	c.Counter, c.Floor = n.Counter, overlay.Version{Incarnation: n.Incarnation}
	return c
}

// saveInTheEnd tries until a change is durable, as when the disk is full, or ctx ends.
func (a *Agent) saveInTheEnd(ctx context.Context, c Change) bool {
	for {
		err := a.save(c)
		if err == nil {
			return true
		}
		a.Log.Error("keep what is stated anew; trying again", "network", c.Network, "err", err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(tidyEvery):
		}
	}
}

func signed(c Change) (all []overlay.Signed) {
	for _, r := range c.Records {
		all = append(all, r.Signed)
	}
	return all
}
