package agent

import (
	"context"
	"maps"
	"slices"

	"github.com/heddle-net/heddle/overlay"
)

const (
	keptGone   = 128  // tombstones that stay: of addresses not to be taken again soon
	saidAtOnce = 1024 // records of one push
)

// sink drops tombstones of a network when they are many. What stands is stated again, then a record
// says that all up to the floor counts no more: by that they go from everybody's tables, and
// whoever missed one drops the endpoint all the same.
func (a *Agent) sink(ctx context.Context, id overlay.NetworkID) error {
	var n *network
	var c Change
	var lease overlay.Signed
	var err error
	if e := a.do(ctx, func(context.Context) {
		if n = a.networks[id]; n != nil {
			c, err = a.sunk(n)
			lease = n.leases[a.Self]
		}
	}); e != nil || len(c.Records) == 0 {
		return first(e, err)
	}
	if err == nil {
		err = a.save(c)
	}
	if err == nil {
		err = a.say(id, signed(c), lease)
	}
	if err != nil {
		a.Peers.Skip(id, c.Records[0].Version(), c.Records[len(c.Records)-1].Version())
		return err
	}
	return a.do(ctx, func(context.Context) {
		if n.Incarnation != c.Floor.Incarnation {
			return
		}
		for _, r := range c.Records {
			if number(n.own[r.Endpoint]).Compare(r.Version()) < 0 {
				n.own[r.Endpoint] = r.Signed
			}
		}
		maps.DeleteFunc(n.own, func(_ overlay.EndpointID, s overlay.Signed) bool { return number(s).Compare(c.Floor) <= 0 })
	})
}

// sunk is the change that sink makes, or one without records when it is not time. With an error, its
// records must not be said. In the loop.
func (a *Agent) sunk(n *network) (c Change, err error) {
	standing := map[overlay.EndpointID]*endpoint{}
	floor := overlay.Version(n.Counter)
	for _, e := range a.endpoints {
		if e.Network != n.def.ID {
			continue
		}
		if e.state != overlay.EndpointLost {
			standing[e.ID] = e
		}
		if v := number(n.own[e.ID]); e.busy != nil && v.Incarnation == n.Incarnation {
			floor.Number = min(floor.Number, v.Number-1) // it may not be durable yet, or not be said
		}
	}
	if len(n.own) < 2*(keptGone+len(standing)) || len(n.renewed) > 0 || !a.floors(n) {
		return c, nil
	}
	var gone []overlay.Version
	for id, s := range n.own {
		if standing[id] == nil {
			gone = append(gone, number(s))
		}
	}
	slices.SortFunc(gone, overlay.Version.Compare)
	if last := gone[len(gone)-1-keptGone]; last.Compare(floor) < 0 {
		floor = last
	}
	if floor.Incarnation != n.Incarnation || floor.Number == 0 {
		return c, nil
	}
	records := []overlay.Record{}
	for id, e := range standing {
		if e.busy == nil && number(n.own[id]).Compare(floor) <= 0 {
			records = append(records, e.record())
		}
	}
	records = append(records, overlay.Record{Endpoint: overlay.NewID[overlay.EndpointID](random[[16]byte](a)), Deleted: true, Floor: floor.Number})
	var all []OwnRecord
	for _, r := range records {
		s, err := a.next(n, r)
		if err != nil {
			return Change{Records: all}, err
		}
		all = append(all, OwnRecord{Network: n.def.ID, Endpoint: r.Endpoint, Signed: s})
	}
	c = n.change()
	c.Records, c.Floor = all, floor
	return c, nil
}

// floors says whether all who are told of a network go by floors: who does not, and missed a
// tombstone, would keep what went. In the loop.
func (a *Agent) floors(n *network) bool {
	told, nodes := n.participants(), a.Peers.Nodes()
	for _, m := range a.Facts.Facts().Managers() {
		told = append(told, m.ID)
	}
	return !slices.ContainsFunc(told, func(id overlay.NodeID) bool { return id != a.Self && !nodes[id].Hello.Floors() })
}

// say hands durable records over to be told. It waits for nobody to hear them.
func (a *Agent) say(id overlay.NetworkID, records []overlay.Signed, lease overlay.Signed) error {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	for part := range slices.Chunk(records, saidAtOnce) {
		if _, err := a.Peers.Publish(now, id, part, lease); err != nil {
			return err
		}
	}
	return nil
}
