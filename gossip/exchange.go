package gossip

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-net/heddle/gossip/table"
	"github.com/heddle-net/heddle/overlay"
)

const (
	syncWidth = 8 // exchanges of one Sync at the same time
	whereTime = 500 * time.Millisecond
	maxRounds = 256 // of one exchange
)

// Sync exchanges digests of a network with all its participants and fetches what is missing.
// They learn that this node takes part, before they answer: from then on they push to it. It
// fails when one that lives did not answer, or none did: what only the dead host is not known then.
func (n *Node) Sync(ctx context.Context, network overlay.NetworkID, lease overlay.Signed) error {
	n.mu.Lock()
	n.leases[network] = lease
	var ask []overlay.NodeID
	all := n.audience(network)
	for id := range all {
		if !n.dead[id] {
			ask = append(ask, id)
		}
	}
	n.mu.Unlock()
	answered, err := n.exchangeAll(ctx, ask, n.gone)
	if err == nil && answered == 0 && len(all) > 0 {
		err = overlay.Errorf(overlay.Unavailable, "none of the %d nodes that know answers", len(all))
	}
	return err
}

// gone says whether a node is out of the cluster, or dead as membership sees it.
func (n *Node) gone(id overlay.NodeID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, out := n.removals[id]
	return out || n.dead[id]
}

// Refresh fetches what this node lacks from the nodes, and fails when one of them does not answer:
// one that is down or cut off may host what nobody else has heard of.
func (n *Node) Refresh(ctx context.Context, nodes []overlay.NodeID) error {
	n.mu.Lock()
	ask := slices.DeleteFunc(slices.Clone(nodes), func(id overlay.NodeID) bool { return id == n.Self })
	i := slices.IndexFunc(ask, func(id overlay.NodeID) bool { return n.dead[id] })
	var err error
	if i >= 0 {
		err = overlay.Errorf(overlay.Unavailable, "node %s does not answer", cmp.Or(n.nodes[ask[i]].record.Name, ask[i].Short()))
	}
	n.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = n.exchangeAll(ctx, ask, func(overlay.NodeID) bool { return false })
	return err
}

// exchangeAll exchanges with nodes beside each other, and says with how many it did. Its error is of
// the first that failed and was not excused by then.
func (n *Node) exchangeAll(ctx context.Context, ask []overlay.NodeID, excused func(overlay.NodeID) bool) (answered int, err error) {
	var g errgroup.Group // one that fails does not end the others
	var done atomic.Int64
	g.SetLimit(syncWidth)
	for _, id := range ask {
		g.Go(func() error {
			n.whereIs(ctx, id)
			err := n.exchange(ctx, id, exchangeTime)
			switch {
			case err == nil:
				done.Add(1)
			case excused(id):
				return nil
			}
			return err
		})
	}
	err = g.Wait()
	return int(done.Load()), err
}

// whereIs waits for the record of a node that has come in a moment ago.
func (n *Node) whereIs(ctx context.Context, id overlay.NodeID) {
	ctx, cancel := context.WithTimeout(ctx, whereTime)
	defer cancel()
	tick := time.NewTicker(whereTime / 100)
	defer tick.Stop()
	for {
		if _, err := n.addressOf(id); err == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// exchangeOnTimer meets one of each network now and then.
func (n *Node) exchangeOnTimer(ctx context.Context) {
	for {
		pause := time.NewTimer(exchangeEvery/2 + rand.N(exchangeEvery))
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
		for _, id := range n.pick() {
			if err := n.exchange(ctx, id, dialTime); err != nil && ctx.Err() == nil {
				n.count("exchanges failed")
				n.Log.Debug("exchange failed; the timer tries again", "node", id, "err", err)
			}
		}
	}
}

// pick chooses a living node for each network, and one at all.
func (n *Node) pick() []overlay.NodeID {
	n.mu.Lock()
	defer n.mu.Unlock()
	chosen := map[overlay.NodeID]bool{}
	one := func(ids map[overlay.NodeID]bool) {
		for id := range ids { // the order of a map is random enough
			if id != n.Self && !n.dead[id] {
				chosen[id] = true
				return
			}
		}
	}
	for id := range n.follows {
		one(n.audience(id))
	}
	all := map[overlay.NodeID]bool{}
	for id := range n.nodes {
		all[id] = true
	}
	one(all)
	var out []overlay.NodeID
	for id := range chosen {
		out = append(out, id)
	}
	return out
}

// addressOf is where a node's gossip answers: by its record, else as membership says, which
// TLS with its key makes safe to try.
func (n *Node) addressOf(id overlay.NodeID) (string, error) {
	n.mu.Lock()
	at := n.nodes[id].record.Gossip
	n.mu.Unlock()
	if at.IsValid() {
		return hostPort(at), nil
	}
	for _, m := range n.list.Members() {
		if m.Name == string(id) {
			return m.Address(), nil
		}
	}
	return "", overlay.Errorf(overlay.Unavailable, "node %s has not said where it is", id.Short())
}

// exchange brings this node and another to the same knowledge, in as many rounds as that takes. It
// gives up when no stream stands after a while.
func (n *Node) exchange(ctx context.Context, id overlay.NodeID, patience time.Duration) error {
	var before [2]digests
	for range maxRounds {
		held, more, err := n.round(ctx, id, patience)
		if err != nil || !more {
			return err
		}
		if reflect.DeepEqual(held, before) {
			break
		}
		before = held
	}
	return overlay.Errorf(overlay.Unavailable, "node %s and this one have more for each other than they take in: records are refused; look at the log of both", id.Short())
}

// digests are what a node holds of networks.
type digests map[overlay.NetworkID]table.Digest

func digestsOf(f frame) digests {
	d := digests{}
	for _, p := range f.Networks {
		d[p.Network] = p.Digest
	}
	return d
}

// round is one part of an exchange: both say what they hold, both get of what they lack as much as
// goes at a time. It answers what they held, and whether there is more.
func (n *Node) round(ctx context.Context, id overlay.NodeID, patience time.Duration) (held [2]digests, more bool, err error) {
	at, err := n.addressOf(id)
	if err != nil {
		return held, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, exchangeTime)
	defer cancel()
	dialling, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := n.wire.Dial(dialling, at, id)
	if err != nil {
		return held, false, overlay.Errorf(overlay.Unavailable, "reach gossip of node %s at %s: %w", id.Short(), at, err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	ours := n.ask(id)
	ours.More = true
	if err := send(c, ours); err != nil {
		return held, false, err
	}
	theirs, err := receive(c) // what we lack
	if err != nil {
		return held, false, err
	}
	n.heardFrom(id)
	n.takeNodes(theirs)
	n.takeParts(theirs.Networks)
	give := n.lacking(theirs, maxGive)
	give.Kind = kindGive
	if err := send(c, give); err != nil {
		return held, false, err
	}
	if _, err := receive(c); !errors.Is(err, io.EOF) { // the other closes when it has taken it in
		return held, false, overlay.Errorf(overlay.Unavailable, "node %s has not confirmed what it was given: %w", id.Short(), err)
	}
	return [2]digests{digestsOf(ours), digestsOf(theirs)}, theirs.More || give.More, nil
}

// ask says what this node holds of the networks that it shares with another.
func (n *Node) ask(with overlay.NodeID) frame {
	n.mu.Lock()
	defer n.mu.Unlock()
	f := frame{Kind: kindAsk, From: n.Self, Hello: &n.Hello, Held: map[overlay.NodeID]uint64{}}
	for id, h := range n.nodes {
		f.Held[id] = h.record.Number
	}
	if h, ok := n.nodes[n.Self]; ok {
		f.Said = said(h)
	}
	for _, s := range n.removals {
		f.Removals = append(f.Removals, s)
	}
	for id, ids := range n.follows {
		if ids[with] || n.managers[with] || n.managers[n.Self] {
			p := part{Network: id, Digest: n.table.Digest(id)}
			if l, ok := n.leases[id]; ok {
				p.Lease = &l
			}
			f.Networks = append(f.Networks, p)
		}
	}
	return f
}

// said tells one record of a node from another of the same number.
func said(h heard) string { return h.signed.Record.Digest()[:16] }

// lacking is what the sender of f lacks, by what f says it holds, as far as there is room.
func (n *Node) lacking(f frame, room int) frame {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := frame{From: n.Self}
	for id, h := range n.nodes {
		// What is held of the other itself it may have forgotten, and said something else by that number.
		forgot := id == f.From && f.Said != "" && f.Said != said(h) && h.record.Number == f.Held[id]
		if h.record.Number > f.Held[id] || forgot {
			out.Nodes = append(out.Nodes, h.signed)
		}
	}
	for _, p := range f.Networks {
		if n.follows[p.Network] == nil || !(n.follows[p.Network][f.From] || n.managers[f.From]) {
			continue // not ours to tell, or not for it
		}
		q := part{Network: p.Network}
		missing := n.table.Missing(p.Network, p.Digest)
		// What is refused comes again and again: it must not always take the room.
		rand.Shuffle(len(missing), func(i, j int) { missing[i], missing[j] = missing[j], missing[i] })
		for _, b := range missing {
			if b.Owner == f.From && b.UpTo.Compare(p.Digest[f.From]) <= 0 {
				continue
			}
			b, whole := fit(b, &room)
			if out.More = out.More || !whole; b.Owner != "" {
				q.Batches = append(q.Batches, pack(b))
			}
		}
		out.Networks = append(out.Networks, q)
	}
	return out
}

// serveExchanges answers streams until ctx ends.
func (n *Node) serveExchanges(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(32)
	defer func() { _ = g.Wait() }()
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-n.wire.Exchanges():
			if !g.TryGo(func() error { n.answer(ctx, c); return nil }) {
				n.count("exchanges refused: too many")
				c.Close()
			}
		}
	}
}

func (n *Node) answer(ctx context.Context, c stream) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(exchangeTime))
	f, err := receive(c)
	if err == nil && f.From != c.peer {
		err = overlay.Errorf(overlay.Denied, "node %s speaks as %s", c.peer.Short(), f.From.Short())
	}
	if err == nil {
		n.hint(f.From)
		err = n.reply(ctx, c, f)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		n.refused("frame", err)
	}
}

// reply answers the first frame of a stream.
func (n *Node) reply(ctx context.Context, c stream, f frame) error {
	switch f.Kind {
	case kindPush:
		n.takeParts(f.Networks)
		applied := make(chan struct{})
		n.whenApplied(sync.OnceFunc(func() { close(applied) }))
		select {
		case <-applied:
			return send(c, n.ack(f))
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second): // the sender waits no longer
			return nil
		}
	case kindNodes:
		n.takeNodes(f)
		return send(c, n.ack(f))
	case kindAsk:
	default:
		return overlay.Errorf(overlay.Unread, "a stream that begins with %.20q", f.Kind)
	}
	n.takeNodes(f)
	n.learnParticipants(f)
	mine := n.ask(f.From)
	room := maxGiveAll
	if f.More {
		room = maxGive
	}
	out := n.lacking(f, room)
	out.Kind, out.Hello, out.Held = kindGive, mine.Hello, mine.Held
	out.Removals = mine.Removals
	held := digestsOf(mine)
	for i, p := range out.Networks {
		out.Networks[i].Digest = held[p.Network]
	}
	if err := send(c, out); err != nil {
		return err
	}
	theirs, err := receive(c)
	if err != nil {
		return err
	}
	n.takeNodes(theirs)
	n.takeParts(theirs.Networks)
	return nil
}

// learnParticipants takes note of who proves by its lease that it takes part in a network.
func (n *Node) learnParticipants(f frame) {
	trust := n.Trust()
	for _, p := range f.Networks {
		if p.Lease == nil {
			continue
		}
		l, err := trust.CheckLease(*p.Lease)
		if err != nil || l.Network != p.Network || l.Node != f.From {
			n.refused("lease", err)
			continue
		}
		n.mu.Lock()
		if m := n.follows[p.Network]; m != nil {
			m[f.From] = true
		} else if n.managers[n.Self] {
			n.follows[p.Network] = map[overlay.NodeID]bool{f.From: true}
		}
		n.mu.Unlock()
	}
}
