package agent

import (
	"context"
	"time"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/names"
	"github.com/heddle-net/heddle/overlay/plan"
)

// Resolver answers the questions of workloads.
type Resolver interface {
	// Answer is told what to answer from now on. It returns at once.
	Answer(*names.Table)
	// Follow opens and closes what workloads ask, as the newest table has it: when it returns, those
	// whose network stands in the kernel can ask. What fails is tried again by the next call.
	Follow()
}

// followEvery is how long a resolver's place may be gone unseen.
const followEvery = time.Second

// nameFrom makes the names of a view those that are answered. In the loop.
func (a *Agent) nameFrom(v plan.View) {
	in := a.names()
	for id, n := range v.Networks {
		if n.Bare() {
			continue // nobody can ask in it
		}
		in.Networks = append(in.Networks, names.Network{Network: n, Claims: v.Remote[id], Services: v.Services[id], Partial: v.Partial[id]})
	}
	a.table = a.table.Next(in)
	a.Resolver.Answer(a.table)
	signal(a.renamed)
}

// names are what this node says itself, and whose endpoints have no names. In the loop.
func (a *Agent) names() names.Input {
	in := names.Input{Self: a.Self, Out: map[overlay.NodeID]bool{}}
	for id := range a.Peers.Suspended() {
		in.Out[id] = true
	}
	for id, n := range a.Facts.Facts().Nodes {
		if n.Availability == overlay.Drain {
			in.Out[id] = true
		}
	}
	for _, e := range a.endpoints {
		if e.state != overlay.EndpointLost && !a.removed {
			in.Own = append(in.Own, e.named())
		}
	}
	return in
}

// named is the endpoint as names have it: from when it stands until it leaves it has some.
func (e *endpoint) named() names.Endpoint {
	return names.Endpoint{
		ID: e.ID, Network: e.Network, Workload: e.Workload, IPs: e.IPs, Aliases: e.Aliases, Namespace: e.Namespace, Make: e.Make, Host: e.Host,
		Priority: e.Priority, Named: e.state == overlay.EndpointReady && e.Health != overlay.HealthLeaving,
	}
}

// follow keeps the resolver with its networks.
func (a *Agent) follow(ctx context.Context) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.renamed:
		case <-tick.C:
		}
		a.Resolver.Follow()
	}
}
