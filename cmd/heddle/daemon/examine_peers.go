//go:build linux

package daemon

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/heddle-net/heddle/cluster/api"
	"github.com/heddle-net/heddle/cmd/heddle/daemon/doctor"
	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

const (
	askedPeers = 64              // of a large cluster: those that this node's workloads need, then managers
	askWidth   = 16              // at the same time
	askTime    = 2 * time.Second // for each thing that a peer is asked
)

// readCluster reads what this node knows of its cluster, and how its peers answer.
func (d *Daemon) readCluster(ctx context.Context, m *member, x examiner) (c doctor.Cluster) {
	f, g := m.facts(), m.gossip.Load()
	from, _ := m.watcher.Source()
	c.Follows, c.Revision, c.Level, c.Behind, c.Conflicts = f.Nodes[from].Name, f.Revision, f.Level, m.behind(overlay.Level), g.Conflicts()
	for _, n := range f.Managers() {
		c.Managers = append(c.Managers, n.Name)
	}
	if err := m.role.problem(); err != nil {
		c.Role = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	c.Ports = doctor.Ports{Control: d.cfg.ControlPort, Gossip: d.cfg.GossipPort, DataPath: f.Params.DataPathPort, WireGuard: d.cfg.WireGuardPort}
	c.Link = x.readLink(m.at.Local())
	for link, a := range x.uplinks() {
		c.Uplinks = append(c.Uplinks, x.way("what workloads send out", a.Prefix.Addr(), link))
	}
	eps, _ := m.agent.Endpoints(ctx)
	ask := m.peers(eps)
	c.Peers = make([]doctor.Peer, len(ask))
	var wg sync.WaitGroup
	slots := make(chan struct{}, askWidth)
	for i, id := range ask {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			c.Peers[i] = m.readPeer(ctx, x, id, c.Link, eps)
		})
	}
	wg.Wait()
	return c
}

func (x examiner) readLink(addr netip.Addr) doctor.Link {
	l := doctor.Link{Addr: addr}
	var err error
	if l.Name, l.MTU, err = x.kernel.LinkMTU(addr); err != nil {
		l.Err = err.Error()
		return l
	}
	l.Strict = addr.Is4() && x.strict(l.Name)
	if all, err := x.kernel.Offloads(l.Name); err == nil {
		l.Offloads = map[string]doctor.Offload{}
		for name, o := range all {
			l.Offloads[name] = doctor.Offload(o)
		}
	}
	return l
}

// strict says whether a link's rp_filter is: the higher one of its own and that of all counts, and
// 2 is loose.
func (x examiner) strict(link string) bool {
	all, own := "net/ipv4/conf/all/rp_filter", "net/ipv4/conf/"+link+"/rp_filter"
	s, err := x.kernel.Settings(datapath.NS{}, all, own)
	return err == nil && max(s[all], s[own]) == "1"
}

func (x examiner) way(of string, addr netip.Addr, in string) doctor.Way {
	w := doctor.Way{Of: of, Addr: addr, In: in}
	if p, err := x.kernel.PathTo(addr); err == nil {
		w.Back = p.Link
	}
	w.Strict = addr.Is4() && x.strict(in)
	return w
}

// peers are the nodes to ask: those that workloads here share a network with, managers, the others.
func (m *member) peers(eps []overlay.Endpoint) []overlay.NodeID {
	f, rank := m.facts(), map[overlay.NodeID]int{}
	for _, e := range eps {
		for id := range f.Leases[e.NetworkID] {
			rank[id] = -2
		}
	}
	for _, n := range f.Managers() {
		rank[n.ID]--
	}
	all := slices.SortedFunc(maps.Keys(f.Nodes), func(a, b overlay.NodeID) int {
		return cmp.Or(rank[a]-rank[b], strings.Compare(f.Nodes[a].Name, f.Nodes[b].Name))
	})
	self := m.cred.Identity().Node
	all = slices.DeleteFunc(all, func(id overlay.NodeID) bool { return id == self || f.Removed(id) })
	all = all[:min(len(all), askedPeers)]
	slices.SortFunc(all, func(a, b overlay.NodeID) int { return strings.Compare(f.Nodes[a].Name, f.Nodes[b].Name) })
	return all
}

// readPeer asks one node all at once.
func (m *member) readPeer(ctx context.Context, x examiner, id overlay.NodeID, link doctor.Link, eps []overlay.Endpoint) doctor.Peer {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	g, row := m.gossip.Load(), m.facts().Nodes[id]
	p := doctor.Peer{Name: row.Name}
	var known bool
	if p.Record, known = g.Record(id); !known {
		p.Record = overlay.NodeRecord{Control: row.Control, Gossip: row.Gossip}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		greeting, err := api.Greet(ctx, m.cred, id, p.Record.Control)
		p.Control, p.Ahead = reason(err), greeting.Ahead
	})
	wg.Go(func() {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", p.Record.Gossip.String())
		if p.Gossip = reason(err); err == nil {
			c.Close()
		}
	})
	wg.Go(func() { p.Packets = reason(g.Echo(ctx, id)) })
	if at := p.Record.DataPath(); at.IsValid() && link.Err == "" {
		p.Way = x.way(row.Name, at, link.Name)
		p.Full = min(link.MTU, cmp.Or(p.Record.MTU, link.MTU))
		wg.Go(func() {
			var err error
			if p.Passed, err = x.kernel.Sizes(ctx, at, sizes(p.Full)); err != nil {
				p.SizesErr = err.Error()
			}
		})
	}
	wg.Go(func() { p.Frames = m.tryFrames(ctx, x, id, eps, false) })
	wg.Go(func() { p.Sealed = m.tryFrames(ctx, x, id, eps, true) })
	wg.Wait()
	return p
}

// sizes are MTUs that are met with, up to one.
func sizes(full int) []int {
	all := []int{576, 1280, 1300, 1350, 1380, 1400, 1420, 1430, 1440, 1450, 1460, 1472, 1480, 1492, 1500, 4352, 8000, 8900, 8950}
	return append(slices.DeleteFunc(all, func(s int) bool { return s >= full }), full)
}

// reason is what of an error a reader needs who knows what was tried.
func reason(err error) string {
	var op *net.OpError
	switch {
	case err == nil:
		return ""
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer"
	case errors.As(err, &op) && op.Timeout():
		return "no answer"
	case errors.As(err, &op):
		return op.Err.Error()
	}
	return err.Error()
}

// triedEach is how many workloads of a peer are tried, until one answers.
const triedEach = 3

// tryFrames sends from workloads here to some of a peer's in the same network, plain or encrypted, or
// returns nil where there are none.
func (m *member) tryFrames(ctx context.Context, x examiner, id overlay.NodeID, eps []overlay.Endpoint, encrypted bool) (f *doctor.Frames) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	tried := 0
	for _, from := range eps {
		if from.State != overlay.EndpointReady || from.Namespace == "" || m.facts().Networks[from.NetworkID].Encrypted != encrypted {
			continue
		}
		for _, c := range m.gossip.Load().Claims(from.NetworkID) {
			to := sameFamily(from, c.Record.IPs)
			if c.Record.Owner != id || c.Record.Deleted || !to.IsValid() || tried == triedEach {
				continue
			}
			tried++
			wg.Go(func() {
				got, err := x.kernel.TryFrames(ctx, datapath.NS{Path: from.Namespace}, source(from, to), to)
				if err != nil {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if f == nil || !f.Echo && !f.TCP && !f.UDP {
					f = &doctor.Frames{From: from.Name, To: c.Record.Workload, Echo: got.Echo, TCP: got.TCP, UDP: got.UDP, SummedTCP: got.SummedTCP, SummedUDP: got.SummedUDP}
				}
			})
		}
	}
	wg.Wait()
	return f
}

// sameFamily is the first of the addresses that an endpoint has one like.
func sameFamily(e overlay.Endpoint, to []netip.Addr) netip.Addr {
	for _, a := range to {
		if source(e, a).IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

func source(e overlay.Endpoint, to netip.Addr) netip.Addr {
	if to.Is4() {
		return e.IPv4.Addr()
	}
	return e.IPv6.Addr()
}
