package agent

import (
	"context"

	"github.com/heddle-net/heddle/overlay"
)

// relive begins a new life of this node's records in networks of which others hold more of them
// than this node remembers, as after its disk was set back: what it said in the life before
// does not count any more, and what stands is said again. In the loop.
func (a *Agent) relive(ctx context.Context) {
	for id, n := range a.networks {
		stated := a.Peers.Stated(id)
		lease, leased := n.leases[a.Self]
		if n.def.ID == "" || !leased || stated.Compare(overlay.Version(n.Counter)) <= 0 {
			continue
		}
		a.Log.Warn("others hold more of this node's records than it remembers; was its disk set back? its endpoints are stated anew",
			"network", n.def.Name, "theirs", stated, "own", overlay.Version(n.Counter))
		n.Counter = Counter{Incarnation: stated.Incarnation + 1}
		n.own = map[overlay.EndpointID]overlay.Signed{}
		records := []overlay.Record{{Endpoint: overlay.NewID[overlay.EndpointID](random[[16]byte](a)), Deleted: true}} // says that there is a new life, even with nothing in it
		for _, e := range a.endpoints {
			if e.Network == id && e.state != overlay.EndpointLost {
				records = append(records, e.record())
			}
		}
		var changes []Change
		var all []overlay.Signed
		for _, r := range records {
			s, err := a.sign(n, r)
			if err != nil {
				a.Log.Error("state an endpoint anew", "endpoint", r.Endpoint, "err", err)
				continue
			}
			all = append(all, s)
			changes = append(changes, Change{Network: id, Counter: n.Counter, Record: OwnRecord{Network: id, Endpoint: r.Endpoint, Signed: s}})
		}
		a.background(func() {
			for _, c := range changes {
				if err := a.Store.Save(c); err != nil {
					a.Log.Error("keep a record that was stated anew", "network", id, "err", err)
					return // it is stated again when others tell of it
				}
			}
			wait, cancel := context.WithTimeout(ctx, ackTimeout)
			defer cancel()
			if _, err := a.Peers.Publish(wait, id, all, lease); err != nil {
				a.Log.Error("state endpoints anew", "network", id, "err", err)
			}
		})
	}
}
