package gossip

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"net/netip"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// SetSelf replaces what this node says of itself, and tells all members, again where they don't
// acknowledge it.
func (n *Node) SetSelf(s overlay.SignedNode) error {
	if err := n.hearNode(s, true); err != nil {
		return err
	}
	n.tell(frame{Nodes: []overlay.SignedNode{s}})
	// Only the number travels with membership, for whom the record has missed. To wait until it has
	// gone out can take for ever: the library may signal that before it begins to wait.
	_ = n.list.UpdateNode(time.Nanosecond)
	return nil
}

// Surpassed gives the number of a record of this node that another holds and that it does not know:
// its disk was set back. Others listen to what has a higher one.
func (n *Node) Surpassed() <-chan uint64 { return n.surpassed }

// Introduce learns from a member who there is, and tells all of them what this node says of
// itself, so that nobody has to hear of it by chance.
func (n *Node) Introduce(ctx context.Context, to overlay.NodeID) error {
	if err := n.exchange(ctx, to, exchangeTime); err != nil {
		return err
	}
	n.mu.Lock()
	self := n.nodes[n.Self].signed
	n.mu.Unlock()
	n.tell(frame{Nodes: []overlay.SignedNode{self}})
	return nil
}

// tell pushes node records and removals to all nodes.
func (n *Node) tell(f frame) {
	n.mu.Lock()
	all := map[overlay.NodeID]bool{}
	for id := range n.nodes {
		all[id] = true
	}
	delete(all, n.Self)
	p := n.await(all)
	n.mu.Unlock()
	f.V, f.Kind, f.From, f.ID = version, kindNodes, n.Self, p.id
	b, err := json.Marshal(f)
	if err != nil {
		return
	}
	n.begin(func() {
		if len(b) > maxPush { // in fragments it is cheaper than over streams, where they pass
			n.sendPackets(p, b)
			select {
			case <-p.done:
			case <-time.After(retryMost):
			case <-n.life.Done():
			}
		}
		n.deliver(p, b, func() {})
	})
}

// AddNodes takes over other nodes' records from elsewhere, such as this node's disk.
func (n *Node) AddNodes(nodes []overlay.SignedNode) {
	for _, s := range nodes {
		_ = n.hearNode(s, false) // counted
	}
}

// AddRemoval takes in the managers' word that a node is out, and passes it on.
func (n *Node) AddRemoval(s overlay.Signed) error {
	fresh, err := n.hearRemoval(s)
	if err == nil && fresh {
		n.tell(frame{Removals: []overlay.Signed{s}})
	}
	return err
}

// Removals are the removals that are known.
func (n *Node) Removals() map[overlay.NodeID]overlay.Signed {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.removals)
}

// Nodes are the newest node records. A data-path address that was another node's first is left out.
func (n *Node) Nodes() map[overlay.NodeID]overlay.NodeRecord {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make(map[overlay.NodeID]overlay.NodeRecord, len(n.nodes))
	for id, h := range n.nodes {
		out[id] = n.effective(h)
	}
	return out
}

// Record is a node's newest record.
func (n *Node) Record(id overlay.NodeID) (r overlay.NodeRecord, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h, ok := n.nodes[id]
	if ok {
		r = n.effective(h)
	}
	return r, ok
}

// SignedNodes are the newest node records as they were signed.
func (n *Node) SignedNodes() map[overlay.NodeID]overlay.SignedNode {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make(map[overlay.NodeID]overlay.SignedNode, len(n.nodes))
	for id, h := range n.nodes {
		out[id] = h.signed
	}
	return out
}

// takeNodes takes in node records and removals.
func (n *Node) takeNodes(f frame) {
	for _, s := range f.Removals {
		_, _ = n.hearRemoval(s) // counted
	}
	for _, s := range f.Nodes {
		_ = n.hearNode(s, false) // counted
	}
}

// hearNode keeps a node record if it is genuine and newer. What this node is, only it says itself:
// own is true then.
func (n *Node) hearNode(s overlay.SignedNode, own bool) error {
	r, _, err := n.Trust().CheckNode(s)
	if err != nil {
		n.refused("node record", err)
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	known := n.nodes[r.Node]
	_, out := n.removals[r.Node]
	same := known.record.Number == r.Number
	switch {
	case out, known.record.Number > r.Number, same && bytes.Equal(known.signed.Record.Body, s.Record.Body):
		return nil
	case r.Node == n.Self && !own:
		select {
		case <-n.surpassed: // by an older one
		default:
		}
		n.surpassed <- r.Number
		return nil
	case same: // the first that came stays, until its node says more
		return nil
	}
	n.places.move(r.Node, known.record.DataPath(), r.DataPath())
	n.nodes[r.Node] = heard{s, r}
	if a := r.DataPath(); !n.places.holds(r.Node, a) {
		n.Log.Warn("a node claims a data-path address that another has; it stays with that one", "node", r.Name, "addr", a, "held-by", n.nodes[n.places.claims[a][0]].record.Name)
	}
	n.changes()
	return nil
}

// hearRemoval takes a removed node out of everything.
func (n *Node) hearRemoval(s overlay.Signed) (fresh bool, err error) {
	r, err := n.Trust().CheckRemoval(s)
	if err != nil {
		n.refused("removal", err)
		return false, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, known := n.removals[r.Node]; known {
		return false, nil
	}
	n.removals[r.Node] = s
	n.places.move(r.Node, n.nodes[r.Node].record.DataPath(), netip.Addr{})
	delete(n.nodes, r.Node)
	n.table.DropOwner(r.Node)
	n.giveUp(r.Node)
	n.lift(r.Node)
	delete(n.behind, r.Node)
	n.changes()
	return true, nil
}
