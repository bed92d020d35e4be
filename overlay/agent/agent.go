// Package agent owns one node's view: its own endpoints, the facts that the managers have
// agreed on and the records of other nodes. One loop keeps it, plans from it and hands the
// plan to the datapath.
package agent

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/names"
	"github.com/heddle-net/heddle/overlay/plan"
	"github.com/heddle-net/heddle/overlay/services"
)

// Facts gives the newest facts and signals when there are newer ones.
type Facts interface {
	Facts() *overlay.Facts
	Changed() <-chan struct{}
}

// Control asks the managers for what must be agreed.
type Control interface {
	// Grant leases addresses of a network, by name, ID or prefix, to this node: want more of
	// each family, and the addresses named. It is safe to repeat.
	Grant(ctx context.Context, network string, want int, addrs []netip.Addr) (Grant, error)
	// Hear waits for a moment for the facts of a network that was granted.
	Hear(ctx context.Context, network overlay.NetworkID)
	// Refill is Grant for the reserve: it gives nothing where few addresses are left.
	Refill(ctx context.Context, network overlay.NetworkID) (Grant, error)
	// Enter makes this node a participant of a network without an address.
	Enter(ctx context.Context, network overlay.NetworkID) (Grant, error)
	// Release gives addresses back, by a signed overlay.Release.
	Release(ctx context.Context, s overlay.Signed) (Grant, error)
}

// Grant is the managers' answer: the network and all its leases at a revision.
type Grant struct {
	Network  overlay.Network                   `json:"network"`
	Leases   map[overlay.NodeID]overlay.Signed `json:"leases"`
	Revision uint64                            `json:"revision"`
}

// Peers spreads this node's records and collects the others'.
type Peers interface {
	// Publish tells every participant and returns those that have not acknowledged when ctx
	// ends. It returns at once when all have.
	Publish(ctx context.Context, network overlay.NetworkID, records []overlay.Signed, lease overlay.Signed) ([]overlay.NodeID, error)
	// Skip notes that this node says nothing more under the versions from one to another.
	Skip(network overlay.NetworkID, from, to overlay.Version)
	// Sync fetches what this node lacks of the network from its participants.
	Sync(ctx context.Context, network overlay.NetworkID, lease overlay.Signed) error
	// SetParticipants says who takes part in the networks that this node follows.
	SetParticipants(networks map[overlay.NetworkID][]overlay.NodeID, managers []overlay.NodeID)
	// Claims are the live endpoints of a network, this node's own included.
	Claims(overlay.NetworkID) []*overlay.Claim
	// Suspended are the nodes that are taken for dead, and since when.
	Suspended() map[overlay.NodeID]time.Time
	// Stated is the highest version of this node's own records that others held before Publish had it.
	Stated(overlay.NetworkID) overlay.Version
	Nodes() map[overlay.NodeID]overlay.NodeRecord
	// Revision numbers what Claims and Nodes answer. Applied says that the kernel has what
	// stood at a revision, so that others may rely on it.
	Revision() uint64
	Applied(revision uint64)
	Changed() <-chan struct{}
}

// Tunnels are this node's WireGuard devices, as a plan needs them.
type Tunnels interface {
	Tunnels() plan.Tunnels
	Changed() <-chan struct{}
}

// Datapath brings the kernel to a wanted state and answers what it holds.
type Datapath interface {
	Set(datapath.Config) (generation uint64)
	// Wait returns when all of the owners' objects of that generation stand, or the error of
	// the first that can't.
	Wait(ctx context.Context, generation uint64, owners ...datapath.Owner) error
	// Inode is the inode of the namespace at path.
	Inode(path string) (uint64, error)
	// LinkNames lists the interfaces in a namespace.
	LinkNames(ns datapath.NS) ([]string, error)
	// Routes are the destinations that the host routes, heddle's own left out.
	Routes() ([]netip.Prefix, error)
	// Bound are the ports that the host's programs listen at, and Program names who has one, "" where
	// that can't be told.
	Bound() ([]datapath.Port, error)
	Program(p datapath.Port) string
	// Err is why an owner's objects are not as wanted, or nil.
	Err(datapath.Owner) error
	// Obstacles are what other programs' firewalls on this host drop: frames of other nodes to
	// the data-path port and, with egress, what workloads send out. One line each, with what to
	// type.
	Obstacles(egress bool, ports ...uint16) []string
}

// Processes tells of the end of processes, for workloads that live as long as one.
type Processes interface {
	// Started is a stamp that tells a process from a later one with the same PID.
	Started(pid int) (uint64, error)
	// Ended returns nil once the process is gone, or ctx's error.
	Ended(ctx context.Context, pid int, started uint64) error
}

// Workloads looks into the namespaces of workloads. The zero NS is the host's own.
type Workloads interface {
	// Probe returns nil when what is at an address in a namespace passes a check before ctx ends,
	// else what is wrong with it.
	Probe(ctx context.Context, ns datapath.NS, h overlay.Health, at netip.AddrPort) error
	// Connected says whether a TCP connection stands in a namespace that has one of the addresses at
	// its end there, or a UDP packet waits there to be read. Its error is NotFound where the namespace
	// is gone, and another where that can't be seen.
	Connected(ns datapath.NS, ips []netip.Addr) (bool, error)
}

// Config is what an agent works with. All fields are required.
type Config struct {
	Self      overlay.NodeID
	Name      string
	Key       ed25519.PrivateKey
	Boot      string     // names this run of the kernel: namespaces of another are gone
	Underlay  netip.Addr // this host's own address for the data path, where others call it otherwise; else zero
	Facts     Facts
	Control   Control
	Peers     Peers
	Tunnels   Tunnels
	Datapath  Datapath
	Processes Processes
	Workloads Workloads
	Resolver  Resolver
	Store     Store
	Random    func([]byte) // fills the slice with random bytes
	Log       *slog.Logger
}

// Agent is one node's agent.
type Agent struct {
	Config
	calls   chan func(life context.Context)
	stopped chan struct{}
	plans   chan struct{}  // size 1: planned has changed
	renamed chan struct{}  // size 1: table has changed
	tasks   sync.WaitGroup // what Run must see end before it returns
	barring sync.Mutex     // one change of what is barred at a time
	probing chan struct{}  // slots of probes under way

	// The loop in Run owns the rest.
	endpoints map[overlay.EndpointID]*endpoint
	networks  map[overlay.NetworkID]*network
	sessions  map[session]bool // processes that are watched
	removed   bool             // this node was removed from its cluster
	planned   planned
	table     *names.Table
}

// New loads what the node had before. It starts nothing.
func New(c Config) (*Agent, error) {
	saved, err := c.Store.Load()
	if err != nil {
		return nil, err
	}
	a := &Agent{
		Config: c, calls: make(chan func(context.Context)), stopped: make(chan struct{}), plans: make(chan struct{}, 1), renamed: make(chan struct{}, 1), probing: make(chan struct{}, maxProbing),
		endpoints: map[overlay.EndpointID]*endpoint{}, networks: map[overlay.NetworkID]*network{},
		sessions: map[session]bool{},
	}
	for _, row := range saved.Endpoints {
		e := &endpoint{Row: row, state: overlay.EndpointReady}
		if row.Lost != 0 {
			e.state = overlay.EndpointLost
		}
		a.endpoints[row.ID] = e
	}
	for id, c := range saved.Counters {
		a.network(id).Counter, a.network(id).known = c, overlay.Version(c)
	}
	for _, g := range saved.Networks {
		a.know(g.Network, g.Leases, g.Revision).saved = g.Revision
	}
	for id, barred := range saved.Barred {
		a.network(id).barred = barred
	}
	for _, r := range byVersion(saved.Records, OwnRecord.Version) {
		n := a.network(r.Network)
		n.own[r.Endpoint] = r.Signed
		n.release(r.Released)
	}
	return a, nil
}

// Run owns the view until ctx ends. It leaves the kernel as it is.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer a.tasks.Wait()
	defer close(a.stopped)
	defer cancel()
	a.background(func() { a.confirm(ctx) })
	a.background(func() { a.tidy(ctx) })
	a.background(func() { a.miss(ctx) })
	a.background(func() { a.follow(ctx) })
	a.restate(ctx)
	a.awake(ctx)
	a.goOn(ctx)
	a.learn(ctx)
	a.mindAll(ctx)
	a.replan()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.Facts.Changed():
			a.learn(ctx)
			a.mindAll(ctx)
			a.replan()
		case <-a.Peers.Changed():
			a.relive(ctx)
			a.replan()
		case <-a.Tunnels.Changed():
			a.replan()
		case call := <-a.calls:
			call(ctx)
		}
	}
}

// do runs f in the loop and waits for it. life is the context of the loop, for what f starts.
func (a *Agent) do(ctx context.Context, f func(life context.Context)) error {
	done := make(chan struct{})
	select {
	case a.calls <- func(life context.Context) { defer close(done); f(life) }:
		<-done
		return nil
	case <-a.stopped:
		return overlay.Errorf(overlay.Unavailable, "the daemon is stopping; try again when it is up")
	case <-ctx.Done():
		return overlay.Errorf(overlay.Unavailable, "gave up: %w", ctx.Err())
	}
}

// background runs f beside the loop; Run waits for its end.
func (a *Agent) background(f func()) {
	a.tasks.Go(f)
}

// replan makes the wanted kernel state from the view. In the loop.
func (a *Agent) replan() uint64 {
	revision := a.Peers.Revision() // before the view is read, which may be newer
	v := a.view()
	gen := a.Datapath.Set(plan.Build(v))
	a.nameFrom(v)
	if revision > a.planned.revision {
		a.planned = planned{gen, revision}
		signal(a.plans)
	}
	return gen
}

// planned is the newest revision of the peers' records that was planned from.
type planned struct{ gen, revision uint64 }

// confirm tells peers what of theirs the kernel has.
func (a *Agent) confirm(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.plans:
		}
		var p planned
		if a.do(ctx, func(context.Context) { p = a.planned }) != nil {
			return
		}
		// An object that can't be made is its owner's trouble: what can be made stands.
		_ = a.Datapath.Wait(ctx, p.gen)
		if ctx.Err() == nil {
			a.Peers.Applied(p.revision)
		}
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// view gathers what a plan needs. In the loop.
func (a *Agent) view() plan.View {
	f := a.Facts.Facts()
	v := plan.View{
		Self: a.Self, DataPathPort: f.Params.DataPathPort, Underlay: a.Underlay, Nodes: a.Peers.Nodes(), Tunnels: a.Tunnels.Tunnels(),
		Networks:     map[overlay.NetworkID]overlay.Network{},
		Participants: map[overlay.NetworkID][]overlay.NodeID{},
		Remote:       map[overlay.NetworkID][]*overlay.Claim{},
		Partial:      map[overlay.NetworkID]bool{},
		Linger:       map[overlay.NetworkID]bool{},
		MTU:          map[overlay.NetworkID]int{},
		Services:     map[overlay.NetworkID][]*services.Service{},
		VIPs:         map[overlay.NetworkID][]*datapath.VIP{},
		Numbers:      map[overlay.NodeID]uint32{},
		Unsettled:    map[overlay.NetworkID]bool{},
	}
	for id, node := range f.Nodes {
		v.Numbers[id] = node.Number
	}
	if a.removed {
		return v
	}
	for _, e := range a.endpoints {
		if e.state == overlay.EndpointLost {
			continue
		}
		v.Local = append(v.Local, e.plan())
		a.include(&v, a.network(e.Network))
	}
	for _, n := range a.networks {
		if time.Now().Before(n.linger) || a.isEntrance(n) {
			a.include(&v, n)
			v.Linger[n.def.ID] = true
		}
	}
	return v
}

// include puts a network into a view. In the loop.
func (a *Agent) include(v *plan.View, n *network) {
	id := n.def.ID
	if _, seen := v.Networks[id]; seen || id == "" {
		return
	}
	v.Networks[id] = n.def
	v.Remote[id] = a.Peers.Claims(id)
	v.Participants[id] = with(n.participants(), v.Remote[id])
	v.Partial[id] = !n.synced
	v.Unsettled[id] = !n.synced && time.Since(n.since) < settleTime
	v.MTU[id] = n.mtu.follow(plan.MTU(n.def, *v), time.Now())
	n.services = a.judge(id, v.Remote[id], n.services)
	v.Services[id] = n.services
	n.balanced = n.balanced.Follow(n.services)
	v.VIPs[id] = n.balanced.VIPs
}

// with adds the owners of claims to the participants: the lease that came with a claim may
// be here before the facts that tell of it.
func with(participants []overlay.NodeID, claims []*overlay.Claim) []overlay.NodeID {
	known := map[overlay.NodeID]bool{}
	for _, id := range participants {
		known[id] = true
	}
	for _, c := range claims {
		known[c.Record.Owner] = true
	}
	return slices.Sorted(maps.Keys(known))
}
