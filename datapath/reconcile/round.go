package reconcile

import (
	"context"
	"fmt"
	"time"

	"github.com/heddle-net/heddle/datapath"
)

// worker is the part of the loop that its goroutine alone uses.
type worker struct {
	*Loop
	mirror   *datapath.State // what the kernel holds; nil before the first reading
	nextRead time.Time
	calm     time.Time     // until when news is left alone: a reading costs what it reads
	retry    time.Duration // until the next attempt; 0 while all is well
}

// round brings the kernel to the wanted state once, and says when to come again at the
// latest.
func (w *worker) round(ctx context.Context) time.Duration {
	w.mu.Lock()
	want, gen := w.want, w.status.Set
	if w.doubt {
		w.doubt, w.nextRead = false, time.Time{}
	}
	w.mu.Unlock()
	if want == nil {
		return w.cfg.Resync
	}
	r := w.attempt(ctx, want)
	if r.doubt && w.retry == 0 { // the mirror was wrong: look, and try once more
		w.nextRead = time.Time{}
		first := r
		r = w.attempt(ctx, want)
		r.add(first)
	}
	if ctx.Err() != nil {
		return w.cfg.Resync
	}
	w.finish(gen, r)
	if len(r.errs) == 0 {
		w.retry = 0
		return max(0, time.Until(w.nextRead))
	}
	w.retry = min(max(2*w.retry, w.cfg.RetryMin), w.cfg.RetryMax)
	if r.doubt {
		w.nextRead = time.Now().Add(w.retry)
	}
	return w.retry
}

const (
	// newsSettle is how long news waits for what belongs to it: the last word on each object
	// counts, and most of it tells of what this loop has done itself.
	newsSettle = 50 * time.Millisecond
	// readShare bounds the time that is spent on reading because of news: one part of so many.
	readShare = 10
)

// surprised says whether notifications tell of anything but what the mirror has, so that the
// kernel is to be read.
func (w *worker) surprised() bool {
	news, lost := w.kernel.TakeNews()
	if w.mirror == nil || !lost && !datapath.Surprising(w.mirror, news) {
		return false
	}
	w.nextRead = time.Time{}
	return true
}

// result is what one attempt has come to.
type result struct {
	errs  map[datapath.Owner]error
	at    map[datapath.LinkKey]error // links and namespaces that are missing for that reason
	doubt bool                       // something failed for no known reason
	read  bool
	ops   uint64
	drift map[string]uint64
}

// add takes over what an earlier attempt has counted.
func (r *result) add(o result) {
	r.ops += o.ops
	r.read = r.read || o.read
	for kind, n := range o.drift {
		if r.drift == nil {
			r.drift = map[string]uint64{}
		}
		r.drift[kind] += n
	}
}

// attempt reads the kernel if it is time, and does what is missing. After a failed
// operation the rest of its owner's, and what stands on the missing object, is left for
// later; everything else goes on.
func (w *worker) attempt(ctx context.Context, want *datapath.Config) result {
	r := result{errs: map[datapath.Owner]error{}, at: map[datapath.LinkKey]error{}}
	if w.mirror == nil || !time.Now().Before(w.nextRead) {
		begin := time.Now()
		seen, err := w.kernel.Read(ctx, want)
		w.calm = time.Now().Add(readShare * time.Since(begin))
		if err != nil {
			r.errs[""] = fmt.Errorf("read the kernel's state: %w", err)
			r.doubt = true
			return r
		}
		if w.mirror != nil {
			r.drift = datapath.Drift(w.mirror, seen)
			seen.Remember(w.mirror)
		} else {
			seen.Inherit()
		}
		w.mirror, w.nextRead, r.read = seen, time.Now().Add(w.cfg.Resync), true
	}
	defer w.kernel.Release()
	for _, run := range datapath.Runs(datapath.Diff(w.mirror, want)) {
		if w.apply(ctx, run, &r); ctx.Err() != nil {
			return r
		}
	}
	if len(r.errs) == 0 {
		w.mirror.Settle(want)
	}
	return r
}

// apply does a run of operations, but for those with an obstacle.
func (w *worker) apply(ctx context.Context, run []datapath.Op, r *result) {
	var ops []datapath.Op
	for _, op := range run {
		if err := r.obstacle(op); err != nil {
			r.fail(op, err)
			continue
		}
		ops = append(ops, op)
	}
	var errs []error
	switch len(ops) {
	case 0:
		return
	case 1:
		errs = []error{w.kernel.Apply(ctx, ops[0])}
	default:
		errs = w.kernel.ApplyEntries(ctx, ops)
	}
	for i, op := range ops {
		switch err := errs[i]; {
		case err == nil:
			w.mirror.Apply(op)
			r.ops++
		case ctx.Err() == nil:
			r.doubt = r.doubt || datapath.FaultOf(err) == ""
			r.fail(op, err)
		}
	}
}

// obstacle is the earlier failure that stands in the way of op.
func (r *result) obstacle(op datapath.Op) error {
	if len(r.errs) == 0 {
		return nil
	}
	switch op.(type) {
	case datapath.DelLink, datapath.DelNamespace: // what goes may be what stands in the way
		return nil
	}
	if err := r.errs[op.Owner()]; err != nil {
		return err
	}
	at := op.At()
	keys := []datapath.LinkKey{at, {NS: at.NS}}
	switch op := op.(type) {
	case datapath.AddLink:
		keys = append(keys, datapath.LinkKey{NS: at.NS, Name: op.Master}, datapath.LinkKey{NS: op.Peer.NS}, datapath.LinkKey{NS: op.VXLAN.Underlay})
	case datapath.UpLink:
		if op.Kind != datapath.VXLAN {
			break
		}
		if r.errs[""] != nil { // the allow-set is not loaded
			return r.errs[""]
		}
		if u := op.VXLAN.Underlay; u != (datapath.NS{}) {
			return r.within(u)
		}
	}
	for _, k := range keys {
		if err := r.at[k]; err != nil {
			return err
		}
	}
	return nil
}

// within is what failed in a namespace that heddle made, or with its links.
func (r *result) within(ns datapath.NS) error {
	for k, err := range r.at {
		if k.NS == ns {
			return err
		}
	}
	return nil
}

func (r *result) fail(op datapath.Op, err error) {
	if r.errs[op.Owner()] == nil {
		r.errs[op.Owner()] = err
	}
	switch op := op.(type) {
	case datapath.SetNamespace, datapath.AddLink:
		r.at[op.At()] = err
	case datapath.UpLink:
		if op.Kind == datapath.WireGuard {
			r.at[op.At()] = err
		}
	case datapath.SetFilter, datapath.AddAllow:
		if op.At().NS != (datapath.NS{}) { // the host's is the node as a whole
			r.at[op.At()] = err
		}
	}
}

// finish publishes the result and logs what was not known before.
func (w *worker) finish(gen uint64, r result) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for o, err := range r.errs {
		if old := w.status.Errors[o]; old == nil || old.Error() != err.Error() {
			w.log.Warn("kernel state is not as wanted; trying again", "owner", o, "err", err)
		}
	}
	for o := range w.status.Errors {
		if r.errs[o] == nil {
			w.log.Info("kernel state is as wanted again", "owner", o)
		}
	}
	if len(r.drift) > 0 {
		w.log.Info("kernel state was changed by others; repaired", "drift", r.drift)
	}
	w.status.Applied = gen
	w.status.Errors = r.errs
	w.status.Ops += r.ops
	for kind, n := range r.drift {
		w.status.Drift[kind] += n
	}
	if r.read {
		w.status.Read = time.Now()
	}
	close(w.done)
	w.done = make(chan struct{})
}
