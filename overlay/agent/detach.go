package agent

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/wire"
)

// Detach takes a workload off a network, or off all with an empty ref. It needs no manager.
func (a *Agent) Detach(ctx context.Context, name, ref string) error {
	var gone []*endpoint
	err := a.do(ctx, func(life context.Context) {
		for _, e := range a.endpoints {
			n := a.network(e.Network)
			if e.Workload == name && (ref == "" || ref == n.def.Name || strings.HasPrefix(string(e.Network), ref)) {
				gone = append(gone, e)
			}
		}
	})
	if err != nil {
		return err
	}
	if len(gone) == 0 {
		if ref != "" {
			return overlay.Errorf(overlay.NotFound, "%s is not attached to network %s on this node; `heddle endpoint ls --local` lists what is", name, ref)
		}
		return overlay.Errorf(overlay.NotFound, "%s is not attached on this node; `heddle endpoint ls --local` lists what is", name)
	}
	wire.Waiting(ctx, "the other participants to forget "+name)
	for _, e := range gone {
		if err := a.remove(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// remove takes an endpoint off, once what is under way with it has ended. One that is gone by then
// is no error.
func (a *Agent) remove(ctx context.Context, e *endpoint) error {
	for {
		var busy chan struct{}
		there := false
		if err := a.do(ctx, func(context.Context) {
			if there = a.endpoints[e.ID] == e; there {
				if busy = e.busy; busy == nil {
					e.begin()
				}
			}
		}); err != nil || !there {
			return err
		}
		if busy == nil {
			return a.takeOff(ctx, e)
		}
		if err := await(ctx, busy, "what is under way with "+e.Workload); err != nil {
			return err
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
		c.Records = []OwnRecord{{Network: e.Network, Endpoint: e.ID, Signed: tombstone, Released: e.IPs}}
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
			return
		}
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
		err := a.remove(ctx, e)
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
	for _, e := range all {
		if err := a.remove(ctx, e); err != nil {
			return err
		}
	}
	return nil
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
