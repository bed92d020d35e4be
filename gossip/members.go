package gossip

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/heddle-net/heddle/overlay"
)

// delegate is what memberlist calls. None of its methods may block or call memberlist back.
type delegate struct{ n *Node }

// NodeMeta implements memberlist.Delegate: the number of this node's record, so that members
// see when they lack the newest.
func (d delegate) NodeMeta(int) []byte {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	return binary.BigEndian.AppendUint64([]byte{version}, d.n.nodes[d.n.Self].record.Number)
}

// NotifyMsg implements memberlist.Delegate. The buffer is memberlist's.
func (d delegate) NotifyMsg(b []byte) {
	select {
	case d.n.inbox <- bytes.Clone(b):
	default:
		d.n.count("packets dropped: inbox full")
	}
}

// GetBroadcasts, LocalState and MergeRemoteState implement memberlist.Delegate. Nothing of
// heddle's rides on memberlist's own queue or state exchange.
func (d delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (d delegate) LocalState(bool) []byte          { return nil }
func (d delegate) MergeRemoteState([]byte, bool)   {}

// NotifyJoin implements memberlist.EventDelegate.
func (d delegate) NotifyJoin(m *memberlist.Node) { d.met(m) }

// NotifyUpdate implements memberlist.EventDelegate. Mostly the record was here first.
func (d delegate) NotifyUpdate(m *memberlist.Node) {
	if known, ok := d.n.Record(overlay.NodeID(m.Name)); !ok || known.Number < recordNumber(m.Meta) {
		d.met(m)
	}
}

// NotifyLeave implements memberlist.EventDelegate.
func (d delegate) NotifyLeave(m *memberlist.Node) {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	d.n.bury(overlay.NodeID(m.Name))
}

func (d delegate) met(m *memberlist.Node) {
	id := overlay.NodeID(m.Name)
	if id == d.n.Self {
		return
	}
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	d.n.lift(id)
	d.n.answers(id)
}

// NotifyAlive implements memberlist.AliveDelegate: a member that was removed is refused, and so
// is one that claims another address than its signed record. With a record that is not here
// yet it is taken for now: membership is a hint, and everything else goes by the record.
func (d delegate) NotifyAlive(m *memberlist.Node) error {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	id := overlay.NodeID(m.Name)
	if _, out := d.n.removals[id]; out || d.n.Trust().Removed[id] {
		d.n.counters["members refused: removed"]++
		return overlay.Errorf(overlay.Denied, "node %s was removed from the cluster", id.Short())
	}
	known, there := d.n.nodes[id]
	claims := netip.AddrPortFrom(addrOf(m.Addr), m.Port)
	if there && claims != known.record.Gossip && recordNumber(m.Meta) <= known.record.Number {
		d.n.counters["members refused: another address than their record"]++
		return overlay.Errorf(overlay.Denied, "node %s claims address %s, and its record says %s", id.Short(), claims, known.record.Gossip)
	}
	return nil
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// recordNumber is the number of the node record that a member's meta tells of.
func recordNumber(meta []byte) uint64 {
	if len(meta) != 9 || meta[0] != version {
		return 0
	}
	return binary.BigEndian.Uint64(meta[1:])
}

// NotifyPingComplete implements memberlist.PingDelegate.
func (d delegate) NotifyPingComplete(m *memberlist.Node, rtt time.Duration, _ []byte) {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	d.n.probes[overlay.NodeID(m.Name)] = probe{time.Now(), rtt}
}

// AckPayload implements memberlist.PingDelegate.
func (d delegate) AckPayload() []byte { return nil }

// NotifyConflict implements memberlist.ConflictDelegate.
func (d delegate) NotifyConflict(there, other *memberlist.Node) {
	d.n.mu.Lock()
	moved := other.Address() == hostPort(d.n.nodes[overlay.NodeID(other.Name)].record.Gossip)
	d.n.mu.Unlock()
	if moved {
		return // membership lets it in when it has given the old address up
	}
	d.n.count("members refused: two addresses claim one node")
	d.n.Log.Warn("two hosts claim to be one node; was its disk copied? remove one with `heddle node rm` and let it join again",
		"node", there.Name, "addr", there.Address(), "other", other.Address())
}

// Peers are the other nodes as membership sees them, sorted by name.
func (n *Node) Peers() []overlay.PeerStatus {
	alive := map[overlay.NodeID]memberlist.NodeStateType{}
	for _, m := range n.list.Members() {
		alive[overlay.NodeID(m.Name)] = m.State
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []overlay.PeerStatus
	for id, h := range n.nodes {
		if id == n.Self {
			continue
		}
		p := overlay.PeerStatus{
			Node: id, Name: h.record.Name, Addr: h.record.Gossip.String(), State: "unknown",
			LastProbe: n.probes[id].at, RTT: n.probes[id].rtt,
		}
		state, member := alive[id]
		switch {
		case member && state == memberlist.StateSuspect:
			p.State = "suspect"
		case member:
			p.State = "alive"
		case n.dead[id]:
			p.State = "dead"
		}
		if d := n.doubts[id]; d != nil {
			p.Suspended = d.suspended
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(x, y overlay.PeerStatus) int {
		return cmp.Or(strings.Compare(x.Name, y.Name), strings.Compare(string(x.Node), string(y.Node)))
	})
	return out
}

// Write takes one line of memberlist's log.
func (l levels) Write(b []byte) (int, error) {
	text, level := strings.TrimSpace(string(b)), slog.LevelInfo
	for mark, is := range map[string]slog.Level{"[DEBUG] ": slog.LevelDebug, "[INFO] ": slog.LevelDebug, "[WARN] ": slog.LevelInfo, "[ERR] ": slog.LevelWarn} {
		if rest, ok := strings.CutPrefix(text, mark); ok {
			text, level = rest, is
		}
	}
	l.log.Log(context.Background(), level, text)
	return len(b), nil
}
