package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
)

type disk struct {
	mu sync.Mutex
	f  *overlay.Facts
}

func (d *disk) LoadFacts() (*overlay.Facts, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.f, nil
}

func (d *disk) SaveFacts(f *overlay.Facts) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.f = f
	return nil
}

func nodeID(i int) overlay.NodeID { return overlay.NodeID(fmt.Sprintf("%032x", i)) }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s in time", what)
		}
	}
}

// watching runs a watcher until stop.
func watching(t *testing.T, cred *pki.Credentials, d *disk, first *overlay.Facts, managers ...*site) (*Watcher, func()) {
	t.Helper()
	var at []Manager
	for _, m := range managers {
		at = append(at, m.at())
	}
	cl := NewClient(cred.Identity().Node, cred, at)
	w, err := NewWatcher(WatcherConfig{Self: cred.Identity().Node, Client: cl, Store: d, First: first, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.Run(ctx) }()
	stop := sync.OnceFunc(func() { cancel(); <-done; cl.Close() })
	t.Cleanup(stop)
	return w, stop
}

func TestWatchAndResume(t *testing.T) {
	c := newCluster(t)
	m := c.serve(overlay.Manager, newStub())
	cred, d := c.node(overlay.Worker), &disk{}
	m.put(5, overlay.Node{ID: nodeID(1), Name: "a"})
	w, stop := watching(t, cred, d, &overlay.Facts{V: 1, Level: 1, Place: place}, m)
	eventually(t, "first facts", func() bool { return w.Facts().Revision == 5 })
	<-w.Changed()
	m.put(6, overlay.Node{ID: nodeID(2), Name: "b"})
	eventually(t, "difference", func() bool { return len(w.Facts().Nodes) == 2 })
	if id, b := w.Source(); id != m.cred.Identity().Node || b.Leader != "x" {
		eventually(t, "source", func() bool { id, _ := w.Source(); return id == m.cred.Identity().Node })
	}
	stop()
	if d.f.Revision != 6 {
		t.Errorf("the disk has revision %d", d.f.Revision)
	}
	m.put(7, overlay.Node{ID: nodeID(3), Name: "c"})
	m.mu.Lock()
	m.sinces = nil
	m.mu.Unlock()
	w, stop = watching(t, cred, d, nil, m)
	if w.Facts().Revision != 6 {
		t.Errorf("after a restart it has revision %d", w.Facts().Revision)
	}
	eventually(t, "what happened meanwhile", func() bool { return len(w.Facts().Nodes) == 3 })
	m.mu.Lock()
	if slices.ContainsFunc(m.sinces, func(rev uint64) bool { return rev != 6 }) {
		t.Errorf("it asked from %v", m.sinces)
	}
	m.whole = true // the manager can't tell the difference any more
	m.mu.Unlock()
	stop()
	m.put(9, overlay.Node{ID: nodeID(1), Name: "a2"})
	w, _ = watching(t, cred, d, nil, m)
	eventually(t, "the whole", func() bool { return w.Facts().Nodes[nodeID(1)].Name == "a2" && len(w.Facts().Nodes) == 3 })
}

// Without a manager the stored facts stand; a manager that comes up later is found.
func TestWatchFromDisk(t *testing.T) {
	c := newCluster(t)
	m := c.serve(overlay.Manager, newStub())
	m.stop()
	w, _ := watching(t, c.node(overlay.Worker), &disk{f: &overlay.Facts{V: 1, Level: 1, Place: place, Revision: 3}}, nil, m)
	if w.Facts().Revision != 3 {
		t.Error("stored facts are gone")
	}
	later := c.serve(overlay.Manager, newStub())
	later.put(4, overlay.Node{ID: nodeID(1)})
	w.Client.SetManagers([]Manager{m.at(), later.at()})
	eventually(t, "facts", func() bool { return w.Facts().Revision == 4 })
	if _, err := NewWatcher(WatcherConfig{Client: NewClient("", nil, nil), Store: &disk{}}); err == nil || !strings.Contains(err.Error(), "heddle leave") {
		t.Errorf("%v", err)
	}
}

func TestLeavesBadManagers(t *testing.T) {
	for _, tc := range []struct {
		name string
		beat Beat
	}{
		{"leaderless", Beat{Commit: 1 << 40, Age: 60_000}},
		{"cut off from the leader", Beat{Leader: "x", Commit: 1 << 40, Age: 60_000}},
		{"behind", Beat{Leader: "x", Commit: 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			bad, good := c.serve(overlay.Manager, newStub()), c.serve(overlay.Manager, newStub())
			bad.beat = tc.beat
			w, _ := watching(t, c.node(overlay.Worker), &disk{}, &overlay.Facts{V: 1, Level: 1, Place: place, Revision: 3}, bad, good)
			good.put(4, overlay.Node{ID: nodeID(1)})
			begin := time.Now()
			eventually(t, "another manager", func() bool { return w.Facts().Revision == 4 })
			if d := time.Since(begin); d < silence-time.Second || d > silence+3*time.Second {
				t.Errorf("it left after %v", d)
			}
		})
	}
}

// A manager on this node is followed without a connection, while it is good.
func TestWatchLocal(t *testing.T) {
	c := newCluster(t)
	remote, cred := c.serve(overlay.Manager, newStub()), c.node(overlay.Manager)
	remote.put(5, overlay.Node{ID: nodeID(1)})
	w, _ := watching(t, cred, &disk{}, &overlay.Facts{V: 1, Level: 1, Place: place}, remote)
	eventually(t, "facts", func() bool { return w.Facts().Revision == 5 })
	local := newStub() // behind: it has just begun
	w.SetLocal(local)
	remote.put(6, overlay.Node{ID: nodeID(2)})
	eventually(t, "facts from elsewhere", func() bool { return w.Facts().Revision == 6 })
	local.put(6, overlay.Node{ID: nodeID(2)})
	eventually(t, "the own state", func() bool { id, _ := w.Source(); return id == cred.Identity().Node })
	local.put(7, overlay.Node{ID: nodeID(3)})
	eventually(t, "facts from the own state", func() bool { return w.Facts().Revision == 7 })
	w.SetLocal(nil)
	remote.put(8, overlay.Node{ID: nodeID(4)})
	eventually(t, "facts from elsewhere again", func() bool { return w.Facts().Revision == 8 })
}

// idle is a watcher that is not run, and has no store.
func idle(c WatcherConfig, facts *overlay.Facts) *Watcher {
	return &Watcher{WatcherConfig: c, changed: make(chan struct{}, 1), newer: make(chan struct{}), facts: facts}
}

// Whoever awaits facts has them as soon as they come, or ends.
func TestFactsAreAwaited(t *testing.T) {
	w := idle(WatcherConfig{Client: NewClient("", nil, nil)}, &overlay.Facts{V: 1, Level: 1, Place: place, Revision: 9})
	ctx, cancel := context.WithCancel(t.Context())
	at := func(revision uint64) <-chan error {
		done := make(chan error, 1)
		go func() { done <- w.Await(ctx, func(f *overlay.Facts) bool { return f.Revision >= revision }) }()
		return done
	}
	now, soon, never := at(9), at(11), at(12)
	if err := <-now; err != nil {
		t.Error(err)
	}
	for rev := uint64(10); rev <= 11; rev++ {
		if err := w.take(overlay.Delta{V: 1, Revision: rev, Full: &overlay.Facts{V: 1, Level: 1, Place: place, Revision: rev}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-soon; err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-never; !errors.Is(err, context.Canceled) {
		t.Errorf("it ends with %v", err)
	}
}

func TestFactsNeverGoBack(t *testing.T) {
	w := idle(WatcherConfig{Client: NewClient("", nil, nil)}, &overlay.Facts{V: 1, Level: 1, Place: place, Revision: 9})
	full := func(p overlay.Place, rev uint64) overlay.Delta {
		return overlay.Delta{V: 1, Revision: rev, Full: &overlay.Facts{V: 1, Level: 1, Place: p, Revision: rev}}
	}
	for _, tc := range []struct {
		name  string
		d     overlay.Delta
		rev   uint64
		fails bool
	}{
		{"older", full(place, 8), 9, false},
		{"newer", full(place, 10), 10, false},
		{"another cluster", full(overlay.Place{Cluster: "c2", Epoch: 1}, 11), 10, true},
		{"recovered, shorter log", full(overlay.Place{Cluster: "c1", Epoch: 2}, 4), 4, false},
		{"from before the recovery", full(place, 20), 4, false},
		{"later format", overlay.Delta{V: 9, Revision: 30}, 4, true},
	} {
		err := w.take(tc.d)
		if (err != nil) != tc.fails || w.Facts().Revision != tc.rev {
			t.Errorf("%s: revision %d, %v", tc.name, w.Facts().Revision, err)
		}
	}
}

// Managers show a node that was removed nothing but the removals. What it was shown before stays:
// it starts from that the next time.
func TestARemovedNodeKeepsItsFacts(t *testing.T) {
	self, m := nodeID(1), nodeID(2)
	old := &overlay.Facts{
		V: 1, Level: 1, Place: place, Revision: 9, GossipKeys: [][]byte{{1}},
		Nodes: map[overlay.NodeID]overlay.Node{self: {ID: self}, m: {ID: m, Role: overlay.Manager}},
	}
	w := idle(WatcherConfig{Self: self, Client: NewClient(self, nil, nil)}, old)
	err := w.take(overlay.Delta{V: 1, Revision: 10, Full: &overlay.Facts{
		V: 1, Level: 1, Place: place, Revision: 10, Removals: map[overlay.NodeID]overlay.Signed{self: {}},
	}})
	f := w.Facts()
	if err != nil || f.Revision != 10 || !f.Removed(self) || f.Removed(m) {
		t.Errorf("the removal is not seen: %+v, %v", f, err)
	}
	if len(f.GossipKeys) != 1 || len(f.Nodes) != 2 {
		t.Errorf("keys and nodes are gone: %+v", f)
	}
}

// Facts that an older build kept, which lack what it did not know, are fetched anew, once.
func TestFactsOfAnOlderBuild(t *testing.T) {
	for name, old := range map[string]overlay.Facts{
		"that knew of no levels":           {V: 1, Place: place, Revision: 5},
		"that did not say what it knows":   {V: 1, Place: place, Revision: 5, Level: 1},
		"that knows the level before this": {V: 1, Place: place, Revision: 5, Level: 1, Reads: overlay.Level - 1},
	} {
		t.Run(name, func(t *testing.T) { fetchesAnew(t, &old) })
	}
}

func fetchesAnew(t *testing.T, old *overlay.Facts) {
	c := newCluster(t)
	m, cred := c.serve(overlay.Manager, newStub()), c.node(overlay.Worker)
	m.put(5, overlay.Node{ID: nodeID(1), Name: "a"})
	d := &disk{f: old}
	w, stop := watching(t, cred, d, nil, m)
	eventually(t, "whole facts", func() bool { return w.Facts().Level == 1 && len(w.Facts().Nodes) == 1 })
	stop()
	_, _ = watching(t, cred, d, nil, m)
	asked := func() []uint64 {
		m.mu.Lock()
		defer m.mu.Unlock()
		return slices.Clone(m.sinces)
	}
	m.put(6, overlay.Node{ID: nodeID(2), Name: "b"})
	eventually(t, "difference", func() bool { return slices.Contains(asked(), 5) })
	if slices.Contains(asked(), 0) {
		t.Errorf("differences were asked from %v", asked())
	}
}
