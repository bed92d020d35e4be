package gossip

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

const echoEvery = 200 * time.Millisecond // between two tries

// Echo returns nil when a node answers to packets, and an error when it does not before ctx ends.
func (n *Node) Echo(ctx context.Context, to overlay.NodeID) error {
	n.mu.Lock()
	n.lastPush++
	p := &push{id: n.lastPush, waits: map[overlay.NodeID]bool{to: true}, done: make(chan struct{})}
	n.pending[p.id] = p
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.pending, p.id)
		n.mu.Unlock()
	}()
	b, err := json.Marshal(frame{V: version, Kind: kindNodes, From: n.Self, ID: p.id})
	if err != nil {
		return err
	}
	again := time.NewTicker(echoEvery)
	defer again.Stop()
	for {
		n.sendPackets(p, b)
		select {
		case <-p.done:
			n.mu.Lock()
			dead := n.dead[to] // nobody waits for it any more
			n.mu.Unlock()
			if dead {
				return fmt.Errorf("node %s is dead, as membership sees it", to.Short())
			}
			return nil
		case <-ctx.Done():
			return fmt.Errorf("node %s does not answer to packets: %w", to.Short(), ctx.Err())
		case <-again.C:
		}
	}
}
