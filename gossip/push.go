package gossip

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/heddle-net/heddle/gossip/table"
	"github.com/heddle-net/heddle/overlay"
)

const (
	retryFirst = 15 * time.Millisecond // until a push is sent again; doubles to retryMost
	retryMost  = 250 * time.Millisecond
	pushTime   = 2 * time.Second // until an exchange has to do it
	pushTurns  = 8               // pushes that are new and not acknowledged; others wait
	packAbove  = 16              // pushes that wait; a stream is cheaper than more packets
	pushWidth  = 64              // streams of pushes at the same time
	streamTime = 5 * time.Second
	bulkSize   = 16 // records of a batch that is worth a look at what is held already
)

// Publish states records of this node's own and pushes them to the participants and the
// managers. It returns when every one that lives has acknowledged, or at ctx's end with those
// that have not; they are told again for a while, then they learn it from an exchange.
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
	p := n.await(n.audience(network))
	p.network, p.claims = network, claims
	n.queue = append(n.queue, p)
	idle := !n.draining
	n.draining = true
	n.mu.Unlock()
	if idle {
		n.begin(n.drain) // until the queue is empty
	}
	select {
	case <-p.done:
	case <-ctx.Done():
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	p.left = true
	return slices.Sorted(maps.Keys(p.waits)), nil
}

// await makes a push that nodes must acknowledge. The caller holds mu.
func (n *Node) await(nodes map[overlay.NodeID]bool) *push {
	n.lastPush++
	p := &push{id: n.lastPush, waits: map[overlay.NodeID]bool{}, streams: map[overlay.NodeID]bool{}, done: make(chan struct{})}
	for id := range nodes {
		if n.dead[id] {
			n.miss(id) // it learns of this as soon as it answers
		} else {
			p.waits[id] = true
		}
	}
	if len(p.waits) > 0 {
		n.pending[p.id] = p
	} else {
		close(p.done)
	}
	return p
}

// drain sends what is to be pushed. When more waits than goes out, it is packed together.
func (n *Node) drain() {
	for {
		select {
		case n.turns <- struct{}{}:
		case <-n.life.Done():
			return
		}
		n.mu.Lock()
		p := n.next()
		n.draining = p != nil
		n.mu.Unlock()
		if p == nil {
			<-n.turns
			return
		}
		b, err := json.Marshal(frame{
			V: version, Kind: kindPush, From: n.Self, ID: p.id,
			Networks: []part{{Network: p.network, Batches: []batch{pack(table.Batch{Owner: n.Self, Claims: p.claims})}}},
		})
		if err != nil {
			n.Log.Error("encode a push", "network", p.network, "err", err)
		}
		n.begin(func() { n.deliver(p, b, sync.OnceFunc(func() { <-n.turns })) })
	}
}

// next is the push that goes out next: the oldest, or all of its network when many wait. The caller
// holds mu.
func (n *Node) next() *push {
	if len(n.queue) == 0 {
		return nil
	}
	oldest := n.queue[0]
	var same, others []*push
	for _, p := range n.queue {
		if p.network == oldest.network {
			same = append(same, p)
		} else {
			others = append(others, p)
		}
	}
	if len(same) <= packAbove {
		n.queue = n.queue[1:]
		return oldest
	}
	n.queue = others
	all := n.await(n.audience(oldest.network))
	all.network, all.packs = oldest.network, same
	for _, p := range same {
		all.claims = append(all.claims, p.claims...)
	}
	return all
}

// audience are the nodes that learn of a network's endpoints. The caller holds mu.
func (n *Node) audience(network overlay.NetworkID) map[overlay.NodeID]bool {
	all := maps.Clone(n.follows[network])
	if all == nil {
		all = map[overlay.NodeID]bool{}
	}
	maps.Copy(all, n.managers)
	delete(all, n.Self)
	for id := range n.removals {
		delete(all, id)
	}
	return all
}

// deliver sends until all have acknowledged, and calls sent when that was done or is due again. Who
// has not acknowledged after a while learns it from an exchange.
func (n *Node) deliver(p *push, b []byte, sent func()) {
	late := time.NewTimer(pushTime)
	defer late.Stop()
	defer n.forget(p)
	defer sent()
	for wait := retryFirst; ; wait = min(2*wait, retryMost) {
		n.leave(p)
		n.send(p, b)
		again := time.NewTimer(wait)
		select {
		case <-p.done:
			again.Stop()
			return
		case <-late.C:
			again.Stop()
			return
		case <-n.life.Done():
			again.Stop()
			return
		case <-again.C:
		}
		sent()
	}
}

// leave leaves those who lack something anyway to the exchange that is to bring them up, once no
// caller waits for them. Else all that was said in the last seconds of a cut would come once more
// when it heals, piece by piece, in the exchanges' way.
func (n *Node) leave(p *push) {
	n.mu.Lock()
	defer n.mu.Unlock()
	waited := func(q *push) bool { return !q.left }
	if len(p.packs) == 0 && waited(p) || slices.ContainsFunc(p.packs, waited) {
		return
	}
	for id := range n.behind {
		n.settle(p, id)
	}
}

// forget ends a push. Who has not acknowledged it lacks it.
func (n *Node) forget(p *push) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.pending, p.id)
	for _, q := range p.packs {
		delete(n.pending, q.id)
	}
	for id := range p.waits {
		n.miss(id)
	}
}

func (n *Node) waiting(p *push) []overlay.NodeID {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(p.waits))
}

func (n *Node) waitsFor(p *push, id overlay.NodeID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return p.waits[id]
}

// send sends one try of a push to who is waited for: as a packet where it fits, else as a stream,
// of which each has one at a time.
func (n *Node) send(p *push, b []byte) {
	if len(b) <= maxPush {
		n.sendPackets(p, b)
		return
	}
	for _, to := range n.waiting(p) {
		n.mu.Lock()
		at := n.nodes[to].record.Gossip
		free := at.IsValid() && !p.streams[to]
		if free {
			p.streams[to] = true
		}
		n.mu.Unlock()
		if !free {
			continue
		}
		n.begin(func() {
			n.sendStream(to, hostPort(at), p, b)
			n.mu.Lock()
			delete(p.streams, to)
			n.mu.Unlock()
		})
	}
}

// sendPackets sends a push to who is waited for and has said where it is.
func (n *Node) sendPackets(p *push, b []byte) {
	for _, to := range n.waiting(p) {
		n.mu.Lock()
		at := n.nodes[to].record.Gossip
		n.mu.Unlock()
		if at.IsValid() {
			_ = n.list.SendToAddress(memberlist.Address{Addr: hostPort(at), Name: string(to)}, b)
		}
	}
}

// sendStream sends a push over a stream, which carries the acknowledgement back.
func (n *Node) sendStream(to overlay.NodeID, at string, p *push, b []byte) {
	select {
	case n.slots <- struct{}{}:
		defer func() { <-n.slots }()
	case <-n.life.Done():
		return
	}
	if !n.waitsFor(p, to) {
		return
	}
	ctx, cancel := context.WithTimeout(n.life, streamTime)
	defer cancel()
	dialling, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := n.wire.Dial(dialling, at, to)
	if err != nil || !n.waitsFor(p, to) {
		return
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if sendBytes(c, b) != nil {
		return
	}
	if a, err := receive(c); err == nil && a.Kind == kindAck && a.ID == p.id {
		n.acknowledged(to, p.id)
	}
}

// acknowledged notes that a node has a push.
func (n *Node) acknowledged(by overlay.NodeID, id uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.pending[id]; p != nil {
		n.settle(p, by)
	}
	if _, lacks := n.behind[by]; lacks {
		n.answers(by)
	}
}

// giveUp waits no longer for a node that membership says is dead. What it was being told it lacks.
// The caller holds mu.
func (n *Node) giveUp(id overlay.NodeID) {
	for _, p := range n.pending {
		if p.waits[id] {
			n.miss(id)
		}
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
	for _, q := range p.packs {
		n.settle(q, id)
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
		if b.UpTo.Compare(n.stated[network]) > 0 && b.UpTo.Compare(n.table.Newest(network, n.Self)) > 0 {
			n.stated[network] = b.UpTo
			n.changes() // this node has forgotten what it said, unless it has just begun
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
