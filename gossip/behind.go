package gossip

import (
	"context"
	"encoding/json"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hashicorp/memberlist"

	"github.com/heddle-net/heddle/overlay"
)

const (
	knockEvery   = 250 * time.Millisecond
	maxKnocks    = 256 // nodes that are knocked at in one round
	catchUpWidth = 16  // exchanges with nodes that have answered
	blindWidth   = 4   // exchanges with nodes that have not
	dialTime     = time.Second
)

// miss notes that a node lacks something. The caller holds mu.
func (n *Node) miss(id overlay.NodeID) {
	if _, there := n.behind[id]; !there {
		n.behind[id] = false
	}
}

// answers notes that a node which lacks something can be reached. The caller holds mu.
func (n *Node) answers(id overlay.NodeID) {
	n.behind[id] = true
	n.wake()
}

// wake lets catchUp look whom it can bring up.
func (n *Node) wake() {
	select {
	case n.reached <- struct{}{}:
	default:
	}
}

// catchUp exchanges with nodes that lack something until that is done: after a cut the two sides
// know of each other as soon as packets pass again. Where a stream would hang, a packet that is
// not answered costs nothing, so they are knocked at, and an exchange follows the answer.
func (n *Node) catchUp(ctx context.Context) {
	var sure, blind errgroup.Group
	sure.SetLimit(catchUpWidth)
	blind.SetLimit(blindWidth)
	defer func() { _, _ = sure.Wait(), blind.Wait() }()
	tick := time.NewTicker(knockEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.reached:
			n.bringUp(ctx, &sure)
		case <-tick.C:
			n.knock()
			n.tryBlindly(ctx, &blind)
		}
	}
}

// bringUp starts exchanges with nodes that have answered, as many as there is room for.
func (n *Node) bringUp(ctx context.Context, room *errgroup.Group) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, answered := range n.behind {
		if answered && !n.meeting[id] && room.TryGo(func() error { n.meet(ctx, id); return nil }) {
			n.meeting[id] = true
			delete(n.behind, id) // what it misses from here on counts anew
		}
	}
}

func (n *Node) meet(ctx context.Context, id overlay.NodeID) {
	err := n.exchange(ctx, id, dialTime)
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.meeting, id)
	if _, out := n.removals[id]; err != nil && !out {
		n.miss(id)
	}
	n.wake() // there is room for another
}

// tryBlindly exchanges with nodes that don't answer: they may not know where this one is.
func (n *Node) tryBlindly(ctx context.Context, room *errgroup.Group) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, answered := range n.behind {
		if !answered && !n.trying[id] && room.TryGo(func() error { n.try(ctx, id); return nil }) {
			n.trying[id] = true
		}
	}
}

func (n *Node) try(ctx context.Context, id overlay.NodeID) {
	err := n.exchange(ctx, id, dialTime)
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.trying, id)
	if _, lacks := n.behind[id]; err == nil && lacks {
		n.answers(id)
	}
}

// knock asks nodes that lack something for a sign of life.
func (n *Node) knock() {
	n.mu.Lock()
	n.lastPush++
	f := frame{V: version, Kind: kindNodes, From: n.Self, ID: n.lastPush}
	var at []memberlist.Address
	for id, answered := range n.behind {
		if a := n.nodes[id].record.Gossip; !answered && a.IsValid() && len(at) < maxKnocks {
			at = append(at, memberlist.Address{Addr: hostPort(a), Name: string(id)})
		}
	}
	n.mu.Unlock()
	b, err := json.Marshal(f)
	if err != nil {
		return
	}
	for _, a := range at {
		_ = n.list.SendToAddress(a, b)
	}
}
