package reconcile

import (
	"context"
	"testing"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/datapathtest"
)

// A plan is of the kernel as it is now, and changes neither it nor what is counted later.
func TestPlan(t *testing.T) {
	k := newKernel()
	l, stop := start(t, k)
	if d, err := l.Plan(t.Context()); err != nil || len(d) > 0 {
		t.Errorf("before anything is wanted: %v, %v", d, err)
	}
	c := sample(datapathtest.Endpoint{N: 1, NS: workloadA}, datapathtest.Endpoint{N: 2, VTEP: peer})
	wait(t, l, l.Set(c), "n1")
	if d, err := l.Plan(t.Context()); err != nil || len(d) > 0 {
		t.Errorf("when all is right: %v, %v", d, err)
	}
	k.Ops()
	fdb := c.FDB[len(c.FDB)-1]
	k.Edit(func(s *datapath.State) { delete(s.FDB, fdb.Key()) })
	for range 2 {
		d, err := l.Plan(t.Context())
		if err != nil || len(d) != 1 || d[0].Kind != "fdb" || d[0].Found != "missing" || d[0].Do != (datapath.SetFDB{FDBEntry: fdb}).String() {
			t.Errorf("without an entry: %+v, %v", d, err)
		}
	}
	if ops := k.Ops(); len(ops) > 0 || len(l.Status().Drift) > 0 {
		t.Errorf("the plan has done %v, and counted %v", ops, l.Status().Drift)
	}
	l.Doubt()
	wait(t, l, l.Set(c), "n1")
	if got := l.Status().Drift["fdb"]; got != 1 {
		t.Errorf("the repair counts %d", got)
	}
	stop()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Plan(ctx); err == nil {
		t.Error("a loop that has ended made a plan")
	}
}
