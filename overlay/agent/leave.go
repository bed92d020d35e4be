package agent

import (
	"context"
	"net/netip"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

const (
	graceTime = 10 * time.Second      // for connections to end by themselves, where nobody says otherwise
	aloneTime = time.Second           // for all to acknowledge that an endpoint leaves, and so send it nothing new
	lookEvery = 10 * time.Millisecond // for connections that stand; twice none, and all is over
	lookMost  = 100 * time.Millisecond

	atOnce = -time.Second // a grace that leaves not even the time to say so
)

// leaving is an endpoint's way out: it is stated as leaving, so that nothing new comes to it, then
// its connections have a grace, then it goes.
type leaving struct {
	sooner chan time.Time // size 1: when the grace ends, if that is sooner than it was
	done   chan struct{}  // closed when the endpoint is gone, or can't go
	silent []string       // who has not acknowledged in time; with err from the end on
	err    error
}

// hasten brings the end of the grace nearer. In the loop.
func (l *leaving) hasten(end time.Time) {
	select {
	case other := <-l.sooner:
		if other.Before(end) {
			end = other
		}
	default:
	}
	l.sooner <- end
}

// depart begins to take off an endpoint with which the caller has begun something. In the loop.
func (a *Agent) depart(life context.Context, e *endpoint, grace time.Duration) *leaving {
	l := &leaving{sooner: make(chan time.Time, 1), done: make(chan struct{})}
	e.leaving = l
	before, end := e.Row, time.Now().Add(grace)
	e.rest()
	e.Health, e.Since, e.Leaving = overlay.HealthLeaving, time.Now().Unix(), end.UnixMilli()
	n := a.network(e.Network)
	said, lease := n.own[e.ID], n.leases[a.Self]
	s, err := a.sign(n, e.record())
	row, c := e.Row, n.change()
	c.Put, c.Records = &row, append(c.Records, OwnRecord{Network: e.Network, Endpoint: e.ID, Signed: s})
	a.background(func() {
		defer close(l.done)
		if err == nil {
			err = a.save(c)
		}
		if err != nil { // it stays as it was
			l.err = err
			a.unsaid(row.Network, s)
			_ = a.do(context.Background(), func(life context.Context) {
				n.own[e.ID], e.leaving = said, nil
				e.Health, e.Since, e.Leaving = before.Health, before.Since, before.Leaving
				e.end()
				a.mind(life, e)
				a.replan()
			})
			return
		}
		l.silent, l.err = a.announce(life, e, s, lease)
		if err := a.part(life, e, l, end); err != nil {
			l.err = err
		}
	})
	return l
}

// announce tells all that an endpoint leaves. It returns when they have it in force, or after a
// while with those who have not said so.
func (a *Agent) announce(life context.Context, e *endpoint, s, lease overlay.Signed) ([]string, error) {
	var gen uint64
	if err := a.do(life, func(context.Context) { gen = a.replan() }); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(life, aloneTime)
	defer cancel()
	silent, err := a.tellUntil(ctx, e.Network, s, lease)
	// An object that can't be made is its owner's trouble.
	_ = a.Datapath.Wait(ctx, gen)
	return silent, err
}

// part waits until no connection stands, or the grace ends, and takes the endpoint off. When the
// agent stops before, the next start goes on.
func (a *Agent) part(life context.Context, e *endpoint, l *leaving, end time.Time) error {
	a.linger(life, l, e.Namespace, e.IPs, end)
	there := false
	if a.do(life, func(context.Context) {
		if there = a.endpoints[e.ID] == e; !there { // its network was removed
			e.end()
		}
	}) != nil {
		return overlay.Errorf(overlay.Unavailable, "the daemon is stopping; %s is out of rotation, and goes when it is up again", e.Workload)
	}
	if !there {
		return nil
	}
	err := a.takeOff(life, e)
	_ = a.do(context.Background(), func(context.Context) { e.leaving = nil })
	return err
}

// linger returns when no TCP connection of the addresses has been seen twice, when the namespace is
// gone, at the end of the grace, or when life ends. What can't be seen has all of the grace.
func (a *Agent) linger(life context.Context, l *leaving, ns datapath.NS, ips []netip.Addr, end time.Time) {
	over, look := time.NewTimer(time.Until(end)), time.NewTimer(0)
	defer over.Stop()
	defer look.Stop()
	wait, quiet := lookEvery, false
	for {
		select {
		case <-life.Done():
			return
		case <-over.C:
			return
		case sooner := <-l.sooner:
			if sooner.Before(end) {
				end = sooner
				over.Reset(time.Until(end))
			}
			continue
		case <-look.C:
		}
		busy, err := a.Workloads.Connected(ns, ips)
		switch {
		case overlay.KindOf(err) == overlay.NotFound, err == nil && !busy && quiet:
			return
		case err != nil:
			a.Log.Warn("the connections of a workload can't be seen; it goes at the end of its grace", "namespace", ns.Path, "err", err)
			continue
		case busy:
			wait, quiet = min(2*wait, lookMost), false
		default:
			wait, quiet = lookEvery, true
		}
		look.Reset(wait)
	}
}

// goOn goes on with what was leaving when this node was stopped or killed. Before the loop runs.
func (a *Agent) goOn(ctx context.Context) {
	for _, e := range a.endpoints {
		if e.Leaving == 0 || e.state == overlay.EndpointLost {
			continue
		}
		end := time.UnixMilli(e.Leaving)
		if latest := time.Now().Add(overlay.MaxGrace); end.After(latest) { // the clock was set back
			end = latest
		}
		if !e.Host && e.Make == "" && e.Boot != a.Boot { // nothing is left of it
			end = time.Now()
		}
		l := &leaving{sooner: make(chan time.Time, 1), done: make(chan struct{})}
		e.leaving = l
		e.begin()
		a.background(func() {
			defer close(l.done)
			if l.err = a.part(ctx, e, l, end); l.err != nil && ctx.Err() == nil {
				a.Log.Error("take off a workload that was leaving; trying again", "endpoint", e.ID, "err", l.err)
				a.removeInTheEnd(ctx, e)
			}
		})
	}
}

// await waits until the endpoint is gone, and answers who has not acknowledged that it leaves.
func (l *leaving) await(ctx context.Context, workload string) ([]string, error) {
	select {
	case <-l.done:
		return l.silent, l.err
	case <-ctx.Done():
		return nil, overlay.Errorf(overlay.Unavailable, "gave up waiting for the connections of %s to end: %w; it is out of rotation, and goes when they have ended or its grace is over (--grace 0 ends it)", workload, context.Cause(ctx))
	}
}
