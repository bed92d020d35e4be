package agent

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/health"
)

// maxProbing bounds the probes that are under way at the same time.
const maxProbing = 128

// watching is a check of an endpoint, whose probes go on until it is stopped.
type watching struct {
	check   overlay.Health
	verdict health.Verdict
	heard   bool // a probe has told what the verdict says
	stop    context.CancelFunc
}

// rest stops the probes of an endpoint. In the loop.
func (e *endpoint) rest() {
	for _, w := range e.probes {
		w.stop()
	}
	e.probes = nil
}

// checks are those of an endpoint. In the loop.
func (a *Agent) checks(e *endpoint) []overlay.Health {
	r := e.record()
	r.Network = e.Network
	return health.Checks(&r, e.Check, a.servicesOf(e.Network, e))
}

// mindAll minds all endpoints, as when services have changed. In the loop, or before it runs.
func (a *Agent) mindAll(ctx context.Context) {
	for _, e := range a.endpoints {
		a.mind(ctx, e)
	}
}

// mind probes an endpoint by what its checks are now, and states its health where that is another
// than was stated last. What is under way with the endpoint comes first, and minds it again in the
// end. A new check goes on from what was stated: one that comes later, or a restart, puts nothing
// out of rotation before a probe has failed. In the loop, or before it runs.
func (a *Agent) mind(ctx context.Context, e *endpoint) {
	if a.endpoints[e.ID] != e || e.state != overlay.EndpointReady || e.Leaving != 0 || e.busy != nil {
		return
	}
	before := e.probes
	e.probes = nil
	for _, h := range a.checks(e) {
		i := slices.IndexFunc(before, func(w *watching) bool { return w.check == h })
		if i < 0 {
			e.probes = append(e.probes, a.observe(ctx, e, h))
			continue
		}
		e.probes = append(e.probes, before[i])
	}
	for _, w := range before {
		if !slices.Contains(e.probes, w) {
			w.stop()
		}
	}
	var all []health.Verdict
	for _, w := range e.probes {
		if !w.heard && e.Health == "" {
			return // of what was never stated nothing is said before something is known
		}
		all = append(all, w.verdict)
	}
	if now := health.Sum(all); now != e.Health {
		if health.Stated(now).State != health.Stated(e.Health).State || e.Since == 0 { // else another cause of the same
			e.Since = time.Now().Unix()
		}
		e.Health = now
		a.Log.Info("the health of a workload has changed", "workload", e.Workload, "network", a.network(e.Network).def.Name, "health", now)
		a.revise(ctx, e)
	}
}

// revise states an endpoint anew, with what has changed in its row. It is told although it may not be
// on the disk: others should know, and a record of which this node has forgotten the number is
// stated anew anyway. In the loop, or before it runs.
func (a *Agent) revise(ctx context.Context, e *endpoint) {
	n := a.network(e.Network)
	s, err := a.sign(n, e.record())
	if err != nil {
		a.Log.Error("state the health of a workload", "endpoint", e.ID, "err", err)
		return
	}
	e.begin()
	row, lease, c := e.Row, n.leases[a.Self], n.change()
	c.Put, c.Records = &row, append(c.Records, OwnRecord{Network: e.Network, Endpoint: e.ID, Signed: s})
	a.replan()
	a.background(func() {
		if err := a.save(c); err != nil {
			a.Log.Error("keep the health of a workload", "endpoint", row.ID, "err", err)
		}
		_ = a.do(context.Background(), func(life context.Context) {
			e.end()
			a.mind(life, e)
		})
		if _, err := a.tell(ctx, row.Network, s, lease); err != nil {
			a.Log.Error("state the health of a workload", "endpoint", row.ID, "err", err)
		}
	})
}

// observe probes an endpoint by a check until that is stopped. In the loop, or before it runs.
func (a *Agent) observe(ctx context.Context, e *endpoint, h overlay.Health) *watching {
	ctx, stop := context.WithCancel(ctx)
	w := &watching{check: h, verdict: health.Stated(e.Health), stop: stop}
	course, row := health.Begin(h, w.verdict), e.Row
	a.background(func() {
		defer stop()
		for heard := false; ; {
			failed := a.probe(ctx, row, h)
			if ctx.Err() != nil {
				return
			}
			if course.Take(failed) || !heard && failed == "" {
				heard = true
				_ = a.do(ctx, func(life context.Context) {
					w.verdict, w.heard = course.Verdict(), true
					a.mind(life, e)
				})
			}
			again := time.NewTimer(h.Interval - h.Interval/20 + rand.N(h.Interval/10))
			select {
			case <-again.C:
			case <-ctx.Done():
				again.Stop()
				return
			}
		}
	})
	return w
}

// probe says what is wrong with a workload by one probe, or "".
func (a *Agent) probe(ctx context.Context, row Row, h overlay.Health) string {
	select {
	case a.probing <- struct{}{}:
		defer func() { <-a.probing }()
	case <-ctx.Done():
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	if err := a.Workloads.Probe(ctx, row.Namespace, h, health.Target(row.IPs, h)); err != nil {
		return health.Line(err.Error())
	}
	return ""
}
