package agent

import (
	"context"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/plan"
	"github.com/heddle-net/heddle/overlay/services"
)

const (
	lingerTime  = time.Minute            // how long a network's kernel objects outlive its last endpoint here
	lowWater    = 2                      // free addresses of a family below which a lease is refilled
	syncTimeout = 2 * time.Second        // for what the participants hold, at a first attach
	syncFirst   = 100 * time.Millisecond // until a fetch that failed is done again; doubles to syncMost
	syncMost    = time.Second
	settleTime  = 30 * time.Second       // for others to say what they host, until published ports follow what is known without them
	ackTimeout  = 100 * time.Millisecond // DESIGN: an attach that has returned is reachable, or names who is silent
)

// network is what this node knows of a network in which it takes part.
type network struct {
	Counter
	known    overlay.Version // the counter as the disk had it at the start
	def      overlay.Network // zero until facts or a grant describe it
	leases   map[overlay.NodeID]overlay.Signed
	lease    overlay.Lease // this node's own, decoded
	revision uint64        // of the grant or facts that leases come from
	saved    uint64        // the revision that the disk has
	own      map[overlay.EndpointID]overlay.Signed
	used     map[netip.Addr]uint64 // when an address was last given back, in steps of clock
	clock    uint64
	synced   bool                 // this node holds what the participants held when it began to follow
	syncing  bool                 // a fetch is under way
	done     chan struct{}        // closed at the end of that fetch
	syncWait time.Duration        // how long the last fetch that failed was left alone
	syncNext time.Time            // not before then, after one that failed
	refill   chan struct{}        // closed at the end of the refill under way; nil when there is none
	forsaken []overlay.EndpointID // rows that are no more, and that the disk may still have
	renewed  []OwnRecord          // what stood when a new life began, until all of it is durable and told
	barred   []overlay.Grant      // runs of the lease that were given up, and are not to be used
	offered  services.Input       // its services, by the facts offeredBy
	services []*services.Service  // as they were judged last
	balanced plan.Balanced        // their VIPs

	offeredBy *overlay.Facts
	linger    time.Time // until when its kernel objects outlive the last endpoint
	since     time.Time // it is known here
	entering  bool      // a lease is asked for, for the sake of a service that is on every node
	mtu       heldMTU
	surplus   [2]int // idle addresses above the reserve, of each family, when tidy looked last
}

// network is the entry of an ID, made when it is missing. In the loop (or before it runs).
func (a *Agent) network(id overlay.NetworkID) *network {
	n := a.networks[id]
	if n == nil {
		n = &network{since: time.Now(), Counter: Counter{Incarnation: 1}, own: map[overlay.EndpointID]overlay.Signed{}, used: map[netip.Addr]uint64{}}
		a.networks[id] = n
	}
	return n
}

// release puts addresses behind all others that are free: whoever talked to them may still
// remember their MAC.
func (n *network) release(ips []netip.Addr) {
	n.clock++
	for _, ip := range ips {
		n.used[ip] = n.clock
	}
}

// change begins a change of the network on the disk. In the loop.
func (n *network) change() Change {
	return Change{Network: n.def.ID, Counter: n.Counter, Delete: slices.Clone(n.forsaken), Records: slices.Clone(n.renewed)}
}

// save makes a change durable. Not in the loop.
func (a *Agent) save(c Change) error {
	if err := a.Store.Save(c); err != nil || len(c.Delete) == 0 {
		return err
	}
	return a.do(context.Background(), func(context.Context) {
		if n := a.networks[c.Network]; n != nil {
			n.forsaken = slices.DeleteFunc(n.forsaken, func(id overlay.EndpointID) bool { return slices.Contains(c.Delete, id) })
		}
	})
}

func (n *network) participants() []overlay.NodeID { return slices.Sorted(maps.Keys(n.leases)) }

// know takes over a definition and its leases, unless it has newer ones. In the loop.
func (a *Agent) know(def overlay.Network, leases map[overlay.NodeID]overlay.Signed, revision uint64) *network {
	n := a.network(def.ID)
	if revision < n.revision {
		return n
	}
	n.def, n.leases, n.revision = def, leases, revision
	if s, ok := leases[a.Self]; ok {
		var l overlay.Lease
		if err := s.Decode(overlay.DomainLease, &l); err == nil && l.Index >= n.lease.Index {
			n.lease = l
		}
	}
	return n
}

// learn takes over newer facts and tells gossip who takes part in what. In the loop.
func (a *Agent) learn(ctx context.Context) {
	f := a.Facts.Facts()
	if _, out := f.Removals[a.Self]; out && !a.removed {
		a.removed = true
		a.Log.Warn("this node was removed from the cluster; its overlays are torn down", "node", a.Self)
	}
	for id, def := range f.Networks {
		if _, member := f.Leases[id][a.Self]; member {
			a.know(def, f.Leases[id], f.Revision)
		}
	}
	for id, n := range a.networks {
		if _, there := f.Networks[id]; !there && n.def.ID != "" && f.Revision > n.revision {
			a.forget(ctx, id)
		}
	}
	follow := map[overlay.NetworkID][]overlay.NodeID{}
	for id := range f.Networks { // a manager is told of all networks, and observes them
		follow[id] = slices.Sorted(maps.Keys(f.Leases[id]))
	}
	for id, n := range a.networks {
		if n.def.ID == "" {
			continue
		}
		follow[id] = n.participants()
	}
	var managers []overlay.NodeID
	for _, m := range f.Managers() {
		managers = append(managers, m.ID)
	}
	a.Peers.SetParticipants(follow, managers)
	a.enterAll(ctx)
	for id, n := range a.networks { // only now is it known whom to ask
		if n.def.ID != "" {
			a.sync(ctx, id)
		}
	}
}

// Granted are the networks in which this node has a lease, as it knows them: the answer to an
// attach may be here before the facts are.
func (a *Agent) Granted() (all []Grant) {
	_ = a.do(context.Background(), func(context.Context) {
		for _, n := range a.networks {
			if _, ok := n.leases[a.Self]; ok {
				all = append(all, Grant{n.def, n.leases, n.revision})
			}
		}
	})
	return all
}

// forget drops a network that was removed, with what is left of it here. In the loop.
func (a *Agent) forget(ctx context.Context, id overlay.NetworkID) {
	for _, e := range a.endpoints {
		if e.Network == id {
			a.Log.Warn("the network of an endpoint was removed", "network", id, "endpoint", e.ID)
			e.rest()
			delete(a.endpoints, e.ID)
		}
	}
	delete(a.networks, id)
	a.background(func() {
		if err := a.Store.Save(Change{Network: id, Forget: true}); err != nil {
			a.Log.Error("forget a removed network", "network", id, "err", err)
		}
	})
}

// sync fetches the others' records of a network unless this node has them, until it does. What only
// others may want stays in the kernel meanwhile. In the loop.
func (a *Agent) sync(ctx context.Context, id overlay.NetworkID) {
	n := a.networks[id]
	if n.synced || n.syncing || time.Now().Before(n.syncNext) {
		return
	}
	n.syncing, n.done = true, make(chan struct{})
	lease := n.leases[a.Self]
	a.background(func() {
		ctx, cancel := context.WithTimeout(ctx, syncTimeout)
		defer cancel()
		err := a.Peers.Sync(ctx, id, lease)
		_ = a.do(context.Background(), func(life context.Context) {
			n.syncing, n.synced = false, err == nil
			close(n.done)
			if err != nil {
				a.syncLater(life, id, n, err)
			}
			a.replan()
		})
	})
}

// syncLater fetches again what could not be fetched, after a pause. In the loop.
func (a *Agent) syncLater(ctx context.Context, id overlay.NetworkID, n *network, err error) {
	if n.syncWait == 0 {
		a.Log.Warn("fetch what others host in a network; trying again", "network", id, "err", err)
	}
	n.syncWait = min(max(2*n.syncWait, syncFirst), syncMost)
	n.syncNext = time.Now().Add(n.syncWait)
	pause := time.NewTimer(n.syncWait)
	a.background(func() {
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		_ = a.do(ctx, func(life context.Context) {
			if a.networks[id] == n { // it was not removed meanwhile
				a.sync(life, id)
			}
		})
	})
}

// named finds a network by name, ID or prefix among those in which this node has a lease.
// In the loop.
func (a *Agent) named(ref string) *network {
	var known []*network
	for _, n := range a.networks {
		if _, ok := n.leases[a.Self]; ok {
			known = append(known, n)
		}
	}
	n, err := overlay.Find("network", ref, known, func(n *network) (string, string) { return string(n.def.ID), n.def.Name })
	if err != nil {
		return nil
	}
	return n
}

// enter finds the network of a request. The first time, it takes a lease and fetches what
// the participants know; later it asks nobody.
func (a *Agent) enter(ctx context.Context, r overlay.AttachRequest) (overlay.NetworkID, error) {
	var n *network
	if err := a.do(ctx, func(context.Context) { n = a.named(r.Network) }); err != nil {
		return "", err
	}
	if n == nil {
		g, err := a.Control.Grant(ctx, r.Network, 0, named(r))
		if err != nil {
			return "", err
		}
		if r.Service != "" || len(r.Labels) > 0 { // what it is behind says how its health is found out
			a.Control.Hear(ctx, g.Network.ID)
		}
		if err := a.do(ctx, func(life context.Context) { n = a.know(g.Network, g.Leases, g.Revision); a.learn(life) }); err != nil {
			return "", err
		}
	}
	return n.def.ID, nil
}

// more asks for further addresses of a network, or for the ones named.
func (a *Agent) more(ctx context.Context, id overlay.NetworkID, want int, addrs []netip.Addr) error {
	g, err := a.Control.Grant(ctx, string(id), want, addrs)
	if err != nil {
		return err
	}
	return a.do(ctx, func(context.Context) { a.know(g.Network, g.Leases, g.Revision) })
}

// take picks an address of the subnet from this node's lease: the one asked for, or the one
// that was given back longest ago. In the loop.
func (a *Agent) take(n *network, s overlay.Subnet, asked netip.Addr, workload string) (netip.Addr, error) {
	used := a.used(n.def.ID)
	if asked.IsValid() {
		if by := used[asked]; by != "" && by != workload {
			return asked, overlay.Errorf(overlay.Exists, "address %s of network %s is in use by %s on this node; take another or detach that", asked, n.def.Name, by)
		}
		if _, ok := n.usable().Granted(asked); !ok {
			return asked, errNotLeased
		}
		return asked, nil
	}
	best, found := netip.Addr{}, false
	for _, g := range n.usable().Grants {
		for ip := g.First; g.Has(ip); ip = ip.Next() {
			if s.Prefix.Contains(ip) && used[ip] == "" && (!found || n.used[ip] < n.used[best]) {
				best, found = ip, true
			}
		}
	}
	if !found && a.shed(n, 1, nil) { // what is kept for a name goes to who needs it now
		return a.take(n, s, asked, workload)
	}
	if !found {
		return netip.Addr{}, errLeaseFull
	}
	return best, nil
}

var (
	errLeaseFull = overlay.Errorf(overlay.Exhausted, "no address is left in this node's lease")
	errNotLeased = overlay.Errorf(overlay.Exhausted, "the address is not in this node's lease")
)

// free counts what the lease has left in the scarcer of the network's families. In the loop.
func (a *Agent) free(n *network) int {
	least := -1
	for _, v4 := range []bool{true, false} {
		if !slices.ContainsFunc(n.def.Subnets, func(s overlay.Subnet) bool { return s.Prefix.Addr().Is4() == v4 }) {
			continue
		}
		if idle, _ := a.idle(n, v4); least < 0 || len(idle) < least {
			least = len(idle)
		}
	}
	return least
}

// used are the addresses of this node's own endpoints in a network, and whose they are. In the
// loop.
func (a *Agent) used(id overlay.NetworkID) map[netip.Addr]string {
	used := map[netip.Addr]string{}
	for _, e := range a.endpoints {
		if e.Network == id {
			for _, ip := range e.IPs {
				used[ip] = e.Workload
			}
		}
	}
	return used
}

// topUp refills the lease behind the attach that took it below the mark. In the loop.
func (a *Agent) topUp(ctx context.Context, n *network) {
	if n.refill != nil || a.free(n) >= lowWater {
		return
	}
	done := make(chan struct{})
	n.refill = done
	id := n.def.ID
	a.background(func() {
		g, err := a.Control.Refill(ctx, id)
		if err == nil {
			err = a.do(ctx, func(context.Context) { a.know(g.Network, g.Leases, g.Revision) })
		}
		if err != nil && ctx.Err() == nil && overlay.KindOf(err) != overlay.Exhausted {
			a.Log.Warn("refill of a lease failed; the next attach tries again", "network", id, "err", err)
		}
		_ = a.do(context.Background(), func(context.Context) { n.refill = nil })
		close(done)
	})
}

// sign states an endpoint's record under the next number. In the loop; the caller saves it
// before it publishes it.
func (a *Agent) sign(n *network, r overlay.Record) (overlay.Signed, error) {
	s, err := a.next(n, r)
	if err == nil {
		n.own[r.Endpoint] = s
	}
	return s, err
}

// next signs a record under the next number, and does not keep it. In the loop.
func (a *Agent) next(n *network, r overlay.Record) (overlay.Signed, error) {
	r.V, r.Place, r.Network, r.Owner = 1, a.Facts.Facts().Place, n.def.ID, a.Self
	r.Incarnation, r.Number, r.Lease = n.Incarnation, n.Number+1, n.leases[a.Self].Digest()
	s, err := overlay.Sign(overlay.DomainRecord, a.Key, r)
	if err == nil {
		n.Number++
	}
	return s, err
}

// restate gives gossip the records that this node's disk keeps. A new life that had begun when the
// node was killed goes on. Before the loop runs.
func (a *Agent) restate(ctx context.Context) {
	for id, n := range a.networks {
		lease, ok := n.leases[a.Self]
		if !ok || n.Number == 0 {
			continue
		}
		if a.half(n) {
			c := a.anew(n)
			a.background(func() { a.saveInTheEnd(ctx, c) })
		}
		records := byVersion(slices.Collect(maps.Values(n.own)), number)
		if err := a.say(id, records, lease); err != nil {
			a.Log.Error("state own endpoints again", "network", id, "err", err)
			continue
		}
		// What the disk does not have was superseded, or never said.
		a.Peers.Skip(id, overlay.Version{Incarnation: n.Incarnation, Number: 1}, overlay.Version(n.Counter))
	}
	for _, e := range a.endpoints {
		a.watch(ctx, e)
	}
}

// half says whether an endpoint that stands was stated in an earlier life only.
func (a *Agent) half(n *network) bool {
	for _, e := range a.endpoints {
		if e.Network == n.def.ID && e.state != overlay.EndpointLost && number(n.own[e.ID]).Incarnation != n.Incarnation {
			return true
		}
	}
	return false
}

// byVersion is what was signed in the order of its versions, each of which is read once.
func byVersion[T any](all []T, version func(T) overlay.Version) []T {
	type dated struct {
		overlay.Version
		what T
	}
	in := make([]dated, len(all))
	for i, t := range all {
		in[i] = dated{version(t), t}
	}
	slices.SortFunc(in, func(x, y dated) int { return x.Compare(y.Version) })
	out := make([]T, len(in))
	for i, d := range in {
		out[i] = d.what
	}
	return out
}

func number(s overlay.Signed) overlay.Version {
	var r overlay.Record
	_ = json.Unmarshal(s.Body, &r)
	return r.Version()
}
