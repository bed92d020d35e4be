package raftnode

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// State is what commands are applied to. Apply and Restore are never called at the same time.
type State interface {
	// Apply executes a committed command. The result goes to whoever proposed it. An error
	// means that this build can't go on (an unknown command): the node stops, since skipping
	// what others execute would make it differ from them.
	Apply(index uint64, command []byte) (result any, err error)
	// Snapshot captures the state and returns what writes it, which runs beside later Applies.
	Snapshot() (SnapshotWriter, error)
	// Restore replaces the state by a snapshot.
	Restore(io.Reader) error
}

// fsm fits a State to the library.
type fsm struct {
	state   State
	applied atomic.Uint64
	moved   *signal // after each Apply and Restore

	once sync.Once
	bad  chan struct{} // closed when the state can't go on
	err  error         // why; read it after bad is closed
}

func newFSM(s State, moved *signal) *fsm {
	return &fsm{state: s, moved: moved, bad: make(chan struct{})}
}

func (f *fsm) fail(err error) {
	f.once.Do(func() {
		f.err = err
		close(f.bad)
	})
}

func (f *fsm) broken() bool {
	select {
	case <-f.bad:
		return true
	default:
		return false
	}
}

// failed is an Apply's answer from a state that can't go on.
type failed struct{ err error }

func (f *fsm) Apply(l *raft.Log) any {
	if f.broken() {
		return failed{f.err}
	}
	result, err := f.state.Apply(l.Index, l.Data)
	if err != nil {
		f.fail(err)
		return failed{err}
	}
	f.applied.Store(l.Index)
	f.moved.broadcast()
	return result
}

func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.broken() {
		return nil, f.err
	}
	write, err := f.state.Snapshot()
	return snapshot(write), err
}

func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	if err := f.state.Restore(r); err != nil {
		f.fail(err)
		return err
	}
	f.moved.broadcast()
	return nil
}

// SnapshotWriter writes a captured state.
type SnapshotWriter func(io.Writer) error

type snapshot SnapshotWriter

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (s snapshot) Release() {}

// signal wakes all who wait for something to change.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

func newSignal() *signal { return &signal{ch: make(chan struct{})} }

// wait returns a channel that the next broadcast closes.
func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ch
}

func (s *signal) broadcast() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.ch)
	s.ch = make(chan struct{})
}
