package reconcile

import (
	"context"
	"fmt"

	"github.com/heddle-net/heddle/datapath"
)

// plan is a request for what is not as wanted.
type plan struct {
	ctx    context.Context
	answer chan planned // size 1
}

type planned struct {
	differences []datapath.Difference
	err         error
}

// Plan reads the kernel afresh and says what is not as wanted, and what the loop does about it. It
// changes nothing.
func (l *Loop) Plan(ctx context.Context) ([]datapath.Difference, error) {
	p := plan{ctx, make(chan planned, 1)}
	select {
	case l.plans <- p:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the reconciler: %w", ctx.Err())
	}
	select {
	case a := <-p.answer:
		return a.differences, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("read the kernel's state: %w", ctx.Err())
	}
}

// Wanted is the wanted state, or nil before there is one. It must not be changed.
func (l *Loop) Wanted() *datapath.Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.want
}

// plan answers a request. The mirror stays: what differs is drift, and counted when it is repaired.
func (w *worker) plan(p plan) {
	want := w.Wanted()
	if want == nil {
		p.answer <- planned{}
		return
	}
	seen, err := w.kernel.Read(p.ctx, want)
	if err != nil {
		p.answer <- planned{err: fmt.Errorf("read the kernel's state: %w", err)}
		return
	}
	if w.mirror != nil {
		seen.Remember(w.mirror)
	}
	p.answer <- planned{differences: datapath.Differences(seen, datapath.Diff(seen, want))}
}
