package agent

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/wire"
)

// Detach takes a workload off a network, or off all without one. What is in a service leaves first:
// when all others send it nothing new, its connections have a grace. It needs no manager.
func (a *Agent) Detach(ctx context.Context, r overlay.DetachRequest) (reply overlay.DetachReply, err error) {
	if err := r.Validate(); err != nil {
		return reply, err
	}
	gone, err := a.attachedAs(ctx, r.Name, r.Network)
	if err != nil {
		return reply, err
	}
	if len(gone) == 0 {
		if r.Network != "" {
			return reply, overlay.Errorf(overlay.NotFound, "%s is not attached to network %s on this node; `heddle endpoint ls --local` lists what is", r.Name, r.Network)
		}
		return reply, overlay.Errorf(overlay.NotFound, "%s is not attached on this node; `heddle endpoint ls --local` lists what is", r.Name)
	}
	grace := graceTime
	if r.Grace != nil {
		grace = *r.Grace
	}
	reply.Silent, err = a.removeAll(ctx, gone, grace)
	return reply, err
}

// attachedAs are the endpoints of a workload, in the network that ref means or in all.
func (a *Agent) attachedAs(ctx context.Context, name, ref string) (all []*endpoint, err error) {
	err = a.do(ctx, func(context.Context) {
		for _, e := range a.endpoints {
			n := a.network(e.Network)
			if e.Workload == name && (ref == "" || ref == n.def.Name || strings.HasPrefix(string(e.Network), ref)) {
				all = append(all, e)
			}
		}
	})
	return all, err
}

// removeAll takes endpoints off beside each other, so that their graces are one. It answers who has
// not acknowledged that they leave, and the first error.
func (a *Agent) removeAll(ctx context.Context, all []*endpoint, grace time.Duration) (silent []string, err error) {
	late, errs := make([][]string, len(all)), make([]error, len(all))
	var each sync.WaitGroup
	for i, e := range all {
		each.Go(func() { late[i], errs[i] = a.remove(ctx, e, grace) })
	}
	each.Wait()
	silent = slices.Concat(late...)
	slices.Sort(silent)
	return slices.Compact(silent), first(errs...)
}

// remove takes an endpoint off, once what is under way with it has ended. One that leaves already
// does so by the shorter grace. One that is gone by then is no error.
func (a *Agent) remove(ctx context.Context, e *endpoint, grace time.Duration) ([]string, error) {
	for {
		var busy chan struct{}
		var l *leaving
		there := false
		if err := a.do(ctx, func(life context.Context) {
			if there = a.endpoints[e.ID] == e; !there {
				return
			}
			if l, busy = e.leaving, e.busy; l != nil {
				l.hasten(time.Now().Add(grace))
			} else if busy == nil {
				e.begin()
				if grace != atOnce && e.state == overlay.EndpointReady && a.serves(e) && !a.alone(e) {
					l = a.depart(life, e, grace)
				}
			}
		}); err != nil || !there {
			return nil, err
		}
		switch {
		case l != nil:
			wire.Waiting(ctx, "the connections of "+e.Workload+" to end")
			return l.await(ctx, e.Workload)
		case busy == nil:
			wire.Waiting(ctx, "the other participants to forget "+e.Workload)
			return nil, a.takeOff(ctx, e)
		}
		if err := await(ctx, busy, "what is under way with "+e.Workload); err != nil {
			return nil, err
		}
	}
}

// takeOff takes an endpoint, with which the caller has begun something, off the disk, then out of
// the view, the kernel and the others' tables. What stood stays when the disk can't be written: it
// would come back with the next start.
func (a *Agent) takeOff(ctx context.Context, e *endpoint) error {
	whole := context.WithoutCancel(ctx) // what has begun is ended
	var c Change
	var tombstone, lease, before overlay.Signed
	var err error
	if e := a.do(whole, func(context.Context) {
		n := a.network(e.Network)
		before, lease = n.own[e.ID], n.leases[a.Self]
		if tombstone, err = a.sign(n, overlay.Record{Endpoint: e.ID, Workload: e.Workload, Deleted: true}); err != nil {
			e.end()
			return
		}
		c = n.change()
		c.Delete = append(c.Delete, e.ID)
		c.Records = append(c.Records, OwnRecord{Network: e.Network, Endpoint: e.ID, Signed: tombstone, Released: e.IPs})
	}); e != nil || err != nil {
		return first(e, err)
	}
	unsaved := a.save(c)
	var gen uint64
	if e := a.do(whole, func(context.Context) {
		defer e.end()
		n := a.network(e.Network)
		if unsaved != nil && e.state != overlay.EndpointPending {
			n.own[e.ID], err = before, unsaved
			a.unsaid(e.Network, tombstone)
			return
		}
		e.rest()
		if unsaved != nil { // it goes with the next change
			n.forsaken = append(n.forsaken, e.ID)
		}
		delete(a.endpoints, e.ID)
		n.release(e.IPs)
		if e.state == overlay.EndpointReady {
			n.linger = time.Now().Add(lingerTime)
		}
		gen = a.replan()
	}); e != nil || err != nil {
		return first(e, err)
	}
	_, err = a.tell(ctx, e.Network, tombstone, lease)
	return first(err, a.Datapath.Wait(ctx, gen, owners(e)...))
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// session is a process whose end detaches its workloads.
type session struct {
	pid     int
	started uint64
}

// watch detaches the endpoint when its session's process is gone. In the loop.
func (a *Agent) watch(ctx context.Context, e *endpoint) {
	s := session{e.PID, e.Started}
	if e.PID == 0 || a.sessions[s] {
		return
	}
	a.sessions[s] = true
	a.background(func() {
		if a.Processes.Ended(ctx, s.pid, s.started) != nil {
			return
		}
		var gone []*endpoint
		_ = a.do(ctx, func(life context.Context) {
			delete(a.sessions, s)
			for _, e := range a.endpoints {
				if e.PID == s.pid && e.Started == s.started {
					gone = append(gone, e)
				}
			}
		})
		for _, e := range gone {
			a.removeInTheEnd(ctx, e)
		}
	})
}

// removeInTheEnd tries until the endpoint is gone, as when the disk is full, or ctx ends.
func (a *Agent) removeInTheEnd(ctx context.Context, e *endpoint) {
	for {
		_, err := a.remove(ctx, e, graceTime)
		if err == nil || ctx.Err() != nil {
			return
		}
		a.Log.Error("detach a workload whose process ended; trying again", "endpoint", e.ID, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(tidyEvery):
		}
	}
}

// Endpoints lists this node's own endpoints, sorted by name.
func (a *Agent) Endpoints(ctx context.Context) ([]overlay.Endpoint, error) {
	var rows []overlay.Endpoint
	err := a.do(ctx, func(life context.Context) {
		for _, e := range a.endpoints {
			rows = append(rows, a.row(e))
		}
	})
	slices.SortFunc(rows, func(x, y overlay.Endpoint) int {
		return strings.Compare(x.Name+"\x00"+x.NetworkName, y.Name+"\x00"+y.NetworkName)
	})
	return rows, err
}

// Drop takes all of this node's endpoints off.
func (a *Agent) Drop(ctx context.Context) error {
	var all []*endpoint
	if err := a.do(ctx, func(life context.Context) {
		for _, e := range a.endpoints {
			all = append(all, e)
		}
	}); err != nil {
		return err
	}
	_, err := a.removeAll(ctx, all, atOnce)
	return err
}

func (a *Agent) describe(e *endpoint) (row overlay.Endpoint) {
	_ = a.do(context.Background(), func(context.Context) { row = a.row(e) })
	return row
}

// row shows an endpoint. In the loop.
func (a *Agent) row(e *endpoint) overlay.Endpoint {
	n := a.network(e.Network)
	r := overlay.Endpoint{
		ID: e.ID, Name: e.Workload, Node: a.Self, NodeName: a.Name, NetworkID: e.Network, NetworkName: n.def.Name,
		MAC: e.MAC, State: e.state, Interface: e.IfName, Namespace: e.Namespace.Path, Aliases: e.Aliases, Service: e.Service, Labels: e.Labels,
		Health: e.Health, Publish: e.Publish,
	}
	if e.state == overlay.EndpointReady {
		for _, o := range owners(e) {
			if err := a.Datapath.Err(o); err != nil {
				r.State = overlay.EndpointFailed
			}
		}
	}
	for _, ip := range e.IPs {
		s, _ := n.def.SubnetOf(ip)
		if p := netip.PrefixFrom(ip, s.Prefix.Bits()); ip.Is4() {
			r.IPv4 = p
		} else {
			r.IPv6 = p
		}
	}
	return r
}

// Network is a network that this node has in its kernel, and its MTU there.
func (a *Agent) Network(id overlay.NetworkID) (def overlay.Network, mtu int, ok bool) {
	_ = a.do(context.Background(), func(context.Context) {
		for _, e := range a.endpoints {
			if e.Network == id {
				v := a.view()
				def, ok = v.Networks[id]
				mtu = v.MTU[id]
				return
			}
		}
	})
	return def, mtu, ok
}
