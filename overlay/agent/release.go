package agent

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

const (
	tidyEvery = 20 * time.Second // how often leases are looked at
	reserve   = 8                // idle addresses of a family that a lease keeps, or a quarter of those in use
	slack     = 4                // fewer than that above the reserve are not worth a release
	maxRuns   = 96               // of a lease, or of what is given up: both must fit in a statement
)

// usable is the lease without what is barred. In the loop.
func (n *network) usable() overlay.Lease {
	l := n.lease
	if len(n.barred) > 0 {
		l.Grants, _ = overlay.Split(l.Grants, n.barred)
	}
	return l
}

// idle are the addresses of a family that no endpoint uses, the highest first, and the number
// of those in use. In the loop.
func (a *Agent) idle(n *network, v4 bool) (idle []overlay.Grant, used int) {
	taken := a.used(n.def.ID)
	for _, g := range n.usable().Grants {
		for ip := g.First; ip.Is4() == v4 && g.Has(ip); ip = ip.Next() {
			if _, is := taken[ip]; is {
				used++
			} else {
				idle = append(idle, overlay.Grant{First: ip, Last: ip, Index: g.Index})
			}
		}
	}
	slices.SortFunc(idle, func(x, y overlay.Grant) int { return y.First.Compare(x.First) })
	return idle, used
}

// Release gives up addresses that idle, for managers that ask. They are barred on the disk
// before the answer says so.
func (a *Agent) Release(ctx context.Context, r overlay.ReleaseRequest) (reply overlay.ReleaseReply, err error) {
	reply.InUse = map[netip.Addr]string{}
	reply.Release, err = a.giveUp(ctx, r.Network, func(n *network) (runs []overlay.Grant) {
		if idle, _ := a.idle(n, n.def.Subnets[0].Prefix.Addr().Is4()); len(idle) < r.Want || len(r.Addrs) > 0 {
			a.shed(n, r.Want-len(idle), r.Addrs)
		}
		for _, v4 := range []bool{true, false} {
			idle, _ := a.idle(n, v4)
			if len(r.Addrs) == 0 {
				runs = append(runs, idle[:min(r.Want, len(idle))]...)
				continue
			}
			for _, g := range idle {
				if slices.Contains(r.Addrs, g.First) {
					runs = append(runs, g)
				}
			}
		}
		used := a.used(r.Network)
		for _, ip := range r.Addrs {
			if by := used[ip]; by != "" {
				reply.InUse[ip] = by
			}
		}
		return runs
	})
	return reply, err
}

// giveUp bars what choose picks, in the loop, and signs the release of all that is barred. Nil
// when there is nothing to give.
func (a *Agent) giveUp(ctx context.Context, id overlay.NetworkID, choose func(*network) []overlay.Grant) (*overlay.Signed, error) {
	a.barring.Lock()
	defer a.barring.Unlock()
	var before, barred []overlay.Grant
	var statement overlay.Release
	var c Change
	err := a.do(ctx, func(context.Context) {
		n, known := a.networks[id]
		if !known {
			return
		}
		before = n.barred
		barred = n.giving(choose(n))
		n.barred = barred
		c = n.change()
		c.Barred = &barred
		statement = overlay.Release{V: 1, Place: a.Facts.Facts().Place, Network: id, Node: a.Self, Grants: barred}
	})
	if err != nil || len(barred) == 0 {
		return nil, err
	}
	s, err := overlay.Sign(overlay.DomainRelease, a.Key, statement)
	if err == nil {
		err = a.save(c)
	}
	if err != nil { // nobody has seen it: the addresses stay
		_ = a.do(context.Background(), func(context.Context) { a.network(id).barred = before })
		return nil, err
	}
	return &s, nil
}

// giving is what is barred with more of the lease given up, as far as neither is in too many pieces
// then. In the loop.
func (n *network) giving(runs []overlay.Grant) []overlay.Grant {
	barred := slices.Clip(n.barred)
	for _, r := range joined(runs) {
		more := joined(append(slices.Clone(barred), r))
		if left, _ := overlay.Split(n.lease.Grants, more); len(more) <= maxRuns && (len(left) <= maxRuns || len(left) <= len(n.lease.Grants)) {
			barred = more
		}
	}
	return barred
}

// joined puts runs together that touch, so that a statement stays short.
func joined(runs []overlay.Grant) []overlay.Grant {
	slices.SortFunc(runs, func(x, y overlay.Grant) int { return x.First.Compare(y.First) })
	var out []overlay.Grant
	for _, r := range runs {
		if i := len(out) - 1; i >= 0 && out[i].Index == r.Index && out[i].Last.Next() == r.First {
			out[i].Last = r.Last
			continue
		}
		out = append(out, r)
	}
	return out
}

// tidy gives back what idles in leases for long, and again what managers have not heard of. It
// drops tombstones.
func (a *Agent) tidy(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var ids []overlay.NetworkID
		_ = a.do(ctx, func(context.Context) {
			a.replan() // networks that linger no more
			for id, n := range a.networks {
				if n.def.ID != "" {
					a.expire(n)
					ids = append(ids, id)
				}
			}
		})
		for _, id := range ids {
			if err := a.shrink(ctx, id); err != nil && ctx.Err() == nil {
				a.Log.Warn("give idle addresses back; trying again", "network", id, "err", err)
			}
			if err := a.sink(ctx, id); err != nil && ctx.Err() == nil {
				a.Log.Warn("drop what counts no more of this node's records; trying again", "network", id, "err", err)
			}
		}
	}
}

// shrink brings a lease back to what is in use and a reserve.
func (a *Agent) shrink(ctx context.Context, id overlay.NetworkID) error {
	if err := a.settle(ctx, id); err != nil {
		return err
	}
	if a.Facts.Facts().Level < 2 {
		return nil // managers that take nothing back
	}
	s, err := a.giveUp(ctx, id, func(n *network) (runs []overlay.Grant) {
		for i, v4 := range []bool{true, false} {
			idle, used := a.idle(n, v4)
			over := max(0, len(idle)-max(reserve, used/4))
			if least := min(over, n.surplus[i]); least >= slack {
				runs = append(runs, idle[:least]...)
				over -= least
			}
			n.surplus[i] = over
		}
		return runs
	})
	if err != nil || s == nil {
		return err
	}
	g, err := a.Control.Release(ctx, *s)
	if err != nil {
		return err
	}
	if err := a.do(ctx, func(context.Context) { a.know(g.Network, g.Leases, g.Revision) }); err != nil {
		return err
	}
	return a.settle(ctx, id)
}

// settle forgets what was barred once the lease does not have it any more: on the disk, both
// change at once.
func (a *Agent) settle(ctx context.Context, id overlay.NetworkID) error {
	a.barring.Lock()
	defer a.barring.Unlock()
	var c Change
	var left []overlay.Grant
	err := a.do(ctx, func(context.Context) {
		n, known := a.networks[id]
		if !known || len(n.barred) == 0 {
			return
		}
		if _, left = overlay.Split(n.lease.Grants, n.barred); len(left) < len(n.barred) {
			c = n.change()
			c.Grant, c.Barred = &Grant{n.def, n.leases, n.revision}, &left
		}
	})
	if err != nil || c.Grant == nil {
		return err
	}
	if err := a.save(c); err != nil {
		return err
	}
	return a.do(ctx, func(context.Context) {
		n := a.network(id)
		n.barred, n.saved = left, max(n.saved, c.Grant.Revision)
	})
}

// Forgot returns without error when nothing in this node's kernel leads to a removed node any
// more. While it does not have what the others host, entries stay that nobody may want, among them
// such as lead there.
func (a *Agent) Forgot(ctx context.Context, node overlay.NodeID) error {
	var gen uint64
	knows, partial := false, ""
	if err := a.do(ctx, func(context.Context) {
		if _, knows = a.Facts.Facts().Removals[node]; knows {
			v := a.view()
			for id, n := range v.Networks {
				if v.Partial[id] {
					partial = n.Name
				}
			}
			gen = a.replan()
		}
	}); err != nil {
		return err
	}
	switch {
	case !knows:
		return overlay.Errorf(overlay.Unavailable, "the removal of node %s has not come here yet", node.Short())
	case partial != "":
		return overlay.Errorf(overlay.Unavailable, "this node does not know yet what others host in network %s", partial)
	}
	return a.Datapath.Wait(ctx, gen)
}
