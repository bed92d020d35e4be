package raftnode

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/heddle-net/heddle/overlay"
)

// store is where Raft keeps its log, term and vote.
type store interface {
	raft.LogStore
	raft.StableStore
	Close() error
}

func openStore(dir string) (store, error) {
	path := filepath.Join(dir, "raft.db")
	s, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{
		Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
	}})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, overlay.Errorf(overlay.InUse, "another heddle daemon has %s open; stop it, or use another --data-dir", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open the raft log %s: %w", path, err)
	}
	return s, nil
}

// guard gives writes to a store a deadline. The Raft library waits for its disk for ever while
// its heartbeats go on, so that nobody takes over from a leader whose disk hangs. A write that
// fails is as bad: nothing may be acknowledged after it.
type guard struct {
	store
	limit time.Duration
	once  sync.Once
	bad   chan struct{} // closed by the first write that failed or took too long
	err   error         // why; read it after bad is closed
}

func newGuard(s store, limit time.Duration) *guard {
	return &guard{store: s, limit: limit, bad: make(chan struct{})}
}

func (g *guard) fail(err error) {
	g.once.Do(func() {
		g.err = err
		close(g.bad)
	})
}

// write runs one write. It can't break off a write that hangs; it makes sure that everybody
// knows, and that a write which returns too late is not taken for a success.
func (g *guard) write(what string, f func() error) error {
	late := time.AfterFunc(g.limit, func() {
		g.fail(overlay.Errorf(overlay.Internal, "the disk under the raft log did not finish a write (%s) within %v", what, g.limit))
	})
	err := f()
	late.Stop()
	select {
	case <-g.bad:
		return g.err
	default:
	}
	if err != nil {
		err = fmt.Errorf("write the raft log (%s): %w", what, err)
		g.fail(err)
	}
	return err
}

func (g *guard) StoreLog(l *raft.Log) error {
	return g.write("log", func() error { return g.store.StoreLog(l) })
}

func (g *guard) StoreLogs(l []*raft.Log) error {
	return g.write("log", func() error { return g.store.StoreLogs(l) })
}

func (g *guard) DeleteRange(lo, hi uint64) error {
	return g.write("trim", func() error { return g.store.DeleteRange(lo, hi) })
}

// The library panics when it can't store its term or vote, which would end the agent too. Its
// goroutine is held for good instead, while Run ends with the error.

func (g *guard) Set(k, v []byte) error {
	return hold(g.write("vote", func() error { return g.store.Set(k, v) }))
}

func (g *guard) SetUint64(k []byte, v uint64) error {
	return hold(g.write("term", func() error { return g.store.SetUint64(k, v) }))
}

func hold(err error) error {
	if err != nil {
		select {}
	}
	return nil
}
