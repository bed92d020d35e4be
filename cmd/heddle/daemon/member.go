//go:build linux

package daemon

import (
	"cmp"
	"context"
	"crypto/rand"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-net/heddle/cluster/api"
	"github.com/heddle-net/heddle/cluster/control"
	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/gossip"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/agent"
	"github.com/heddle-net/heddle/overlay/store"
)

// member is what a node runs while it is in a cluster. It is built in the order of its
// fields, each from what came before, and stopped in the reverse.
type member struct {
	d       *Daemon
	log     *slog.Logger
	at      store.Addresses
	cred    *pki.Credentials
	port    *control.Port
	client  *api.Client
	role    *role
	watcher *api.Watcher
	gossip  atomic.Pointer[gossip.Node] // a manager asks for it before it is there
	tunnels *tunnels
	agent   *agent.Agent
	holder  atomic.Pointer[agent.Agent] // the same, for managers, who may ask before it is there
	news    chan struct{}               // the watcher's signal, passed on to the agent

	trusted atomic.Pointer[trusted]
	cancel  context.CancelFunc
	ctx     context.Context // of all that the member runs; set before any of it starts
	group   errgroup.Group
	once    sync.Once
	stating sync.Mutex
	said    said // of this node, last
}

// trusted is the trust of the facts that it was made from.
type trusted struct {
	facts *overlay.Facts
	trust overlay.Trust
}

// openMember opens the control port with an identity. It starts nothing.
func openMember(d *Daemon, id pki.Identity, at store.Addresses, managers []api.Manager) (*member, error) {
	m := &member{d: d, log: d.log, at: at, news: make(chan struct{}, 1)}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	var err error
	if m.cred, err = pki.NewCredentials(id, pki.RevokedBy(m.facts), time.Now); err != nil {
		return nil, err
	}
	if m.port, err = control.Listen(netip.AddrPortFrom(at.Listen, d.cfg.ControlPort), m.cred, d.log); err != nil {
		return nil, err
	}
	m.client = api.NewClient(id.Node, m.cred, managers)
	m.client.Where = m.where
	m.role = newRole(m)
	return m, nil
}

// build makes the parts that need facts: the first ones, or with nil those on the disk.
func (m *member) build(first *overlay.Facts) error {
	id := m.cred.Identity()
	var err error
	m.watcher, err = api.NewWatcher(api.WatcherConfig{Self: id.Node, Client: m.client, Store: m.d.store, First: first, Log: m.log})
	if err != nil {
		return err
	}
	f := m.facts()
	g, err := gossip.New(gossip.Config{
		Self: id.Node, Label: f.Cluster, Keys: f.GossipKeys,
		Bind:      netip.AddrPortFrom(m.at.Listen, m.d.cfg.GossipPort),
		Advertise: netip.AddrPortFrom(m.at.Advertise, m.d.cfg.GossipPort),
		Server:    m.cred.PeerServer, Client: m.cred.PeerClient, Peer: pki.Peer, Trust: m.trust, Hello: m.d.hello(), Log: m.log,
	})
	if err != nil {
		return err
	}
	m.gossip.Store(g)
	if m.tunnels, err = openTunnels(m); err != nil {
		return err
	}
	m.tunnels.look() // which sessions stand, before anything is planned
	if err := m.introduce(g); err != nil {
		return err
	}
	m.agent, err = agent.New(agent.Config{
		Self: id.Node, Name: f.Nodes[id.Node].Name, Key: id.Key, Boot: bootID(), Underlay: m.at.Underlay,
		Facts: factsOf{m}, Control: controlOf{m}, Peers: g, Tunnels: m.tunnels, Datapath: kernelState{m.d.kernel, m.d.loop, m.d.balance},
		Processes: processes{}, Workloads: workloads{m.d.kernel}, Resolver: m.d.resolver, Store: m.d.store, Random: func(b []byte) { _, _ = rand.Read(b) }, Log: m.log,
	})
	m.holder.Store(m.agent)
	return err
}

// inOrder puts first what nodes say whose rows agree: of an address that two claim, it is theirs.
func (m *member) inOrder(said map[overlay.NodeID]overlay.SignedNode) []overlay.SignedNode {
	rows := m.facts().Nodes
	late := func(id overlay.NodeID) int {
		var r overlay.NodeRecord
		if said[id].Record.Decode(overlay.DomainNodeRecord, &r) == nil && rows[id].Gossip.Addr() == r.DataPath() {
			return 0
		}
		return 1
	}
	ids := slices.SortedFunc(maps.Keys(said), func(a, b overlay.NodeID) int {
		return cmp.Or(late(a)-late(b), cmp.Compare(rows[a].Number, rows[b].Number))
	})
	out := make([]overlay.SignedNode, len(ids))
	for i, id := range ids {
		out[i] = said[id]
	}
	return out
}

// introduce gives gossip what this node says of itself and what it knew of others.
func (m *member) introduce(g *gossip.Node) error {
	others, err := m.d.store.LoadNodes()
	if err != nil {
		return err
	}
	g.AddNodes(m.inOrder(others))
	r, row, err := m.describe()
	if err != nil {
		return err
	}
	return m.tell(r, row, 0)
}

// run starts what the member runs. An error of a part that the node can't do without ends
// the daemon, which its supervisor starts again.
func (m *member) run() {
	m.role.start()
	m.must("control port", m.port.Run)
}

// runRest starts what build made.
func (m *member) runRest() {
	g := m.gossip.Load()
	m.must("facts", m.watcher.Run)
	m.must("gossip", g.Run)
	m.must("agent", m.agent.Run)
	m.must("wireguard", m.tunnels.run)
	m.must("news", m.follow)
	m.must("contact", m.contact)
	m.must("certificate", m.renew)
	m.must("address", m.register)
	m.must("own record", m.outdo)
	m.role.follow()
}

func (m *member) must(what string, run func(context.Context) error) {
	m.group.Go(func() error {
		err := run(m.ctx)
		if err != nil && m.ctx.Err() == nil {
			m.d.fail(what, err)
		}
		return nil
	})
}

// stop ends all parts and waits for them. The kernel's state stays.
func (m *member) stop() {
	m.once.Do(func() {
		m.cancel()
		_ = m.group.Wait()
		m.role.stop()
		if g := m.gossip.Load(); g != nil {
			_ = g.Close() // in case it never ran
		}
		_ = m.port.Close()
		m.client.Close()
	})
}

// facts are the newest ones, or nil before there are any.
func (m *member) facts() *overlay.Facts {
	if m.watcher == nil {
		return nil
	}
	return m.watcher.Facts()
}

func (m *member) place() overlay.Place { return m.cred.Identity().Place }

// trust is what the newest facts let this node check. It is made once for each.
func (m *member) trust() overlay.Trust {
	f := m.facts()
	t := m.trusted.Load()
	if t == nil || t.facts != f {
		t = &trusted{f, f.Trust()}
		m.trusted.Store(t)
	}
	return t.trust
}

// self is this node's row; ok is false when it was removed.
func (m *member) self() (row overlay.Node, ok bool) {
	f, id := m.facts(), m.cred.Identity().Node
	row, ok = f.Nodes[id]
	return row, ok && !f.Removed(id)
}

// roleEvery is how often a node tries to take on its role while the managers do not answer.
const roleEvery = time.Second

// follow passes on what the facts change: to gossip, to the role, to the agent.
func (m *member) follow(ctx context.Context) error {
	for {
		f, g := m.facts(), m.gossip.Load()
		if len(f.GossipKeys) > 0 {
			if err := g.SetKeys(f.GossipKeys); err != nil {
				m.log.Error("take over the gossip keys", "err", err)
			}
		}
		for _, s := range f.Removals {
			_ = g.AddRemoval(s) // counted
		}
		var again <-chan time.Time
		if !m.role.follow() {
			again = time.After(roleEvery)
		}
		signal(m.news)
		select {
		case <-ctx.Done():
			return nil
		case <-m.watcher.Changed():
		case <-again:
		}
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// contactEvery is how often a node that knows of others and reaches none tries again, and
// how often it keeps what it has heard of them.
const contactEvery = time.Second

// contact keeps this node in touch: it looks for members while it knows none that lives, and
// keeps what nodes say of themselves on the disk.
func (m *member) contact(ctx context.Context) error {
	tick := time.NewTicker(contactEvery)
	defer tick.Stop()
	kept := map[overlay.NodeID]string{}
	for {
		m.seek(ctx)
		if err := m.keep(kept); err != nil {
			m.log.Warn("keep what other nodes say of themselves", "err", err)
		}
		select {
		case <-ctx.Done():
			// Who goes on at another address in a moment must know where the others are by then.
			return m.keep(kept)
		case <-tick.C:
		}
	}
}

// seek looks for a node that membership lacks: one, or all while it has none. Managers come first
// then: nodes that join at the same time could make contact with each other alone.
func (m *member) seek(ctx context.Context) {
	f, g, self := m.facts(), m.gossip.Load(), m.cred.Identity().Node
	alive := map[overlay.NodeID]bool{}
	for _, p := range g.Peers() {
		if p.State == "alive" || p.State == "suspect" {
			alive[p.Node] = true
		}
	}
	lacks := slices.Collect(maps.Keys(f.Nodes)) // in an order that is random enough
	if len(alive) == 0 {
		managersFirst(lacks, f)
	}
	for _, id := range lacks {
		n := f.Nodes[id]
		if id == self || alive[id] {
			continue
		}
		var at []netip.AddrPort
		if r, ok := g.Record(id); ok { // newer than the row, most of the time
			at = append(at, r.Gossip)
		}
		if !slices.Contains(at, n.Gossip) {
			at = append(at, n.Gossip)
		}
		at = slices.DeleteFunc(at, func(a netip.AddrPort) bool { return !a.IsValid() })
		err := g.Seek(ctx, id, at)
		if err == nil || len(alive) > 0 || ctx.Err() != nil {
			return
		}
		m.log.Debug("a member does not answer", "node", id, "err", err)
	}
}

// managersFirst puts managers first, and leaves the order else as it is.
func managersFirst(nodes []overlay.NodeID, f *overlay.Facts) {
	place := func(id overlay.NodeID) int {
		if f.Nodes[id].Role == overlay.Manager {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(nodes, func(a, b overlay.NodeID) int { return place(a) - place(b) })
}

func (m *member) keep(kept map[overlay.NodeID]string) error {
	nodes, changed := m.gossip.Load().SignedNodes(), false
	for id, s := range nodes {
		if d := s.Record.Digest(); kept[id] != d {
			kept[id], changed = d, true
		}
	}
	if !changed {
		return nil
	}
	return m.d.store.SaveNodes(nodes)
}

// renewEvery is how often the certificate's age is looked at.
const renewEvery = time.Hour

// renew gets a new certificate when half of the old one's life is over.
func (m *member) renew(ctx context.Context) error {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		if m.cred.NeedsRenewal() {
			if err := m.newCertificate(ctx); err != nil {
				m.log.Warn("renew this node's certificate; trying again", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// newCertificate asks for a certificate with the node's present role.
func (m *member) newCertificate(ctx context.Context) error {
	c, err := m.client.Renew(ctx)
	if err != nil {
		return err
	}
	id, err := m.cred.Identity().Joined(c.Place, c.Cert, c.CA)
	if err != nil {
		return err
	}
	if err := id.Save(m.d.identityFile()); err != nil {
		return err
	}
	if err := m.cred.Set(id); err != nil {
		return err
	}
	m.client.Close() // its connections have the old certificate
	return nil
}

// factsOf gives the agent the facts.
type factsOf struct{ m *member }

func (f factsOf) Facts() *overlay.Facts    { return f.m.facts() }
func (f factsOf) Changed() <-chan struct{} { return f.m.news }

// controlOf lets the agent ask the managers.
type controlOf struct{ *member }

func (c controlOf) Grant(ctx context.Context, network string, want int, addrs []netip.Addr) (agent.Grant, error) {
	g, err := c.client.Grant(ctx, api.GrantRequest{Network: network, Want: want, Addrs: addrs})
	return agent.Grant(g), err
}

// factsTime is how long an attach waits for what the managers tell of a network besides its lease.
const factsTime = time.Second

// Hear waits for the facts of a network that this node has just got a lease in: its services come
// with them, and what is attached before them is not known to stand behind any. An attach goes on
// without them where the manager that grants is not the one that tells, and this one is late.
func (c controlOf) Hear(ctx context.Context, id overlay.NetworkID) {
	ctx, cancel := context.WithTimeout(ctx, factsTime)
	defer cancel()
	err := c.watcher.Await(ctx, func(f *overlay.Facts) bool { return f.Leases[id][c.cred.Identity().Node].Body != nil })
	if err != nil {
		c.log.Debug("the managers tell nothing of a network yet", "network", id)
	}
}

func (c controlOf) Refill(ctx context.Context, network overlay.NetworkID) (agent.Grant, error) {
	g, err := c.client.Grant(ctx, api.GrantRequest{Network: string(network), Spare: c.facts().Level >= 2})
	return agent.Grant(g), err
}

func (c controlOf) Enter(ctx context.Context, network overlay.NetworkID) (agent.Grant, error) {
	g, err := c.client.Grant(ctx, api.GrantRequest{Network: string(network), Bare: true})
	return agent.Grant(g), err
}

func (c controlOf) Release(ctx context.Context, s overlay.Signed) (agent.Grant, error) {
	g, err := c.client.Release(ctx, s)
	return agent.Grant(g), err
}

// holderOf answers what managers ask of this node's leases, once there is an agent.
type holderOf struct{ m *member }

func (h holderOf) Release(ctx context.Context, r overlay.ReleaseRequest) (overlay.ReleaseReply, error) {
	a := h.m.holder.Load()
	if a == nil {
		return overlay.ReleaseReply{}, errStarting
	}
	return a.Release(ctx, r)
}

func (h holderOf) Forgot(ctx context.Context, n overlay.NodeID) error {
	a := h.m.holder.Load()
	if a == nil {
		return errStarting
	}
	return a.Forgot(ctx, n)
}

var errStarting = overlay.Errorf(overlay.Unavailable, "the daemon is starting; try again when it is up")
