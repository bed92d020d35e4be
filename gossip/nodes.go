package gossip

import (
	"context"
	"encoding/json"
	"maps"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/heddle-net/heddle/overlay"
)

// SetSelf replaces what this node says of itself, and tells all members, again where they don't
// acknowledge it.
func (n *Node) SetSelf(s overlay.SignedNode) error {
	if err := n.hearNode(s); err != nil {
		return err
	}
	n.mu.Lock()
	n.lastPush++
	n.telling = n.lastPush
	for id := range n.nodes {
		if id != n.Self && !n.dead[id] {
			n.untold[id] = 0
		}
	}
	n.mu.Unlock()
	n.tellAll(n.selfFrame())
	// Only the number travels with membership, for whom the record has missed. To wait until it has
	// gone out can take for ever: the library may signal that before it begins to wait.
	_ = n.list.UpdateNode(time.Nanosecond)
	return nil
}

// selfFrame is this node's own record, to be acknowledged.
func (n *Node) selfFrame() frame {
	n.mu.Lock()
	defer n.mu.Unlock()
	return frame{Kind: kindNodes, ID: n.telling, Nodes: []overlay.SignedNode{n.nodes[n.Self].signed}}
}

// tellAgain repeats this node's record to those who have not acknowledged it. Who stays silent
// gets it by an exchange.
func (n *Node) tellAgain() {
	f := n.selfFrame()
	f.V, f.From = version, n.Self
	b, err := json.Marshal(f)
	if err != nil {
		return
	}
	n.mu.Lock()
	var to []overlay.NodeID
	for id, tries := range n.untold {
		if n.dead[id] || tries == tellTries {
			delete(n.untold, id)
			n.behind[id] = n.behind[id] || !n.dead[id]
			continue
		}
		n.untold[id]++
		to = append(to, id)
	}
	maps.DeleteFunc(n.behind, func(_ overlay.NodeID, is bool) bool { return !is })
	n.mu.Unlock()
	n.send(to, b, f)
}

// Introduce learns from a member who there is, and tells all of them what this node says of
// itself, so that nobody has to hear of it by chance.
func (n *Node) Introduce(ctx context.Context, to overlay.NodeID) error {
	if err := n.exchange(ctx, to); err != nil {
		return err
	}
	n.tellAll(n.selfFrame())
	return nil
}

// AddNodes takes over node records from elsewhere, such as this node's disk.
func (n *Node) AddNodes(nodes []overlay.SignedNode) {
	for _, s := range nodes {
		_ = n.hearNode(s) // counted
	}
}

// AddRemoval takes in the managers' word that a node is out, and passes it on.
func (n *Node) AddRemoval(s overlay.Signed) error {
	fresh, err := n.hearRemoval(s)
	if err == nil && fresh {
		n.tellAll(frame{Kind: kindNodes, Removals: []overlay.Signed{s}})
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

// tellAll sends a packet to every node that has said where it is, once; who misses it has the
// exchanges.
func (n *Node) tellAll(f frame) {
	f.V, f.From = version, n.Self
	b, err := json.Marshal(f)
	if err != nil {
		return
	}
	n.mu.Lock()
	to := map[overlay.NodeID]netip.AddrPort{}
	for id, h := range n.nodes {
		if id != n.Self && h.record.Gossip.IsValid() {
			to[id] = h.record.Gossip
		}
	}
	n.mu.Unlock()
	for id, at := range to {
		_ = n.list.SendToAddress(memberlist.Address{Addr: hostPort(at), Name: string(id)}, b)
	}
}

// takeNodes takes in node records and removals.
func (n *Node) takeNodes(f frame) {
	for _, s := range f.Removals {
		_, _ = n.hearRemoval(s) // counted
	}
	for _, s := range f.Nodes {
		_ = n.hearNode(s) // counted
	}
}

// hearNode keeps a node record if it is genuine and newer.
func (n *Node) hearNode(s overlay.SignedNode) error {
	r, _, err := n.Trust().CheckNode(s)
	if err != nil {
		n.refused("node record", err)
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, out := n.removals[r.Node]; out || n.nodes[r.Node].record.Number >= r.Number {
		return nil
	}
	n.places.move(r.Node, n.nodes[r.Node].record.DataPath(), r.DataPath())
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
	delete(n.behind, r.Node)
	delete(n.untold, r.Node)
	n.table.DropOwner(r.Node)
	n.giveUp(r.Node)
	n.changes()
	return true, nil
}
