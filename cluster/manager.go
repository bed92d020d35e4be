// Package cluster is a manager as one Run: it serves the managers' API by turning calls into
// commands, and does what the leader alone does.
package cluster

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-net/heddle/cluster/api"
	"github.com/heddle-net/heddle/cluster/control"
	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/cluster/raftnode"
	"github.com/heddle-net/heddle/cluster/state"
	"github.com/heddle-net/heddle/overlay"
)

// Observer is what gossip on this node sees of the others.
type Observer interface {
	// Peer is a node's status ("ready", "down" or "unknown") and the version that it runs.
	Peer(overlay.NodeID) (status, version string)
	// Record is what a node says of itself.
	Record(overlay.NodeID) (r overlay.NodeRecord, ok bool)
	// Claims are all endpoint records of a network, this node's own among them.
	Claims(overlay.NetworkID) []*overlay.Claim
	// Suspended are the nodes that are taken for dead, and since when.
	Suspended() map[overlay.NodeID]time.Time
	// Refresh makes sure that Claims has what the nodes host, or says who does not answer.
	Refresh(ctx context.Context, nodes []overlay.NodeID) error
}

// Config is what a manager works with. All fields are required.
type Config struct {
	Self        overlay.NodeID
	Dir         string // for the Raft log and snapshots
	Credentials *pki.Credentials
	Port        *control.Port
	Client      *api.Client // of this node, to tell the leader that it is ready
	Observer    Observer
	Holder      api.Holder // of this node
	Hello       overlay.Hello
	Now         func() time.Time
	Log         *slog.Logger
}

// Manager is one manager. It is an api.Backend, and an api.Source of facts for its own node.
type Manager struct {
	Config
	state   *state.State
	raft    *raftnode.Node
	holders *api.Holders

	admitting sync.RWMutex // held by who makes managers; alone, by who raises the level
}

var _ api.Backend = (*Manager)(nil)

// Open opens the manager's log. It starts nothing; Close a manager that is not run.
func Open(c Config) (*Manager, error) {
	m := &Manager{Config: c, state: state.New()}
	m.holders = api.NewHolders(c.Credentials, m.address)
	var err error
	m.raft, err = raftnode.Open(raftnode.Config{
		Self: c.Self, Dir: c.Dir, State: machine{m.state}, Credentials: c.Credentials,
		Listen: func() net.Listener { return c.Port.Listener(pki.ALPNRaft) }, Address: m.address, Log: c.Log,
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Close closes a manager that is not run.
func (m *Manager) Close() error { return m.raft.Close() }

// Forget removes a manager's log and snapshots, of a node that is in no cluster any more.
func Forget(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the managers' log: %w", err)
	}
	return nil
}

// Founding is what makes a cluster of one node.
type Founding struct {
	Name    string
	Control netip.AddrPort
	Gossip  netip.AddrPort
	Params  overlay.Params
}

// Founded is a cluster that was drawn up but has no manager yet. It holds the cluster's secrets.
type Founded struct {
	Identity pki.Identity // of the first manager, a member; save it after Init
	init     state.Init
}

// Found draws up a cluster: its CA, signing key and gossip key, and the first manager's
// certificate.
func Found(id pki.Identity, f Founding, now time.Time) (*Founded, error) {
	var name [16]byte
	_, _ = rand.Read(name[:]) // never fails
	place := overlay.Place{Cluster: hex.EncodeToString(name[:]), Epoch: 1}
	ca, err := pki.NewCA(place.Cluster, now)
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(pki.Subject{Place: place, Node: id.Node, Role: overlay.Manager}, id.Public(), now)
	if err != nil {
		return nil, err
	}
	if id, err = id.Joined(place, cert, ca.Cert.Raw); err != nil {
		return nil, err
	}
	signing, gossip := make([]byte, ed25519.SeedSize), make([]byte, 32)
	_, _ = rand.Read(signing)
	_, _ = rand.Read(gossip)
	return &Founded{id, state.Init{
		Place: place, Level: state.Level, Params: f.Params, CA: ca.Cert.Raw, CAKey: ca.Key,
		SigningKeys: [][]byte{signing}, GossipKeys: [][]byte{gossip},
		Node: state.NewNode{ID: id.Node, Key: id.Public(), Name: f.Name, Control: f.Control, Gossip: f.Gossip},
	}}, nil
}

// Bootstrap makes this manager the first of a fresh cluster. It is called between Open and Run;
// Init completes it.
func (m *Manager) Bootstrap(f *Founded) error { return m.raft.Bootstrap(f.init.Node.Control) }

// Init makes the cluster, while Run is under way, and its first worker token. It waits until
// this manager leads.
func (m *Manager) Init(ctx context.Context, f *Founded) (overlay.TokenReply, error) {
	for !m.raft.Leads() {
		changed := m.raft.LeaderChanged()
		if m.raft.Leads() {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return overlay.TokenReply{}, overlay.Errorf(overlay.Unavailable, "the first manager did not start in time: %w", context.Cause(ctx))
		}
	}
	if _, err := propose[state.NodeResult](ctx, m, "init", f.init); err != nil {
		return overlay.TokenReply{}, err
	}
	return m.CreateToken(ctx, overlay.TokenRequest{Role: overlay.Worker})
}

// Run is the manager until ctx ends: it serves the API, joins and Raft on the control port. It
// ends with an error when the manager can't go on; the node's other parts can.
func (m *Manager) Run(ctx context.Context) error {
	raftCtx, stopRaft := context.WithCancel(context.Background())
	defer stopRaft()
	raftDone := make(chan error, 1)
	serveCtx, stopServing := context.WithCancel(ctx)
	defer stopServing()
	go func() {
		raftDone <- m.raft.Run(raftCtx)
		stopServing()
	}()
	h := api.NewHandler(api.HandlerConfig{Credentials: m.Credentials, Hello: m.Hello, Holder: m.Holder, Backend: m, Address: m.address})
	defer h.Close()
	defer m.holders.Close()
	g, gctx := errgroup.WithContext(serveCtx)
	g.Go(func() error { return api.Serve(gctx, m.Port.Listener(pki.ALPNAPI), h, m.Log) })
	g.Go(func() error { return api.ServeJoin(gctx, m.Port.Listener(pki.ALPNJoin), h, m.Log) })
	g.Go(func() error { return m.announce(gctx) })
	g.Go(func() error { return m.duties(gctx) })
	err := g.Wait()
	stopRaft() // last, so that leadership is handed over when no request is under way
	return errors.Join(err, <-raftDone)
}

// ServeWorker answers on l, the API's part of the control port, as a node does that is no manager,
// until ctx ends or a manager takes over.
func ServeWorker(ctx context.Context, l net.Listener, cred *pki.Credentials, hello overlay.Hello, holder api.Holder, log *slog.Logger) error {
	h := api.NewHandler(api.HandlerConfig{Credentials: cred, Hello: hello, Holder: holder})
	defer h.Close()
	return api.Serve(ctx, l, h, log)
}

// machine fits the state to raftnode.
type machine struct{ *state.State }

// outcome is what a command came to: a result, or the error that is its answer.
type outcome struct {
	result any
	err    error
}

func (s machine) Apply(index uint64, entry []byte) (any, error) {
	r, err := s.State.Apply(index, entry)
	if err != nil && state.Fatal(err) {
		return nil, err
	}
	return outcome{r, err}, nil
}

func (s machine) Snapshot() (raftnode.SnapshotWriter, error) { return s.State.Snapshot().Write, nil }

// requestOf is the ID of a step of the request that ctx belongs to, or "".
func requestOf(ctx context.Context, step string) string {
	if req := api.RequestOf(ctx); req != "" {
		return req + " " + step
	}
	return ""
}

// answered says whether a step was done before, and how it ended: its answer may have been lost.
// Who removes asks it first, since what is gone is not found again.
func (m *Manager) answered(ctx context.Context, step string) (bool, error) {
	return m.state.Answered(requestOf(ctx, step))
}

// propose commits a command. step tells the commands of one request apart.
func propose[R any](ctx context.Context, m *Manager, step string, c state.Command) (result R, err error) {
	b, err := state.Encode(m.state.Level(), requestOf(ctx, step), c)
	if early, ok := errors.AsType[*state.TooNew](err); ok {
		return result, m.waits(early)
	}
	if err != nil {
		return result, err
	}
	v, err := m.raft.Propose(ctx, b)
	if err != nil {
		return result, err
	}
	o := v.(outcome)
	if o.err != nil {
		return result, o.err
	}
	r, ok := o.result.(R)
	if !ok {
		return result, overlay.Errorf(overlay.Internal, "%s was answered with a %T", step, o.result)
	}
	return r, nil
}

func (m *Manager) address(id overlay.NodeID) (netip.AddrPort, bool) {
	row, ok := m.state.View().Nodes[id]
	if r, said := m.Observer.Record(id); ok && said && r.Control.IsValid() {
		return r.Control, true // it moves before its row does
	}
	return row.Control, ok
}

// Leader, LeaderChanged and Verify are api.Backend's.

func (m *Manager) Leader() (overlay.NodeID, bool)   { return m.raft.Leader(), m.raft.Leads() }
func (m *Manager) LeaderChanged() <-chan struct{}   { return m.raft.LeaderChanged() }
func (m *Manager) Verify(ctx context.Context) error { return m.raft.VerifyLeader(ctx) }

// FactsFor is api.Source's; nil before the cluster is made.
func (m *Manager) FactsFor(n overlay.NodeID) *overlay.Facts {
	if !m.state.View().Ready() {
		return nil
	}
	return m.state.FactsFor(n)
}

func (m *Manager) Since(rev uint64, n overlay.NodeID) (overlay.Delta, bool) {
	return m.state.Since(rev, n)
}
func (m *Manager) Changed(rev uint64) <-chan struct{} { return m.state.Changed(rev) }

func (m *Manager) Beat() api.Beat {
	s := m.raft.Stats()
	b := api.Beat{Leader: s.Leader, Commit: s.Commit, Age: s.Contact.Milliseconds()}
	if s.Contact < 0 {
		b.Age = -1
	}
	return b
}

// Voter says whether this manager has its vote.
func (m *Manager) Voter() bool {
	servers, err := m.raft.Servers()
	return err == nil && slices.Contains(servers, raftnode.Server{ID: m.Self, Voter: true})
}
