package gossip

import (
	"context"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/heddle-net/heddle/gossip/table"
	"github.com/heddle-net/heddle/overlay"
)

// Retransmissions of a push: the first after retryFirst, doubling to retryMost.
const (
	retryFirst = 15 * time.Millisecond
	retryMost  = 250 * time.Millisecond
	pushWidth  = 64 // streams of one push at the same time
	bulkSize   = 16 // records of a batch that is worth a look at what is held already
)

// Publish states records of this node's own and pushes them to the participants and the
// managers. It returns when every one that lives has acknowledged, or at ctx's end with those
// that have not; they learn it from an exchange. With a ctx that has ended it sends once.
func (n *Node) Publish(ctx context.Context, network overlay.NetworkID, records []overlay.Signed, lease overlay.Signed) ([]overlay.NodeID, error) {
	trust := n.Trust()
	l, err := trust.CheckLease(lease)
	if err != nil {
		return nil, err
	}
	var claims []overlay.Claim
	for _, r := range records {
		c, err := trust.CheckRecordUnder(r, lease, l)
		if err != nil {
			return nil, err
		}
		claims = append(claims, c)
	}
	n.mu.Lock()
	n.leases[network] = lease
	for _, c := range claims {
		if n.table.Merge(c) && n.table.Contested(c) {
			n.changes() // another's claim to the address does not stand any more
		}
	}
	p := &push{waits: map[overlay.NodeID]bool{}, done: make(chan struct{})}
	for id := range n.audience(network) {
		if n.dead[id] {
			n.behind[id] = true // it learns of this as soon as it answers
		} else {
			p.waits[id] = true
		}
	}
	n.lastPush++
	id := n.lastPush
	if len(p.waits) > 0 {
		n.pending[id] = p
	} else {
		close(p.done)
	}
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.pending, id)
		n.mu.Unlock()
	}()
	f := frame{
		V: version, Kind: kindPush, From: n.Self, ID: id,
		Networks: []part{{Network: network, Batches: []batch{pack(table.Batch{Owner: n.Self, Claims: claims})}}},
	}
	return n.deliver(ctx, p, f)
}

// audience are the nodes that learn of a network's endpoints. The caller holds mu.
func (n *Node) audience(network overlay.NetworkID) map[overlay.NodeID]bool {
	all := maps.Clone(n.follows[network])
	if all == nil {
		all = map[overlay.NodeID]bool{}
	}
	maps.Copy(all, n.managers)
	delete(all, n.Self)
	return all
}

// deliver sends until all have acknowledged or ctx ends.
func (n *Node) deliver(ctx context.Context, p *push, f frame) ([]overlay.NodeID, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return nil, overlay.Errorf(overlay.Internal, "encode a push: %w", err)
	}
	for wait := retryFirst; ; wait = min(2*wait, retryMost) {
		n.send(n.waiting(p), b, f)
		again := time.NewTimer(wait)
		select {
		case <-p.done:
			again.Stop()
			return nil, nil
		case <-ctx.Done():
			again.Stop()
			silent := n.waiting(p)
			n.mu.Lock()
			for _, id := range silent {
				n.behind[id] = true
			}
			n.mu.Unlock()
			return silent, nil
		case <-again.C:
		}
	}
}

func (n *Node) waiting(p *push) []overlay.NodeID {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(p.waits))
}

// send sends one try of a push to the nodes: as a packet where it fits, else as a stream.
func (n *Node) send(to []overlay.NodeID, b []byte, f frame) {
	slots := make(chan struct{}, pushWidth)
	for _, id := range to {
		n.mu.Lock()
		at := n.nodes[id].record.Gossip
		n.mu.Unlock()
		if !at.IsValid() {
			continue // it has not said yet where it is
		}
		if len(b) <= maxPush {
			_ = n.list.SendToAddress(memberlist.Address{Addr: hostPort(at), Name: string(id)}, b)
			continue
		}
		select {
		case slots <- struct{}{}:
			go func() {
				defer func() { <-slots }()
				if n.begins(streaming{id, f.ID}) {
					n.sendStream(id, hostPort(at), f)
					n.ends(streaming{id, f.ID})
				}
			}()
		default: // the next try takes the rest
		}
	}
}

// streaming is a push that is under way to a node over a stream. A stream loses nothing, and
// costs both ends a handshake: it is not tried again while it lasts, or a node that is slow to
// acknowledge would be made slower with each try.
type streaming struct {
	to   overlay.NodeID
	push uint64
}

func (n *Node) begins(s streaming) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.streams[s] {
		return false
	}
	n.streams[s] = true
	return true
}

func (n *Node) ends(s streaming) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.streams, s)
}

// sendStream sends a push over a stream, which carries the acknowledgement back.
func (n *Node) sendStream(id overlay.NodeID, at string, f frame) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := n.wire.dial(ctx, at, id, alpnSync)
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if send(c, f) != nil {
		return
	}
	if a, err := receive(c); err == nil && a.Kind == kindAck && a.ID == f.ID {
		n.acknowledged(id, a.ID)
	}
}

// acknowledged notes that a node has a push.
func (n *Node) acknowledged(by overlay.NodeID, id uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if id == n.telling {
		delete(n.untold, by)
	}
	if p := n.pending[id]; p != nil {
		n.settle(p, by)
	}
}

// giveUp waits no longer for a node that membership says is dead. The caller holds mu.
func (n *Node) giveUp(id overlay.NodeID) {
	for _, p := range n.pending {
		n.settle(p, id)
	}
}

func (n *Node) settle(p *push, id overlay.NodeID) {
	if p.waits[id] {
		delete(p.waits, id)
		if len(p.waits) == 0 {
			close(p.done)
		}
	}
}

// readInbox works on packets. Several may run: the order of packets means nothing.
func (n *Node) readInbox(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case b := <-n.inbox:
			f, err := decode(b)
			if err != nil {
				n.refused("frame", err)
				continue
			}
			n.packet(f)
		}
	}
}

func (n *Node) packet(f frame) {
	switch f.Kind {
	case kindAck:
		n.acknowledged(f.From, f.ID)
	case kindPush:
		n.takeParts(f.Networks)
		n.whenApplied(func() { n.acknowledge(f) })
	case kindNodes:
		n.takeNodes(f)
		if f.ID != 0 {
			n.acknowledge(f)
		}
	default:
		n.count("frames refused: unknown kind of packet")
	}
}

// acknowledge answers a push that came as a packet.
func (n *Node) acknowledge(f frame) {
	n.mu.Lock()
	at := n.nodes[f.From].record.Gossip
	n.mu.Unlock()
	if b, err := json.Marshal(n.ack(f)); err == nil && at.IsValid() {
		_ = n.list.SendToAddress(memberlist.Address{Addr: hostPort(at), Name: string(f.From)}, b)
	}
}

func (n *Node) ack(f frame) frame { return frame{V: version, Kind: kindAck, From: n.Self, ID: f.ID} }

// takeParts takes in the records of a push or an exchange.
func (n *Node) takeParts(parts []part) {
	for _, p := range parts {
		for _, b := range p.Batches {
			n.takeBatch(p.Network, b)
		}
	}
}

// takeBatch checks a batch record by record. What does not pass is counted and changes nothing.
// A batch with a refused record does not move the mark past it. After a cut two exchanges often
// bring the same: of many records, those that the first has brought are not checked again.
func (n *Node) takeBatch(network overlay.NetworkID, b batch) {
	trust := n.Trust()
	leases := make([]overlay.Lease, len(b.Leases))
	bad := make([]error, len(b.Leases))
	for i, s := range b.Leases {
		leases[i], bad[i] = trust.CheckLease(s)
	}
	in, whole := table.Batch{Owner: b.Owner, UpTo: b.UpTo}, true
	bulk := len(b.Records) >= bulkSize
	if bulk {
		n.bulk.Lock()
		defer n.bulk.Unlock()
	}
	for _, r := range b.Records {
		if bulk && n.holds(network, b.Owner, r.Signed) {
			continue
		}
		if r.Lease < 0 || r.Lease >= len(leases) {
			n.count("records refused: " + string(overlay.Invalid))
			whole = false
			continue
		}
		err := bad[r.Lease]
		var c overlay.Claim
		if err == nil {
			c, err = trust.CheckRecordUnder(r.Signed, b.Leases[r.Lease], leases[r.Lease])
		}
		if err == nil && (c.Record.Network != network || c.Record.Owner != b.Owner) {
			err = overlay.Errorf(overlay.Denied, "record: not of its batch's network and owner")
		}
		if err != nil {
			n.refused("record", err)
			whole = false
			continue
		}
		in.Claims = append(in.Claims, c)
	}
	if !whole {
		in.UpTo = overlay.Version{}
	}
	n.merge(network, in)
}

// holds says whether a record that was not checked yet could bring nothing new.
func (n *Node) holds(network overlay.NetworkID, owner overlay.NodeID, s overlay.Signed) bool {
	var r struct { // what is looked at of an overlay.Record
		Endpoint    overlay.EndpointID `json:"endpoint"`
		Incarnation uint64             `json:"incarnation"`
		Number      uint64             `json:"number"`
	}
	if json.Unmarshal(s.Body, &r) != nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.table.Holds(network, owner, r.Endpoint, overlay.Version{Incarnation: r.Incarnation, Number: r.Number})
}

// merge takes checked claims into the table, if this node follows the network.
func (n *Node) merge(network overlay.NetworkID, b table.Batch) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.follows[network] == nil {
		if !n.managers[n.Self] {
			n.counters["records refused: network not followed"] += uint64(len(b.Claims))
			return
		}
		n.follows[network] = map[overlay.NodeID]bool{}
	}
	if b.Owner == n.Self {
		if len(b.Claims) > 0 {
			b.UpTo = b.Claims[len(b.Claims)-1].Record.Version()
		}
		if b.UpTo.Compare(n.stated[network]) > 0 {
			n.stated[network] = b.UpTo
			if b.UpTo.Compare(n.table.Mark(network, n.Self)) > 0 {
				n.changes() // this node has forgotten what it said
			}
		}
		return
	}
	if len(b.Claims) > 0 {
		n.follows[network][b.Owner] = true // its lease passed the check: it takes part
	}
	n.counters["records accepted"] += uint64(len(b.Claims))
	if n.table.MergeBatch(network, b) {
		n.changes()
	}
}

// refused counts what did not pass, by kind of thing and of error.
func (n *Node) refused(what string, err error) {
	n.count(what + "s refused: " + string(overlay.KindOf(err)))
	n.Log.Debug("refused", "what", what, "err", err)
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
	n.table.DropOwner(r.Node)
	n.giveUp(r.Node)
	n.changes()
	return true, nil
}
