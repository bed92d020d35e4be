package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// world is a cluster in virtual time: nodes on one lan, all of them participants of blue.
type world struct {
	t     testing.TB
	lan   *lan
	trust overlay.Trust
	all   []overlay.NodeID
	peers []*peer
}

// peer is a node of a world, whose kernel is always up to date.
type peer struct {
	*Node
	world *world
	host  *host
	lease overlay.Signed
	said  uint64 // the number of the newest record
	stop  func()

	mu    sync.Mutex
	marks map[overlay.NodeID]uint64 // what was known of the watched nodes
	watch map[overlay.NodeID]func() // called when more of that node is known
}

func nodeID(i int) overlay.NodeID { return overlay.NodeID(fmt.Sprintf("%032x", i+1)) }

// at is an address of a node's; each has 4,096.
func addrAt(i, k int) netip.Addr {
	n := 10<<24 + i<<12 + k
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// newWorld prepares a world of n nodes; none of them runs yet.
func newWorld(t testing.TB, n int) *world {
	w := &world{t: t, lan: newLAN(), trust: trust(t), peers: make([]*peer, n)}
	for i := range n {
		w.all = append(w.all, nodeID(i))
	}
	return w
}

// start starts a node with an empty table.
func (w *world) start(i int) *peer {
	p := w.make(i)
	if err := p.enter(p.listConfig()); err != nil {
		w.t.Fatal(err)
	}
	if err := p.SetSelf(w.describe(i)); err != nil {
		w.t.Fatal(err)
	}
	w.run(p)
	return p
}

func (w *world) make(i int) *peer {
	w.t.Helper()
	id, at := nodeID(i), netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}), 5378)
	p := &peer{world: w, host: w.lan.join(id, at), marks: map[overlay.NodeID]uint64{}, watch: map[overlay.NodeID]func(){}}
	var err error
	p.Node, err = alone(Config{
		Self: id, Label: "c1", Keys: [][]byte{make([]byte, 32)},
		Trust: func() overlay.Trust { return w.trust }, Hello: overlay.Hello{Version: "test", Reads: overlay.Reads()}, Log: slog.New(slog.DiscardHandler),
	}, p.host)
	if err != nil {
		w.t.Fatal(err)
	}
	p.lease = state(w.t, overlay.DomainLease, sign, overlay.Lease{
		V: 1, Place: place, Network: blue, Node: id, Key: public(seed(string(id))), Index: 3,
		Grants: []overlay.Grant{{First: addrAt(i, 0), Last: addrAt(i, 4095), Index: 3}},
	})
	if w.peers[i] != nil {
		p.said = w.peers[i].said
	}
	w.peers[i] = p
	return p
}

// given is nodes that all know each other and whose membership does nothing: it sends packets.
func (w *world) given() {
	all := map[overlay.NodeID]heard{}
	for i := range w.peers {
		p := w.make(i)
		c := p.listConfig()
		c.ProbeInterval, c.GossipInterval, c.PushPullInterval = 0, 0, 0
		if err := p.enter(c); err != nil {
			w.t.Fatal(err)
		}
		s := w.describe(i)
		r, _, err := w.trust.CheckNode(s)
		if err != nil {
			w.t.Fatal(err)
		}
		all[p.Self] = heard{s, r}
	}
	for _, p := range w.peers {
		maps.Copy(p.nodes, all)
		w.run(p)
	}
}

// describe is what a node says of itself.
func (w *world) describe(i int) overlay.SignedNode {
	return w.describeAs(i, uint64(time.Now().UnixMilli()))
}

func (w *world) describeAs(i int, number uint64) overlay.SignedNode {
	id := nodeID(i)
	return overlay.SignedNode{
		Identity: state(w.t, overlay.DomainIdentity, sign, overlay.Identity{V: 1, Place: place, Node: id, Key: public(seed(string(id))), Number: uint32(i + 1)}),
		Record: state(w.t, overlay.DomainNodeRecord, seed(string(id)), overlay.NodeRecord{
			V: 1, Place: place, Node: id, Number: number, Name: string(id),
			Gossip: w.peers[i].host.at, DataPath4: w.peers[i].host.at.Addr(), MTU: 1500, Hello: overlay.Hello{Version: "test", Reads: overlay.Reads()},
		}),
	}
}

// run runs what was made.
func (w *world) run(p *peer) {
	p.SetParticipants(map[overlay.NetworkID][]overlay.NodeID{blue: w.all}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	var g sync.WaitGroup
	g.Go(func() { _ = p.Run(ctx) })
	g.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-p.Changed():
				p.Applied(p.Revision())
				p.look()
			}
		}
	})
	p.stop = sync.OnceFunc(func() { cancel(); g.Wait() })
}

// look calls those who watch when more is known.
func (p *peer) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, f := range p.watch {
		if m := p.mark(id).Number; m > p.marks[id] {
			p.marks[id] = m
			f()
		}
	}
}

// mark is how much the node knows of what another says.
func (p *peer) mark(of overlay.NodeID) overlay.Version {
	p.Node.mu.Lock()
	defer p.Node.mu.Unlock()
	return p.table.Mark(blue, of)
}

// stop ends all nodes. Membership leaves some goroutines to their timeouts, which virtual time must
// get to.
func (w *world) stop() {
	var g sync.WaitGroup
	for _, p := range w.peers {
		if p != nil {
			g.Go(p.stop)
		}
	}
	g.Wait()
	time.Sleep(time.Minute)
}

// contact is nodes that all know each other.
func (w *world) contact() {
	w.t.Helper()
	for i := range w.peers {
		p := w.start(i)
		if i > 0 {
			if err := p.Join(context.Background(), []netip.AddrPort{w.peers[0].host.at}); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	w.within(3*time.Minute, "all know each other", func() bool {
		for _, p := range w.peers {
			if len(p.Nodes()) != len(w.all) || len(p.list.Members()) != len(w.all) {
				return false
			}
		}
		return true
	})
}

// within waits in virtual time, and says how long.
func (w *world) within(d time.Duration, what string, ok func() bool) time.Duration {
	w.t.Helper()
	begin := time.Now()
	for !ok() {
		if time.Since(begin) > d {
			w.t.Fatalf("not within %s: %s", d, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(begin)
}

// attach states endpoints as an attach does, which waits for 100 ms, and names who is silent.
func (p *peer) attach(endpoints ...int) []overlay.NodeID {
	var records []overlay.Signed
	for _, e := range endpoints {
		records = append(records, p.record(e))
	}
	return p.say(100*time.Millisecond, records...)
}

func (p *peer) say(patience time.Duration, records ...overlay.Signed) []overlay.NodeID {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	silent, err := p.Publish(ctx, blue, records, p.lease)
	if err != nil {
		p.world.t.Error(err)
	}
	return silent
}

// record is the node's next one, of an endpoint.
func (p *peer) record(e int) overlay.Signed {
	i := slices.Index(p.world.all, p.Self)
	p.said++
	return state(p.world.t, overlay.DomainRecord, seed(string(p.Self)), overlay.Record{
		V: 1, Place: place, Network: blue, Owner: p.Self, Endpoint: overlay.EndpointID(fmt.Sprintf("%08x%024x", i, e+1)),
		Workload: fmt.Sprint("web-", e), Incarnation: 1, Number: p.said, MAC: overlay.MAC{2, 0, byte(i >> 8), byte(i), byte(e >> 8), byte(e)}, IPs: []netip.Addr{addrAt(i, e)},
	})
}

// agree says whether all nodes that run know all that these say.
func (w *world) agree(speakers ...*peer) bool {
	for _, p := range w.peers {
		for _, s := range speakers {
			if p != nil && p.mark(s.Self).Number < s.said {
				return false
			}
		}
	}
	return true
}

func upTo(n int) (out []int) {
	for i := range n {
		out = append(out, i)
	}
	return out
}
