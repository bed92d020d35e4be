// Package raftnode keeps managers in agreement: it runs the Raft library over the control port,
// on a log whose writes have a deadline.
//
// DESIGN.md says which timeouts were chosen and what was measured.
package raftnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
)

// Config is what a node works with. Fields without a comment about a default are required.
type Config struct {
	Self        overlay.NodeID
	Dir         string // for the log and snapshots; made when missing
	State       State
	Credentials *pki.Credentials
	// Listen takes Raft's share of the control port; Run closes what it returns.
	Listen func() net.Listener
	// Address is where a manager's control port answers, by the newest node rows. Where it
	// does not know, the address in the Raft log is used.
	Address func(overlay.NodeID) (netip.AddrPort, bool)
	Timing  Timing // default DefaultTiming
	Log     *slog.Logger
}

// Timing are Raft's timeouts. See DESIGN.md before changing one.
type Timing struct {
	Heartbeat time.Duration // without a word from the leader until an election
	Election  time.Duration // of a candidate
	Lease     time.Duration // without a quorum until a leader steps down; at most Heartbeat
	Commit    time.Duration // until followers hear of a commit with nothing behind it
	Write     time.Duration // for one write to the disk
}

// DefaultTiming loses a leader for less than 3 s, on loaded machines too.
var DefaultTiming = Timing{
	Heartbeat: 750 * time.Millisecond, Election: 750 * time.Millisecond,
	Lease: 500 * time.Millisecond, Commit: 20 * time.Millisecond, Write: 10 * time.Second,
}

const (
	rpcTimeout     = 5 * time.Second // of one Raft message
	enqueueTimeout = 5 * time.Second // until the library takes a command
	stopTimeout    = 3 * time.Second // for handing over leadership, and for stopping
	snapshotsKept  = 2
	snapshotAfter  = 4096 // log entries
	trailingLogs   = 2048 // entries kept behind a snapshot for slow followers
	cachedLogs     = 256
)

// ErrNotLeader says that a command was not executed, because another manager leads, or none.
var ErrNotLeader = errors.New("this manager does not lead")

// ErrUnknown says that a command may or may not be executed. A command with a request ID can
// be proposed again.
var ErrUnknown = errors.New("it is not known whether the change was made")

// Node is one manager's part in Raft. It is safe for concurrent use.
type Node struct {
	Config
	store *guard
	snaps raft.SnapshotStore
	fsm   *fsm

	raft    atomic.Pointer[raft.Raft] // nil before Run
	stream  atomic.Pointer[stream]
	dead    chan struct{} // closed when Run ends
	changed *signal       // of the leader
	ready   atomic.Uint64 // the term in which this leader has applied all that went before it
}

// Open opens the log and snapshots in Dir. It starts nothing; close what is not run.
func Open(c Config) (*Node, error) {
	if c.Timing == (Timing{}) {
		c.Timing = DefaultTiming
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the managers' directory: %w", err)
	}
	s, err := openStore(c.Dir)
	if err != nil {
		return nil, err
	}
	return open(c, s)
}

func open(c Config, s store) (*Node, error) {
	snaps, err := raft.NewFileSnapshotStoreWithLogger(c.Dir, snapshotsKept, newLogger(c.Log))
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("open the managers' snapshots: %w", err)
	}
	n := &Node{Config: c, store: newGuard(s, c.Timing.Write), snaps: snaps, dead: make(chan struct{}), changed: newSignal()}
	n.fsm = newFSM(c.State, newSignal())
	return n, nil
}

// Close closes a node that is not run.
func (n *Node) Close() error { return n.store.Close() }

func (n *Node) library() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(n.Self)
	c.HeartbeatTimeout, c.ElectionTimeout = n.Timing.Heartbeat, n.Timing.Election
	c.LeaderLeaseTimeout, c.CommitTimeout = n.Timing.Lease, n.Timing.Commit
	c.SnapshotThreshold, c.TrailingLogs = snapshotAfter, trailingLogs
	c.ShutdownOnRemove = false
	c.NoLegacyTelemetry = true
	c.Logger = newLogger(n.Log)
	return c
}

// Bootstrap makes this node the only manager of a fresh cluster. It is for a node that was
// opened and does not run yet, once in the life of a cluster.
func (n *Node) Bootstrap(control netip.AddrPort) error {
	one := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(n.Self), Address: serverAddress(n.Self, control.String())}}}
	logs := n.store.store // a failed write is simply an error here
	if err := raft.BootstrapCluster(n.library(), logs, logs, n.snaps, nil, one); err != nil {
		return fmt.Errorf("bootstrap raft: %w", err)
	}
	return nil
}

// Used says whether the directory holds a log already.
func (n *Node) Used() (bool, error) {
	used, err := raft.HasExistingState(n.store, n.store, n.snaps)
	if err != nil {
		err = fmt.Errorf("look into the raft log: %w", err)
	}
	return used, err
}

// Run takes part until ctx ends, then hands leadership over and stops. It ends with an error
// when the disk or the state can't go on; the node must not be run again then.
func (n *Node) Run(ctx context.Context) error {
	defer close(n.dead)
	s := &stream{Listener: n.Listen(), self: n.Self, cred: n.Credentials, open: map[*streamConn]bool{}}
	trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider: addresses{n}, Logger: newLogger(n.Log), Stream: s,
		MaxPool: 3, MaxRPCsInFlight: 1, Timeout: rpcTimeout,
	}) // without pipelining a stalled follower is found again
	r, gained, err := n.start(trans)
	if err != nil {
		trans.Close()
		s.Close()
		n.store.Close()
		return err
	}
	n.stream.Store(s)
	n.raft.Store(r)
	n.changed.broadcast()
	watched, enough := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		n.watch(r, gained, enough)
	}()
	select {
	case <-ctx.Done():
		n.handOver(r)
	case <-n.store.bad:
		err = fmt.Errorf("the manager on this node stops: %w; look at the disk, then restart heddle", n.store.err)
	case <-n.fsm.bad:
		err = fmt.Errorf("the manager on this node stops: %w", n.fsm.err)
	}
	close(enough)
	stopped := r.Shutdown()
	trans.Close()
	trans.CloseStreams()
	down := make(chan struct{})
	go func() { // outlives Run only when the disk hangs
		_ = stopped.Error()
		<-watched
		n.store.Close()
		close(down)
	}()
	if err != nil {
		return err
	}
	select {
	case <-down:
		return nil
	case <-time.After(n.Timing.Write):
		return overlay.Errorf(overlay.Internal, "raft did not stop within %v", n.Timing.Write)
	}
}

// start starts the library. gained tells of leadership won and lost.
func (n *Node) start(trans raft.Transport) (*raft.Raft, chan bool, error) {
	c := n.library()
	gained := make(chan bool, 64) // the library waits for room
	c.NotifyCh = gained
	c.HeartbeatTimeout += time.Millisecond // so that the reload below shortens it
	c.ElectionTimeout += time.Millisecond
	cache, err := raft.NewLogCache(cachedLogs, n.store)
	if err != nil {
		return nil, nil, fmt.Errorf("start raft: %w", err)
	}
	r, err := raft.NewRaft(c, n.fsm, cache, n.store, n.snaps, trans)
	if err != nil {
		return nil, nil, fmt.Errorf("start raft: %w", err)
	}
	if n.alone(r) {
		// A heartbeat timeout that becomes shorter is looked at anew at once: the only voter
		// need not wait for a leader that can't exist.
		rc := r.ReloadableConfig()
		rc.HeartbeatTimeout, rc.ElectionTimeout = n.Timing.Heartbeat, n.Timing.Election
		if err := r.ReloadConfig(rc); err != nil {
			_ = r.Shutdown().Error()
			return nil, nil, fmt.Errorf("start raft: %w", err)
		}
	}
	return r, gained, nil
}

// alone says whether this node is the only server.
func (n *Node) alone(r *raft.Raft) bool {
	f := r.GetConfiguration()
	if f.Error() != nil {
		return false
	}
	s := f.Configuration().Servers
	return len(s) == 1 && s[0].ID == raft.ServerID(n.Self)
}

// watch follows leadership until the node has seen enough.
func (n *Node) watch(r *raft.Raft, gained <-chan bool, enough <-chan struct{}) {
	seen := make(chan raft.Observation, 16)
	o := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	r.RegisterObserver(o)
	defer r.DeregisterObserver(o)
	for {
		select {
		case leads := <-gained:
			if leads {
				n.settle(r, enough)
			}
		case <-seen:
		case <-enough:
			return
		}
		n.changed.broadcast()
	}
}

// settle waits until this leader has applied all that went before its term. It is told of its
// term once, at times before the disk has taken the first entry: so it tries for as long as it leads.
func (n *Node) settle(r *raft.Raft, enough <-chan struct{}) {
	for term := r.CurrentTerm(); r.State() == raft.Leader && r.CurrentTerm() == term; {
		if r.Barrier(enqueueTimeout).Error() == nil {
			n.ready.Store(term)
			return
		}
		select {
		case <-enough:
			return
		case <-time.After(n.Timing.Commit): // a handover refuses at once
		}
	}
}

// handOver passes leadership on before a stop, so that nobody has to miss a heartbeat.
func (n *Node) handOver(r *raft.Raft) {
	if r.State() != raft.Leader || n.alone(r) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := n.await(ctx, r.LeadershipTransfer()); err != nil {
		n.Log.Warn("leadership could not be handed over", "err", err)
	}
}

// addresses finds managers by node rows (raft.ServerAddressProvider).
type addresses struct{ n *Node }

func (a addresses) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if at, ok := a.n.Address(overlay.NodeID(id)); ok {
		return serverAddress(overlay.NodeID(id), at.String()), nil
	}
	return "", errors.New("no row for this manager")
}
