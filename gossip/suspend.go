package gossip

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

const (
	doubtEvery = time.Second // between probes of a node that membership calls dead
	doubtTime  = time.Second // for the answer to one
	doubtWidth = 16          // of them under way at the same time
)

// doubt is about a node that membership calls dead. Membership is a hint: a node's names and
// addresses are suspended only while it does not answer this node either.
type doubt struct {
	end       context.CancelFunc // of its probes
	answered  time.Time          // when it did last, with its key
	suspended time.Time          // since when it does not; zero while it does, or nobody knows yet
}

// bury takes a node for dead, as membership says, and finds out whether it answers all the same.
// The caller holds mu.
func (n *Node) bury(id overlay.NodeID) {
	n.dead[id] = true
	n.giveUp(id)
	if _, out := n.removals[id]; out || n.doubts[id] != nil || n.life.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(n.life)
	d := &doubt{end: cancel}
	n.doubts[id] = d
	n.working.Go(func() { n.watch(ctx, id, d) })
}

// lift ends what was thought of a node that lives, or was removed. The caller holds mu.
func (n *Node) lift(id overlay.NodeID) {
	delete(n.dead, id)
	d := n.doubts[id]
	if d == nil {
		return
	}
	d.end()
	delete(n.doubts, id)
	if !d.suspended.IsZero() {
		n.changes()
	}
}

// watch probes a node that membership calls dead until it does no more.
func (n *Node) watch(ctx context.Context, id overlay.NodeID, d *doubt) {
	for {
		select {
		case n.doubting <- struct{}{}:
		case <-ctx.Done():
			return
		}
		begun := time.Now()
		err := n.probe(ctx, id)
		<-n.doubting
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			n.heardFrom(id)
		} else {
			n.suspend(id, d, begun)
		}
		again := time.NewTimer(doubtEvery/2 + rand.N(doubtEvery))
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return
		}
	}
}

// probe returns nil when a node takes a stream, which proves that it has its key, and answers by it.
func (n *Node) probe(ctx context.Context, id overlay.NodeID) error {
	at, err := n.addressOf(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, doubtTime)
	defer cancel()
	c, err := n.wire.Dial(ctx, at, id)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := send(c, frame{Kind: kindNodes, From: n.Self}); err != nil {
		return err
	}
	_, err = receive(c)
	return err
}

// suspend notes that a node has not answered a probe, unless it has answered something since that
// was begun. From then on it is knocked at, which is cheaper and comes sooner than streams, and met
// as soon as it answers.
func (n *Node) suspend(id overlay.NodeID, d *doubt, begun time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.doubts[id] == d && d.suspended.IsZero() && d.answered.Before(begun) {
		d.suspended = time.Now()
		n.miss(id)
		n.changes()
	}
}

// heardFrom notes that a node has answered this one, with its key.
func (n *Node) heardFrom(id overlay.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.doubts[id]
	if d == nil {
		return
	}
	d.answered = time.Now()
	if !d.suspended.IsZero() {
		d.suspended = time.Time{}
		n.changes()
	}
}

// hint notes that a node has come with its key. Where it is suspended, this node looks at once
// whether it answers, too.
func (n *Node) hint(id overlay.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d := n.doubts[id]; d != nil && !d.suspended.IsZero() {
		n.answers(id)
	}
}

// Suspended are the nodes that membership calls dead and that don't answer this node either, and
// since when. Their names and addresses are not used, if there are others; all else that is known of
// them stays. Changed signals when it changes.
func (n *Node) Suspended() map[overlay.NodeID]time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[overlay.NodeID]time.Time{}
	for id, d := range n.doubts {
		if !d.suspended.IsZero() {
			out[id] = d.suspended
		}
	}
	return out
}
