package raftnode

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/hashicorp/raft"

	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
)

var errStarting = overlay.Errorf(overlay.Unavailable, "the manager on this node is starting or stopping: %w", ErrNotLeader)

func (n *Node) running() (*raft.Raft, error) {
	select {
	case <-n.dead:
		return nil, errStarting
	default:
	}
	if r := n.raft.Load(); r != nil {
		return r, nil
	}
	return nil, errStarting
}

// await waits for the library's answer, for no longer than ctx.
func (n *Node) await(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }() // ends when the library answers, at the latest when it stops
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-n.store.bad:
		return raft.ErrRaftShutdown
	}
}

// Propose commits a command and returns the state's result. Errors are ErrNotLeader (it was
// not executed) or ErrUnknown, with kind Unavailable.
func (n *Node) Propose(ctx context.Context, command []byte) (any, error) {
	r, err := n.running()
	if err != nil {
		return nil, err
	}
	f := r.Apply(command, enqueueTimeout)
	if err := n.await(ctx, f); err != nil {
		return nil, proposeError(err)
	}
	if bad, ok := f.Response().(failed); ok {
		return nil, overlay.Errorf(overlay.Internal, "the managers' state can't go on: %w", bad.err)
	}
	return f.Response(), nil
}

func proposeError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return overlay.Errorf(overlay.Unavailable, "the change was not made (%v); try again: %w", err, ErrNotLeader)
	}
	return overlay.Errorf(overlay.Unavailable, "a quorum of managers did not answer in time (%v): %w", err, ErrUnknown)
}

// VerifyLeader returns once this node knows that it leads, and has applied all that was
// committed before the call: what the state says then is current.
func (n *Node) VerifyLeader(ctx context.Context) error {
	r, err := n.running()
	if err != nil {
		return err
	}
	for {
		wait := n.changed.wait()
		if r.State() != raft.Leader {
			return overlay.Errorf(overlay.Unavailable, "%w", ErrNotLeader)
		}
		// What this leader acknowledged, it has applied; what earlier leaders acknowledged, it
		// has applied when it is ready. So the term must be the same before and after.
		term := r.CurrentTerm()
		if n.ready.Load() == term {
			if err := n.await(ctx, r.VerifyLeader()); err != nil {
				return overlay.Errorf(overlay.Unavailable, "this manager could not make sure that it still leads (%v): %w", err, ErrNotLeader)
			}
			if r.CurrentTerm() == term {
				return nil
			}
			continue
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return overlay.Errorf(overlay.Unavailable, "this manager has just begun to lead: %w", ErrNotLeader)
		}
	}
}

// Leader is the manager that leads as far as this one knows, or "".
func (n *Node) Leader() overlay.NodeID {
	r, err := n.running()
	if err != nil {
		return ""
	}
	_, id := r.LeaderWithID()
	return overlay.NodeID(id)
}

// Leads says whether this node leads, and has applied all that went before.
func (n *Node) Leads() bool {
	r, err := n.running()
	return err == nil && r.State() == raft.Leader && n.ready.Load() == r.CurrentTerm()
}

// LeaderChanged returns a channel that is closed when Leader or Leads may have changed.
func (n *Node) LeaderChanged() <-chan struct{} { return n.changed.wait() }

// Applied returns a channel that is closed when the state has changed.
func (n *Node) Applied() <-chan struct{} { return n.fsm.moved.wait() }

// Stats are for watch streams and status.
type Stats struct {
	Leader  overlay.NodeID
	Term    uint64
	Commit  uint64        // index of the newest committed entry
	Last    uint64        // index of the newest entry in the log
	Contact time.Duration // since this node heard of the leader; 0 on the leader, -1 when it never did
}

// Stats looks at the node's own state; it waits for nothing.
func (n *Node) Stats() Stats {
	r, err := n.running()
	if err != nil {
		return Stats{Contact: -1}
	}
	s := Stats{Leader: n.Leader(), Term: r.CurrentTerm(), Commit: r.CommitIndex(), Last: r.LastIndex(), Contact: -1}
	if at := r.LastContact(); r.State() == raft.Leader {
		s.Contact = 0
	} else if !at.IsZero() {
		s.Contact = time.Since(at)
	}
	return s
}

// Server is a member of the Raft configuration.
type Server struct {
	ID    overlay.NodeID
	Voter bool
}

// Servers is the newest configuration.
func (n *Node) Servers() ([]Server, error) {
	r, err := n.running()
	if err != nil {
		return nil, err
	}
	f := r.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, overlay.Errorf(overlay.Unavailable, "read the raft configuration: %w", err)
	}
	var out []Server
	for _, s := range f.Configuration().Servers {
		out = append(out, Server{overlay.NodeID(s.ID), s.Suffrage == raft.Voter})
	}
	return out, nil
}

// change makes a change of the configuration and waits for its commit.
func (n *Node) change(ctx context.Context, what string, f func(*raft.Raft) raft.Future) error {
	r, err := n.running()
	if err != nil {
		return err
	}
	if err := n.await(ctx, f(r)); err != nil {
		return fmt.Errorf("%s: %w", what, proposeError(err))
	}
	return nil
}

// AddLearner gives a manager the log without a vote. On the leader only.
func (n *Node) AddLearner(ctx context.Context, id overlay.NodeID, control netip.AddrPort) error {
	return n.change(ctx, "add manager "+id.Short()+" to raft", func(r *raft.Raft) raft.Future {
		return r.AddNonvoter(raft.ServerID(id), serverAddress(id, control.String()), 0, enqueueTimeout)
	})
}

// AddVoter gives a manager a vote. On the leader only.
func (n *Node) AddVoter(ctx context.Context, id overlay.NodeID, control netip.AddrPort) error {
	return n.change(ctx, "give manager "+id.Short()+" a vote", func(r *raft.Raft) raft.Future {
		return r.AddVoter(raft.ServerID(id), serverAddress(id, control.String()), 0, enqueueTimeout)
	})
}

// Remove takes a manager out. On the leader only, which can't remove itself: see Transfer.
func (n *Node) Remove(ctx context.Context, id overlay.NodeID) error {
	return n.change(ctx, "take manager "+id.Short()+" out of raft", func(r *raft.Raft) raft.Future {
		return r.RemoveServer(raft.ServerID(id), 0, enqueueTimeout)
	})
}

// Transfer hands leadership to another voter.
func (n *Node) Transfer(ctx context.Context) error {
	return n.change(ctx, "hand leadership over", (*raft.Raft).LeadershipTransfer)
}

// DropRevoked closes the streams of managers whose certificates are refused by now. Call it
// when the facts that revoke have changed.
func (n *Node) DropRevoked() {
	if s := n.stream.Load(); s != nil {
		s.drop(func(peer pki.Subject) bool { return !n.Credentials.Manager(peer) })
	}
}
