//go:build linux

package daemon

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/heddle-net/heddle/cluster"
	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
)

// role runs what this node's role asks for, on the control port: a manager, or the answers
// of a worker. Roles change while the node runs.
type role struct {
	m *member

	mu      sync.Mutex
	now     overlay.Role     // that runs, or ""
	manager *cluster.Manager // that runs, or nil
	ended   error            // why the manager that should run does not, or nil
	end     func()           // ends what runs, and waits
}

func newRole(m *member) *role { return &role{m: m} }

// open opens this node's manager.
func (r *role) open() (*cluster.Manager, error) {
	m := r.m
	return cluster.Open(cluster.Config{
		Self: m.cred.Identity().Node, Dir: m.d.raftDir(), Credentials: m.cred, Port: m.port,
		Client: m.client, Observer: observer{m}, Holder: holderOf{m}, Hello: m.d.hello(), Now: time.Now, Log: m.log,
	})
}

// start runs what the node's certificate says, before there are facts.
func (r *role) start() { r.become(r.m.cred.Subject().Role, nil) }

// follow runs what the node's row says, or returns false when it has to be tried again. A node
// that was removed is a worker.
func (r *role) follow() bool {
	row, ok := r.m.self()
	if !ok {
		row.Role = overlay.Worker
	}
	r.mu.Lock()
	same := r.now == row.Role
	manager := r.manager
	r.mu.Unlock()
	if same {
		if manager != nil {
			r.m.watcher.SetLocal(manager)
		}
		return true
	}
	if ok && r.m.cred.Subject().Role != row.Role {
		ctx, cancel := context.WithTimeout(r.m.ctx, 5*time.Second)
		defer cancel()
		if err := r.m.newCertificate(ctx); err != nil {
			r.m.log.Warn("get a certificate for this node's role; trying again", "role", row.Role, "err", err)
			return false
		}
	}
	if row.Role == overlay.Worker {
		r.m.watcher.SetLocal(nil)
	}
	r.become(row.Role, nil)
	return true
}

// become ends what runs and starts the role; manager is one that is open already, or nil.
func (r *role) become(to overlay.Role, manager *cluster.Manager) {
	r.stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, cancel := context.WithCancel(r.m.ctx)
	done := make(chan struct{})
	r.now, r.ended, r.end = to, nil, func() { cancel(); <-done }
	if to == overlay.Manager && manager == nil {
		if manager, r.ended = r.open(); r.ended != nil {
			r.m.log.Error("the manager on this node can't start; the node goes on as a worker", "err", r.ended)
		}
	}
	r.manager = manager
	if manager != nil && r.m.watcher != nil {
		r.m.watcher.SetLocal(manager)
	}
	var l net.Listener
	if manager == nil { // taken at once: nobody who asks this node from here on is turned away
		l = r.m.port.Listener(pki.ALPNAPI)
	}
	go func() {
		defer close(done)
		r.work(ctx, manager, l)
	}()
}

// work is the manager until it ends, then the answers of a worker; l is for them when there is no
// manager.
func (r *role) work(ctx context.Context, manager *cluster.Manager, l net.Listener) {
	if manager != nil {
		err := manager.Run(ctx)
		if ctx.Err() != nil {
			return
		}
		r.m.log.Error("the manager on this node has ended; the node goes on as a worker until the daemon is started again", "err", err)
		r.m.watcher.SetLocal(nil)
		r.mu.Lock()
		r.manager, r.ended = nil, err
		r.mu.Unlock()
		l = r.m.port.Listener(pki.ALPNAPI)
	}
	if err := cluster.ServeWorker(ctx, l, r.m.cred, r.m.d.hello(), holderOf{r.m}, r.m.log); err != nil && ctx.Err() == nil {
		r.m.log.Error("answer on the control port", "err", err)
	}
}

// running is the manager that runs, or nil.
func (r *role) running() *cluster.Manager {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.manager
}

// problem is why the manager that should run on this node does not, or nil.
func (r *role) problem() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended
}

// stop ends what runs, and waits for it.
func (r *role) stop() {
	r.mu.Lock()
	end := r.end
	r.end, r.now, r.manager = nil, "", nil
	r.mu.Unlock()
	if end != nil {
		end()
	}
}

// observer tells a manager what gossip on this node sees.
type observer struct{ m *member }

// Peer is a node's status and version.
func (o observer) Peer(id overlay.NodeID) (status, version string) {
	g := o.m.gossip.Load()
	if g == nil {
		return "unknown", ""
	}
	version = g.Nodes()[id].Hello.Version
	if id == o.m.cred.Identity().Node {
		return "ready", version
	}
	for _, p := range g.Peers() {
		if p.Node == id {
			switch p.State {
			case "alive", "suspect":
				return "ready", version
			case "dead":
				return "down", version
			}
		}
	}
	return "unknown", version
}

// Record is what a node says of itself.
func (o observer) Record(id overlay.NodeID) (r overlay.NodeRecord, ok bool) {
	if g := o.m.gossip.Load(); g != nil {
		return g.Record(id)
	}
	return r, false
}

// Claims are a network's endpoint records.
func (o observer) Claims(id overlay.NetworkID) []*overlay.Claim {
	if g := o.m.gossip.Load(); g != nil {
		return g.Claims(id)
	}
	return nil
}

// Suspended are the nodes that gossip takes for dead.
func (o observer) Suspended() map[overlay.NodeID]time.Time {
	if g := o.m.gossip.Load(); g != nil {
		return g.Suspended()
	}
	return nil
}

// Refresh makes sure that what living nodes host is among the claims.
func (o observer) Refresh(ctx context.Context, nodes []overlay.NodeID) error {
	if g := o.m.gossip.Load(); g != nil {
		return g.Refresh(ctx, nodes)
	}
	return errStarting
}
