package agent

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

const (
	missEvery = time.Second      // looks for namespaces that are gone
	keepTime  = 10 * time.Minute // for which a lost workload's addresses are kept for its name
)

// awake finds out at a start what an earlier run of the kernel has taken with it. A namespace of
// that run may have left its number to another. Before the loop runs.
func (a *Agent) awake(ctx context.Context) {
	for _, e := range a.endpoints {
		if e.state != overlay.EndpointLost && e.Make == "" && !e.Host && e.Boot != a.Boot && e.Leaving == 0 {
			a.lose(ctx, e)
		}
	}
}

// miss looks for endpoints whose namespace is gone or replaced.
func (a *Agent) miss(ctx context.Context) {
	tick := time.NewTicker(missEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		given := map[*endpoint]datapath.NS{}
		_ = a.do(ctx, func(context.Context) {
			for _, e := range a.endpoints {
				if e.state == overlay.EndpointReady && e.Make == "" && !e.Host {
					given[e] = e.Namespace
				}
			}
		})
		for e, ns := range given {
			if inode, err := a.Datapath.Inode(ns.Path); err == nil && inode == ns.Inode || err != nil && overlay.KindOf(err) != overlay.NotFound {
				continue
			}
			_ = a.do(ctx, func(life context.Context) {
				if a.endpoints[e.ID] == e && e.state == overlay.EndpointReady && e.busy == nil {
					a.lose(life, e)
				}
			})
		}
	}
}

// lose takes an endpoint whose namespace is gone out of the others' tables and the kernel, and
// keeps its addresses for its name. Something else that the caller has begun with it is over. In
// the loop.
func (a *Agent) lose(ctx context.Context, e *endpoint) {
	a.Log.Warn("the namespace of a workload is gone; its addresses are kept for its name", "workload", e.Workload, "namespace", e.Namespace.Path, "addrs", e.IPs, "for", keepTime)
	if e.busy == nil {
		e.begin()
	}
	e.state, e.Lost = overlay.EndpointLost, time.Now().Unix()
	e.Health, e.Since = "", 0
	e.rest()
	n := a.network(e.Network)
	n.linger = time.Now().Add(lingerTime)
	a.replan()
	s, err := a.sign(n, overlay.Record{Endpoint: e.ID, Workload: e.Workload, Deleted: true})
	if err != nil {
		a.Log.Error("state that a workload is gone", "endpoint", e.ID, "err", err)
		e.end()
		return
	}
	row, lease, c := e.Row, n.leases[a.Self], n.change()
	c.Put, c.Records = &row, append(c.Records, OwnRecord{Network: e.Network, Endpoint: e.ID, Signed: s})
	a.background(func() {
		if err := a.save(c); err != nil {
			a.Log.Error("keep a lost workload's row", "endpoint", row.ID, "err", err)
		}
		_ = a.do(context.Background(), func(context.Context) { e.end() })
		if _, err := a.tell(ctx, row.Network, s, lease); err != nil {
			a.Log.Error("state that a workload is gone", "endpoint", row.ID, "err", err)
		}
	})
}

// forsake gives the addresses of a lost endpoint up. Its row goes off the disk with the next
// change of the network, whoever makes it: who takes the addresses is never there beside it. In
// the loop.
func (a *Agent) forsake(e *endpoint) {
	n := a.network(e.Network)
	delete(a.endpoints, e.ID)
	n.release(e.IPs)
	n.forsaken = append(n.forsaken, e.ID)
	c := n.change()
	a.background(func() {
		if err := a.save(c); err != nil {
			a.Log.Error("forget a lost workload; it goes with the next change", "endpoint", e.ID, "err", err)
		}
	})
}

// lost are the lost endpoints of a network with which nothing is under way, the one that was lost
// first first. In the loop.
func (a *Agent) lost(id overlay.NetworkID) (out []*endpoint) {
	for _, e := range a.endpoints {
		if e.Network == id && e.state == overlay.EndpointLost && e.busy == nil {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(x, y *endpoint) int { return cmp.Or(cmp.Compare(x.Lost, y.Lost), cmp.Compare(x.ID, y.ID)) })
	return out
}

// expire forsakes what was lost long ago. In the loop.
func (a *Agent) expire(n *network) {
	for _, e := range a.lost(n.def.ID) {
		if time.Since(time.Unix(e.Lost, 0)) >= keepTime {
			a.forsake(e)
		}
	}
}

// shed forsakes lost endpoints whose addresses somebody needs: those named, or as many as want. It
// says whether there were any. In the loop.
func (a *Agent) shed(n *network, want int, addrs []netip.Addr) (any bool) {
	for _, e := range a.lost(n.def.ID) {
		named := slices.ContainsFunc(e.IPs, func(ip netip.Addr) bool { return slices.Contains(addrs, ip) })
		if named || want > 0 && len(addrs) == 0 {
			a.forsake(e)
			want--
			any = true
		}
	}
	return any
}
