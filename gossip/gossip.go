// Package gossip spreads what nodes say of themselves and of their endpoints: memberlist for
// membership and failure detection, a push with acknowledgement for each change, and digest
// exchanges for what a push has missed.
//
// A push goes straight to each participant: from a node with one core a change is at 99 of 100
// others after 30 ms in a network of 1,000, and after 250 ms when 30 % of all packets are lost
// (`make sim` simulates it). A tree would save that core some 10 ms, and make others answer for
// what the owner alone can promise: that all have acknowledged. So there is none.
//
// memberlist is a hint. Addresses come from signed node records alone, and nothing is
// believed that its signature does not carry.
package gossip

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sync/errgroup"

	"github.com/heddle-net/heddle/gossip/table"
	"github.com/heddle-net/heddle/overlay"
)

// Config is what a node works with. All fields are required.
type Config struct {
	Self      overlay.NodeID
	Bind      netip.AddrPort // port 0 takes a free one
	Advertise netip.AddrPort // port 0 is the one bound
	Label     string         // keeps two clusters apart
	Keys      [][]byte       // AES-256; the first encrypts, all decrypt
	Server    func(alpns ...string) *tls.Config
	Client    func(node overlay.NodeID, alpns ...string) *tls.Config
	Peer      func(tls.ConnectionState) (overlay.NodeID, error) // who is at the other side
	Trust     func() overlay.Trust                              // the newest
	Hello     overlay.Hello
	Log       *slog.Logger
}

// Node is this node's part in gossip. It is safe for concurrent use.
type Node struct {
	Config
	wire      wire
	list      *memberlist.Memberlist
	keys      *memberlist.Keyring
	changed   chan struct{}
	surpassed chan uint64
	inbox     chan []byte
	reached   chan struct{}   // a node that lacks something has answered
	life      context.Context // ends with Close
	end       context.CancelFunc
	working   sync.WaitGroup // what begin has begun
	slots     chan struct{}  // of streams that carry pushes
	turns     chan struct{}  // of pushes that have just gone out
	doubting  chan struct{}  // slots of probes of nodes that membership calls dead
	bulk      sync.Mutex     // one large batch at a time is checked

	mu       sync.Mutex
	table    *table.Table
	follows  map[overlay.NetworkID]map[overlay.NodeID]bool // participants of the networks followed
	named    map[overlay.NetworkID]bool                    // those that SetParticipants named last
	managers map[overlay.NodeID]bool
	leases   map[overlay.NetworkID]overlay.Signed // this node's own
	nodes    map[overlay.NodeID]heard
	places   places
	removals map[overlay.NodeID]overlay.Signed
	stated   map[overlay.NetworkID]overlay.Version // of this node's own records, as others hold them
	pending  map[uint64]*push
	queue    []*push // those that have not gone out
	draining bool
	lastPush uint64
	probes   map[overlay.NodeID]probe
	dead     map[overlay.NodeID]bool // as membership says
	doubts   map[overlay.NodeID]*doubt
	behind   map[overlay.NodeID]bool // nodes that lack something; true for those that have answered since
	meeting  map[overlay.NodeID]bool // those of them that an exchange brings up
	trying   map[overlay.NodeID]bool // those that are tried without an answer
	counters map[string]uint64
	revision uint64 // counts changes of the table
	applied  uint64 // the revision that the kernel has, by Applied
	owed     []owed // acknowledgements that wait for it
}

// owed is an acknowledgement that is due when this node's kernel has what was pushed.
type owed struct {
	revision uint64
	send     func()
}

// heard is what a node said of itself, checked.
type heard struct {
	signed overlay.SignedNode
	record overlay.NodeRecord
}

type probe struct {
	at  time.Time
	rtt time.Duration
}

// push is one that waits for acknowledgements.
type push struct {
	id      uint64
	network overlay.NetworkID
	claims  []overlay.Claim
	packs   []*push // those that it goes out for
	waits   map[overlay.NodeID]bool
	streams map[overlay.NodeID]bool // one of these is on its way, or waits for its turn
	left    bool                    // its caller waits no longer
	done    chan struct{}           // closed when nobody is waited for
}

const (
	exchangeEvery = 10 * time.Second
	exchangeTime  = 10 * time.Second
	inboxSize     = 4096
	maxOwed       = 4096
)

// New opens the port and prepares membership. It starts nothing but what reads the port;
// Run or Close must follow.
func New(c Config) (*Node, error) {
	if len(c.Keys) == 0 {
		return nil, overlay.Errorf(overlay.Internal, "start gossip: there are no keys")
	}
	t, err := listen(c)
	if err != nil {
		return nil, err
	}
	n, err := alone(c, t)
	if err == nil {
		err = n.enter(n.listConfig())
	}
	if err != nil {
		t.Shutdown()
		return nil, err
	}
	return n, nil
}

// alone makes a node that has no membership yet.
func alone(c Config, w wire) (*Node, error) {
	n := &Node{
		Config: c, wire: w, changed: make(chan struct{}, 1), surpassed: make(chan uint64, 1), inbox: make(chan []byte, inboxSize), reached: make(chan struct{}, 1),
		slots: make(chan struct{}, pushWidth), turns: make(chan struct{}, pushTurns), doubting: make(chan struct{}, doubtWidth),
		table: table.New(), follows: map[overlay.NetworkID]map[overlay.NodeID]bool{}, managers: map[overlay.NodeID]bool{},
		leases: map[overlay.NetworkID]overlay.Signed{}, nodes: map[overlay.NodeID]heard{}, places: newPlaces(), removals: map[overlay.NodeID]overlay.Signed{},
		stated: map[overlay.NetworkID]overlay.Version{}, pending: map[uint64]*push{}, lastPush: rand.Uint64N(1 << 52),
		probes: map[overlay.NodeID]probe{}, dead: map[overlay.NodeID]bool{}, doubts: map[overlay.NodeID]*doubt{}, counters: map[string]uint64{},
		behind: map[overlay.NodeID]bool{}, meeting: map[overlay.NodeID]bool{}, trying: map[overlay.NodeID]bool{},
	}
	n.life, n.end = context.WithCancel(context.Background())
	var err error
	if n.keys, err = memberlist.NewKeyring(nil, c.Keys[0]); err != nil {
		return nil, fmt.Errorf("gossip keys: %w", err)
	}
	return n, n.SetKeys(c.Keys)
}

// enter begins membership.
func (n *Node) enter(c *memberlist.Config) (err error) {
	if n.list, err = memberlist.Create(c); err != nil {
		return fmt.Errorf("start gossip: %w", err)
	}
	return nil
}

func (n *Node) listConfig() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name, c.Label = string(n.Self), n.Label
	c.Transport, c.Keyring = n.wire, n.keys
	c.AdvertiseAddr, c.AdvertisePort = n.wire.Advertised().Addr().String(), int(n.wire.Advertised().Port())
	c.BindPort = c.AdvertisePort
	c.Delegate, c.Events, c.Alive, c.Ping, c.Conflict = delegate{n}, delegate{n}, delegate{n}, delegate{n}, delegate{n}
	c.DeadNodeReclaimTime = time.Second // a node that comes back elsewhere proves itself by its record
	c.TCPTimeout = 2 * time.Second
	c.EnableCompression = false
	c.Logger = log.New(levels{n.Log}, "", 0)
	return c
}

// Advertise is the address that others reach this node's gossip at.
func (n *Node) Advertised() netip.AddrPort { return n.wire.Advertised() }

// Run works until ctx ends, then leaves the port. It says no farewell: who stops for a
// restart is missed for a moment only.
func (n *Node) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for range 2 {
		g.Go(func() error { n.readInbox(ctx); return nil })
	}
	g.Go(func() error { n.serveExchanges(ctx); return nil })
	g.Go(func() error { n.exchangeOnTimer(ctx); return nil })
	g.Go(func() error { n.catchUp(ctx); return nil })
	g.Go(func() error {
		<-ctx.Done()
		return n.Close()
	})
	return g.Wait()
}

// Close ends membership and closes the port. It is for a node that is not run.
func (n *Node) Close() error {
	n.mu.Lock() // begin begins nothing after this
	n.end()
	n.mu.Unlock()
	defer n.working.Wait()
	if err := n.list.Shutdown(); err != nil {
		return fmt.Errorf("stop gossip: %w", err)
	}
	return n.wire.Shutdown()
}

// begin runs work that ends by itself or with the node's life.
func (n *Node) begin(work func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.life.Err() == nil {
		n.working.Go(work)
	}
}

// Join makes contact with the first of the addresses that answers.
func (n *Node) Join(ctx context.Context, addrs []netip.AddrPort) error {
	var last error
	for _, a := range addrs {
		if ctx.Err() != nil || a == n.wire.Advertised() {
			continue
		}
		if _, err := n.list.Join([]string{hostPort(a)}); err != nil {
			last = err
			continue
		}
		return nil
	}
	return last
}

// Seek makes contact with a node that membership lacks, at the first of the addresses that
// answers. One that answers at none counts as dead until membership hears of it.
func (n *Node) Seek(ctx context.Context, id overlay.NodeID, addrs []netip.AddrPort) error {
	err := n.Join(ctx, addrs)
	if err == nil || ctx.Err() != nil {
		return err
	}
	n.mu.Lock()
	n.bury(id)
	n.mu.Unlock()
	// Membership may have heard of it meanwhile; after this it takes the mark away itself.
	if slices.ContainsFunc(n.list.Members(), func(m *memberlist.Node) bool { return m.Name == string(id) }) {
		n.mu.Lock()
		n.lift(id)
		n.mu.Unlock()
	}
	return err
}

// Leave tells the others that this node goes for good.
func (n *Node) Leave(patience time.Duration) error { return n.list.Leave(patience) }

// SetKeys replaces the keyring: all are installed, then the first is used, then the others go.
func (n *Node) SetKeys(keys [][]byte) error {
	for _, k := range keys {
		if err := n.keys.AddKey(k); err != nil {
			return fmt.Errorf("install gossip key: %w", err)
		}
	}
	if err := n.keys.UseKey(keys[0]); err != nil {
		return fmt.Errorf("use gossip key: %w", err)
	}
	for _, old := range n.keys.GetKeys() {
		if !slices.ContainsFunc(keys, func(k []byte) bool { return string(k) == string(old) }) {
			if err := n.keys.RemoveKey(old); err != nil {
				return fmt.Errorf("remove gossip key: %w", err)
			}
		}
	}
	return nil
}

// SetParticipants says who has a lease in the networks that this node follows, and which
// nodes are managers: they follow all networks. Records of a network that is not named any more
// are forgotten; a manager may have records before the facts that name their network.
func (n *Node) SetParticipants(networks map[overlay.NetworkID][]overlay.NodeID, managers []overlay.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.managers = map[overlay.NodeID]bool{}
	for _, id := range managers {
		n.managers[id] = true
	}
	for id, nodes := range networks {
		if n.follows[id] == nil {
			n.follows[id] = map[overlay.NodeID]bool{}
		}
		for _, node := range nodes {
			n.follows[id][node] = true
		}
	}
	for id := range n.follows {
		_, still := networks[id]
		early := n.managers[n.Self] && !n.named[id]
		if !still && !early {
			delete(n.follows, id)
			delete(n.leases, id)
			n.table.DropNetwork(id)
		}
	}
	n.named = map[overlay.NetworkID]bool{}
	for id := range networks {
		n.named[id] = true
	}
}

// Claims are the endpoints of a network that stand.
func (n *Node) Claims(id overlay.NetworkID) []*overlay.Claim {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.table.Live(id)
}

// Stated is the highest version of this node's own records of which it heard from another before it
// said anything of that version itself. Where it is above what the disk knew at the start, the disk
// was set back.
func (n *Node) Stated(id overlay.NetworkID) overlay.Version {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stated[id]
}

// Skip notes that this node says nothing more under the versions from one to another, of one
// incarnation: others need not wait for what was never said.
func (n *Node) Skip(id overlay.NetworkID, from, to overlay.Version) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.table.Skip(id, n.Self, from, to)
}

// Changed signals that claims, node records or what Suspended answers have changed since it was read
// last.
func (n *Node) Changed() <-chan struct{} { return n.changed }

// Revision numbers what Claims, Nodes and Suspended answer at this moment.
func (n *Node) Revision() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.revision
}

// Applied says that this node's kernel has what stood at a revision. Pushes are acknowledged
// then: who has all acknowledgements knows that packets pass.
func (n *Node) Applied(revision uint64) {
	n.mu.Lock()
	n.applied = max(n.applied, revision)
	var due []func()
	n.owed = slices.DeleteFunc(n.owed, func(o owed) bool {
		if o.revision > n.applied {
			return false
		}
		due = append(due, o.send)
		return true
	})
	n.mu.Unlock()
	for _, send := range due {
		send()
	}
}

// whenApplied calls send once the kernel has all that stands in the table.
func (n *Node) whenApplied(send func()) {
	n.mu.Lock()
	if n.applied < n.revision {
		if len(n.owed) < maxOwed {
			n.owed = append(n.owed, owed{n.revision, send})
		} // else the sender tries again
		n.mu.Unlock()
		return
	}
	n.mu.Unlock()
	send()
}

// changes notes a change and signals it. The caller holds mu.
func (n *Node) changes() {
	n.revision++
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// Counters count what came in, by what became of it.
func (n *Node) Counters() map[string]uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.counters)
}

func (n *Node) count(what string) {
	n.mu.Lock()
	n.counters[what]++
	n.mu.Unlock()
}

// levels writes memberlist's log lines, whose level is in the text, to slog.
type levels struct{ log *slog.Logger }

var _ io.Writer = levels{}
