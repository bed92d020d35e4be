package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/wire"
)

const (
	silence   = 3 * time.Second        // a manager that is silent, leaderless or behind for so long is left
	saveEvery = 100 * time.Millisecond // at most one write of the facts in this time
	retryMax  = 2 * time.Second        // between two rounds over managers that do not answer
)

// Store keeps the last facts on the node's disk.
type Store interface {
	// LoadFacts is what SaveFacts kept, or nil.
	LoadFacts() (*overlay.Facts, error)
	SaveFacts(*overlay.Facts) error
}

// WatcherConfig is what a watcher works with. First may be nil, the rest is required.
type WatcherConfig struct {
	Self   overlay.NodeID
	Client *Client // the watcher tells it which managers there are
	Store  Store
	First  *overlay.Facts // of a join's reply, or nil: the stored ones
	Log    *slog.Logger
}

// Watcher follows the managers' facts: one stream from any of them, resumed by revision. With
// no manager in reach it keeps what it has, from the disk after a restart.
type Watcher struct {
	WatcherConfig
	changed chan struct{}

	mu     sync.Mutex
	facts  *overlay.Facts
	newer  chan struct{} // closed when facts changes
	local  Source
	swap   chan struct{} // closed when local changes
	source overlay.NodeID
	heard  time.Time // of a source, last
	beat   Beat
	dirty  bool // facts are not on the disk yet
}

// NewWatcher loads the facts that the node had. It starts nothing.
func NewWatcher(c WatcherConfig) (*Watcher, error) {
	w := &Watcher{WatcherConfig: c, changed: make(chan struct{}, 1), swap: make(chan struct{}), newer: make(chan struct{}), facts: c.First}
	if w.facts == nil {
		f, err := c.Store.LoadFacts()
		if err != nil {
			return nil, err
		}
		if f == nil {
			return nil, overlay.Errorf(overlay.Internal, "this node's disk has no facts of its cluster; run `heddle leave --force` and join again")
		}
		w.facts = f
	} else {
		w.facts = takenIn(c.First)
		if err := c.Store.SaveFacts(w.facts); err != nil {
			return nil, err
		}
	}
	w.Client.SetManagers(Managers(w.facts))
	return w, nil
}

// Facts are the newest facts, never nil.
func (w *Watcher) Facts() *overlay.Facts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.facts
}

// Changed signals that Facts are newer than before. It has one reader.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

// Await waits for facts that are as is says, until ctx ends.
func (w *Watcher) Await(ctx context.Context, is func(*overlay.Facts) bool) error {
	for {
		w.mu.Lock()
		f, newer := w.facts, w.newer
		w.mu.Unlock()
		if is(f) {
			return nil
		}
		select {
		case <-newer:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Source is the manager that the facts come from, or "" while none answers, and how fresh it is.
func (w *Watcher) Source() (overlay.NodeID, Beat) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.source, w.beat
}

// Heard is when a manager was heard of last; zero: not since the start.
func (w *Watcher) Heard() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.heard
}

// SetLocal gives the state of a manager on this node, which is followed whenever it knows of a
// leader and is not behind, or takes it away with nil.
func (w *Watcher) SetLocal(s Source) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.local == s {
		return
	}
	w.local = s
	close(w.swap)
	w.swap = make(chan struct{})
}

// Run follows the managers until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	var saver sync.WaitGroup
	saver.Go(func() { w.save(ctx) })
	defer saver.Wait()
	for pause := saveEvery; ctx.Err() == nil; {
		begin, swap := time.Now(), w.swapped()
		if w.round(ctx, swap) {
			continue
		}
		if time.Since(begin) > 2*silence {
			pause = saveEvery
		}
		w.setSource("", Beat{Age: -1})
		select {
		case <-ctx.Done():
		case <-swap:
		case <-time.After(pause/2 + rand.N(pause)): // so that a cluster's nodes do not come back in step
		}
		pause = min(2*pause, retryMax)
	}
	return nil
}

func (w *Watcher) swapped() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.swap
}

// round follows each source there is, one after the other, for as long as it is good. True says
// that there is a better one at once.
func (w *Watcher) round(ctx context.Context, swap <-chan struct{}) bool {
	if local := w.goodLocal(); local != nil {
		err := w.followLocal(ctx, local, swap)
		if ctx.Err() == nil {
			w.Log.Debug("the manager on this node is not followed any more", "err", err)
		}
		if errors.Is(err, errSwapped) {
			return true
		}
	}
	for _, m := range w.Client.Managers() {
		if m.ID == w.Self {
			continue
		}
		err := w.follow(ctx, m.ID, swap)
		if ctx.Err() != nil {
			return false
		}
		w.Log.Debug("stream of facts ended", "node", m.ID, "err", err)
		if errors.Is(err, errSwapped) {
			return true
		}
	}
	return false
}

var errSwapped = errors.New("there is a better source")

// goodLocal is the manager on this node, if it is worth following.
func (w *Watcher) goodLocal() Source {
	w.mu.Lock()
	local, f := w.local, w.facts
	w.mu.Unlock()
	if local == nil || !local.Beat().led() {
		return nil
	}
	if mine := local.FactsFor(w.Self); mine == nil || mine.Epoch < f.Epoch || mine.Revision < f.Revision {
		return nil
	}
	return local
}

// followLocal follows the manager on this node.
func (w *Watcher) followLocal(ctx context.Context, s Source, swap <-chan struct{}) error {
	tick := time.NewTicker(silence / 3)
	defer tick.Stop()
	health := newHealth()
	for {
		f := w.Facts()
		changed := s.Changed(since(f))
		if d, ok := next(s, f, w.Self); ok {
			if err := w.take(d); err != nil {
				return err
			}
			continue
		}
		b := s.Beat()
		w.setSource(w.Self, b)
		if err := health.judge(b, w.Facts()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-swap:
			return errSwapped
		case <-changed:
		case <-tick.C:
		}
	}
}

// next is what a source has for a node that holds some facts, if it is newer. A source that is
// behind has nothing.
func next(s Source, f *overlay.Facts, self overlay.NodeID) (overlay.Delta, bool) {
	return nextSince(s, f.Place, since(f), self)
}

// since is the revision that differences build on: none for facts that lack what their reader did
// not know.
func since(f *overlay.Facts) uint64 {
	if f.Level == 0 || f.Reads < overlay.Level {
		return 0
	}
	return f.Revision
}

// takenIn is whole facts, marked as those of this build.
func takenIn(f *overlay.Facts) *overlay.Facts {
	own := *f
	own.Reads = overlay.Level
	return &own
}

func nextSince(s Source, p overlay.Place, rev uint64, self overlay.NodeID) (overlay.Delta, bool) {
	select {
	case <-s.Changed(rev):
	default:
		return overlay.Delta{}, false
	}
	if rev > 0 {
		if d, ok := s.Since(rev, self); ok {
			return d, true
		}
	}
	f := s.FactsFor(self)
	if f == nil || (f.Place == p && f.Revision <= rev) {
		return overlay.Delta{}, false
	}
	return overlay.Delta{V: 1, Revision: f.Revision, Full: f}, true
}

// health judges a source by its beats.
type health struct{ good time.Time }

func newHealth() *health { return &health{time.Now()} }

// led says whether the beat is of a manager that hears of a leader.
func (b Beat) led() bool {
	return b.Leader != "" && b.Age >= 0 && time.Duration(b.Age)*time.Millisecond < silence
}

func (h *health) judge(b Beat, f *overlay.Facts) error {
	if b.led() && b.Commit >= f.Revision {
		h.good = time.Now()
	}
	if time.Since(h.good) < silence {
		return nil
	}
	if b.led() {
		return fmt.Errorf("it is behind for %v", silence)
	}
	return fmt.Errorf("it has no leader for %v", silence)
}

// follow reads a manager's stream until it ends or is not worth following.
func (w *Watcher) follow(ctx context.Context, m overlay.NodeID, swap <-chan struct{}) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(silence, func() { cancel(fmt.Errorf("it is silent for %v", silence)) })
	defer idle.Stop()
	stop := make(chan struct{})
	var side sync.WaitGroup
	side.Go(func() {
		select {
		case <-swap:
			cancel(errSwapped)
		case <-stop:
		}
	})
	defer side.Wait()
	defer close(stop)

	f := w.Facts()
	req, err := newRequest(ctx, m, http.MethodGet, fmt.Sprintf("%s?since=%d&epoch=%d", pathWatch, since(f), f.Epoch), nil)
	if err != nil {
		return err
	}
	resp, err := w.Client.trans.RoundTrip(req)
	if err != nil {
		return reason(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return wire.Decode(resp, nil)
	}
	health, d := newHealth(), json.NewDecoder(resp.Body)
	for {
		var e event
		if err := d.Decode(&e); err != nil {
			return reason(ctx, err)
		}
		idle.Reset(silence)
		if e.Hello != nil && !e.Hello.Reads["facts"].Has(1) {
			return overlay.Errorf(overlay.Unread, "manager %s speaks a form of the facts that this node does not read; upgrade heddle on it", m.Short())
		}
		if e.Delta != nil {
			if err := w.take(*e.Delta); err != nil {
				return err
			}
		}
		if e.Beat != nil {
			w.Client.prefer(m)
			w.setSource(m, *e.Beat)
			if err := health.judge(*e.Beat, w.Facts()); err != nil {
				return err
			}
			if w.goodLocal() != nil {
				return errSwapped
			}
		}
	}
}

func reason(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// take makes the facts that follow by a delta. Facts never go back, unless the cluster was
// recovered. Who is no member any more may see nothing but the removals, and keeps the rest of
// what it had until it leaves.
func (w *Watcher) take(d overlay.Delta) error {
	if err := overlay.CheckVersion("facts", d.V); err != nil {
		return err
	}
	w.mu.Lock()
	old := w.facts
	next := d.Apply(old)
	switch {
	case next.Cluster != old.Cluster:
		w.mu.Unlock()
		return overlay.Errorf(overlay.Denied, "the manager has facts of another cluster")
	case next.Epoch < old.Epoch || (next.Epoch == old.Epoch && next.Revision < old.Revision):
		w.mu.Unlock()
		return nil
	}
	if d.Full != nil && next.Removed(w.Self) {
		next = overlay.Delta{Revision: next.Revision, Removals: next.Removals}.Apply(old)
	}
	if d.Full != nil {
		next = takenIn(next)
	}
	w.facts, w.dirty = next, true
	close(w.newer)
	w.newer = make(chan struct{})
	w.mu.Unlock()
	if !slices.Equal(Managers(old), Managers(next)) {
		w.Client.SetManagers(Managers(next))
	}
	select {
	case w.changed <- struct{}{}:
	default:
	}
	return nil
}

func (w *Watcher) setSource(id overlay.NodeID, b Beat) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.source, w.beat = id, b
	if id != "" {
		w.heard = time.Now()
	}
}

// save writes facts that are new to the disk, the last time when ctx has ended.
func (w *Watcher) save(ctx context.Context) {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	failing := false
	for end := false; !end; {
		select {
		case <-ctx.Done():
			end = true
		case <-tick.C:
		}
		w.mu.Lock()
		f, dirty := w.facts, w.dirty
		w.dirty = false
		w.mu.Unlock()
		if !dirty {
			continue
		}
		err := w.Store.SaveFacts(f)
		if err != nil {
			w.mu.Lock()
			w.dirty = true
			w.mu.Unlock()
		}
		if err != nil && !failing {
			w.Log.Error("the facts can't be kept on the disk; trying again", "rev", f.Revision, "err", err)
		}
		failing = err != nil
	}
}
