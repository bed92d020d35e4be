package cluster

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-net/heddle/cluster/api"
	"github.com/heddle-net/heddle/cluster/state"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/ipam"
)

const (
	askTime  = time.Second // for a holder's answer
	askWidth = 16          // holders that are asked at the same time
	tries    = 3           // of a grant, when others take what was given up for it
	fenceMax = 10 * time.Minute
)

// Grant leases addresses to a node. Where none are left, or a named one is another's, the
// holders are asked for what idles with them.
func (m *Manager) Grant(ctx context.Context, node overlay.NodeID, r api.GrantRequest) (reply api.GrantReply, err error) {
	n, err := m.findNetwork(r.Network)
	if err != nil {
		return reply, err
	}
	if said, ok := m.Observer.Record(node); ok && n.Encrypted && said.Hello.Level() < 3 { // it would not encrypt
		return reply, overlay.Errorf(overlay.Unsupported, "network %s is encrypted, which heddle %s on this node does not know; upgrade it", n.Name, said.Hello.Version)
	}
	for try := range tries {
		g := state.Grant{Network: n.ID, Node: node, Want: r.Want, Addrs: r.Addrs, Spare: r.Spare, Bare: r.Bare, Now: m.Now().Unix()}
		res, err := propose[state.GrantResult](ctx, m, fmt.Sprint("grant ", try), g)
		if err == nil {
			return api.GrantReply{Network: res.Network, Leases: res.Leases, Revision: res.Revision}, nil
		}
		if kind := overlay.KindOf(err); try == tries-1 || r.Spare || r.Bare || m.state.Level() < 2 || (kind != overlay.Exhausted && kind != overlay.Exists) {
			return reply, err
		}
		p := pressing{m: m, network: n, try: try, refused: err}
		if err := p.press(ctx, node, r); err != nil {
			return reply, err
		}
	}
	return reply, nil
}

// Release takes back what a node gives up.
func (m *Manager) Release(ctx context.Context, node overlay.NodeID, s overlay.Signed) (reply api.GrantReply, err error) {
	res, err := propose[state.GrantResult](ctx, m, "release", state.Release{Release: s, Now: m.Now().Unix()})
	if err != nil {
		return reply, err
	}
	if _, own := res.Leases[node]; !own {
		return reply, overlay.Errorf(overlay.NotFound, "node %s has no lease in network %s", node.Short(), res.Network.Name)
	}
	return api.GrantReply{Network: res.Network, Leases: res.Leases, Revision: res.Revision}, nil
}

// pressing asks the holders of a network's addresses for idle ones.
type pressing struct {
	m       *Manager
	network overlay.Network
	try     int
	refused error // why it is needed

	mu     sync.Mutex
	freed  bool
	silent []string              // names of holders that do not answer
	used   map[netip.Addr]string // named addresses: who has them
}

// press returns when something was freed; else its error says what stands in the way.
func (p *pressing) press(ctx context.Context, asker overlay.NodeID, r api.GrantRequest) error {
	p.used = map[netip.Addr]string{}
	for batch := range slices.Chunk(p.holders(asker, r.Addrs), askWidth) {
		var g errgroup.Group
		for _, id := range batch {
			g.Go(func() error {
				p.ask(ctx, id, overlay.ReleaseRequest{Network: p.network.ID, Addrs: r.Addrs, Want: max(1, r.Want)})
				return nil
			})
		}
		_ = g.Wait()
		if p.freed {
			return nil
		}
	}
	slices.Sort(p.silent)
	holder := strings.Join(p.silent, ", ")
	for _, a := range r.Addrs {
		if by := p.used[a]; by != "" {
			return overlay.Errorf(overlay.Exists, "address %s of network %s is in use by %s; take another, or detach that", a, p.network.Name, by)
		}
	}
	switch {
	case len(p.silent) == 0:
		return p.refused
	case len(r.Addrs) > 0:
		return overlay.Errorf(overlay.Exists, "%w; node %s does not answer: wait for it, or `heddle node rm %s` if it is gone", p.refused, holder, p.silent[0])
	}
	return overlay.Errorf(overlay.Exhausted, "network %s has no address left that is known to be free; node %s holds some and does not answer: wait for it, or `heddle node rm %s` if it is gone",
		p.network.Name, holder, p.silent[0])
}

// holders are the other nodes that hold addresses of the network, or the ones named; those
// first with whom most seem to idle.
func (p *pressing) holders(asker overlay.NodeID, addrs []netip.Addr) []overlay.NodeID {
	v := p.m.state.View()
	idle := map[overlay.NodeID]int{}
	for id, s := range v.Leases(p.network.ID) {
		if r, said := p.m.Observer.Record(id); said && !r.Hello.Reads[string(overlay.DomainRelease)].Has(1) {
			continue // its build keeps what it has
		}
		var l overlay.Lease
		if id == asker || s.Decode(overlay.DomainLease, &l) != nil || len(l.Grants) == 0 {
			continue
		}
		named := slices.ContainsFunc(addrs, func(a netip.Addr) bool { _, ok := l.Granted(a); return ok })
		if named || len(addrs) == 0 {
			idle[id] = held(l)
		}
	}
	for _, c := range p.m.Observer.Claims(p.network.ID) {
		if _, holds := idle[c.Record.Owner]; holds {
			idle[c.Record.Owner]--
		}
	}
	return slices.SortedFunc(maps.Keys(idle), func(a, b overlay.NodeID) int {
		return cmp.Or(idle[b]-idle[a], cmp.Compare(a, b))
	})
}

// held counts the addresses of a lease's first family.
func held(l overlay.Lease) (n int) {
	for _, g := range l.Grants {
		if g.First.BitLen() == l.Grants[0].First.BitLen() {
			n += int(min(ipam.Range{First: g.First, Last: g.Last}.Len(), math.MaxInt32))
		}
	}
	return n
}

// ask asks one holder, and commits what it gives.
func (p *pressing) ask(ctx context.Context, id overlay.NodeID, r overlay.ReleaseRequest) {
	m, name := p.m, p.m.state.View().Nodes[id].Name
	wait, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	reply, err := m.holder(id).Release(wait, r)
	if err == nil && reply.Release != nil {
		_, err = propose[state.GrantResult](ctx, m, fmt.Sprint("release ", id.Short(), p.try), state.Release{Release: *reply.Release, Now: m.Now().Unix()})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		m.Log.Warn("a node does not give up addresses", "node", name, "network", p.network.Name, "err", err)
		p.silent = append(p.silent, name)
		return
	}
	p.freed = p.freed || reply.Release != nil
	for a, workload := range reply.InUse {
		p.used[a] = workload + " on node " + name
	}
}

// holder reaches a node's leases.
func (m *Manager) holder(id overlay.NodeID) api.Holder {
	if id == m.Self {
		return m.Holder
	}
	return holder{m.holders, id}
}

type holder struct {
	all *api.Holders
	id  overlay.NodeID
}

func (h holder) Release(ctx context.Context, r overlay.ReleaseRequest) (overlay.ReleaseReply, error) {
	return h.all.Release(ctx, h.id, r)
}

func (h holder) Forgot(ctx context.Context, n overlay.NodeID) error {
	return h.all.Forgot(ctx, h.id, n)
}

// liftFences lets the addresses of removed nodes go to others once every participant of their
// networks acts by the removal, or time is enough. known keeps who does between the calls.
func (m *Manager) liftFences(ctx context.Context, known map[overlay.NodeID]map[overlay.NodeID]bool) error {
	if m.state.Level() < 2 {
		return nil
	}
	for _, f := range m.state.View().Fences() {
		if known[f.Node] == nil {
			known[f.Node] = map[overlay.NodeID]bool{}
		}
		if !(f.Forced && m.Now().Sub(time.Unix(f.Removed, 0)) > fenceMax) && !m.forgotten(ctx, f, known[f.Node]) {
			continue
		}
		if _, err := propose[state.RemovalResult](ctx, m, "", state.Unfence{Node: f.Node, Now: m.Now().Unix()}); err != nil {
			return err
		}
		delete(known, f.Node)
		m.Log.Info("the addresses of a removed node can be leased again", "node", f.Node)
	}
	return nil
}

// forgotten asks the participants that are not known to act by a removal.
func (m *Manager) forgotten(ctx context.Context, f state.Fence, known map[overlay.NodeID]bool) bool {
	var g errgroup.Group
	g.SetLimit(askWidth)
	var mu sync.Mutex
	for _, id := range f.Participants {
		mu.Lock()
		is := known[id]
		mu.Unlock()
		if is {
			continue
		}
		g.Go(func() error {
			wait, cancel := context.WithTimeout(ctx, askTime)
			defer cancel()
			err := m.holder(id).Forgot(wait, f.Node)
			if err == nil {
				mu.Lock()
				known[id] = true
				mu.Unlock()
			}
			return err
		})
	}
	return g.Wait() == nil
}
