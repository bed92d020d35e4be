package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/plan"
	"github.com/heddle-net/heddle/overlay/wire"
)

// endpoint is one of this node's own endpoints.
type endpoint struct {
	Row
	state   overlay.EndpointState
	busy    chan struct{} // closed when what is under way with it (attach, detach, loss, a change of its record) has ended; nil when nothing is
	probes  []*watching   // in the order of its checks
	leaving *leaving      // nil unless it is being detached, and has a grace
}

// begin marks that something is under way, which others wait for. In the loop.
func (e *endpoint) begin() { e.busy = make(chan struct{}) }

// end lets those go on who wait. In the loop.
func (e *endpoint) end() {
	close(e.busy)
	e.busy = nil
}

func (e *endpoint) plan() plan.Endpoint {
	return plan.Endpoint{ID: e.ID, Network: e.Network, MAC: e.MAC, IPs: e.IPs, Namespace: e.Namespace, Make: e.Make, IfName: e.IfName, Host: e.Host, Priority: e.Priority, Publish: e.Publish, Leaves: e.Leaving != 0}
}

func (e *endpoint) record() overlay.Record {
	return overlay.Record{
		Endpoint: e.ID, Workload: e.Workload, MAC: e.MAC, IPs: e.IPs,
		Names: append([]string{e.Workload}, e.Aliases...), Service: e.Service, Labels: e.Labels, Health: e.Health, Since: e.Since,
	}
}

// attached is an attach under way: the endpoint, and what must be made durable and told.
type attached struct {
	e      *endpoint
	n      *network
	change Change
	record overlay.Signed
	lease  overlay.Signed
	gen    uint64
	synced <-chan struct{} // nil when this node holds the others' records
	there  bool            // it stood before
	found  bool            // it was lost before
	first  bool            // of its network on this node
}

// Attach gives a workload a place in a network. When it returns without error, the interface
// is up, its addresses are usable, and every participant knows, or the reply names who has
// not said so in time.
func (a *Agent) Attach(ctx context.Context, r overlay.AttachRequest) (overlay.AttachReply, error) {
	if err := r.Validate(); err != nil {
		return overlay.AttachReply{}, err
	}
	t, err := a.resolve(ctx, r)
	if err != nil {
		return overlay.AttachReply{}, err
	}
	wire.Waiting(ctx, "a manager to lease addresses of network "+r.Network)
	id, err := a.enter(ctx, r)
	if err != nil {
		return overlay.AttachReply{}, err
	}
	at, err := a.place(ctx, id, r, t)
	if err != nil {
		return overlay.AttachReply{}, err
	}
	wire.Waiting(ctx, "the kernel and the other participants")
	if at.there { // whoever asked first may have had no answer, and the others no news
		silent, err := a.tell(ctx, id, at.record, at.lease)
		return overlay.AttachReply{Endpoint: a.describe(at.e), Silent: silent}, first(a.Datapath.Wait(ctx, at.gen, owners(at.e)...), err)
	}
	silent, err := a.realise(ctx, at)
	if err != nil {
		a.withdraw(at)
		return overlay.AttachReply{}, err
	}
	reply := overlay.AttachReply{Endpoint: a.describe(at.e), Silent: silent}
	if at.first && !at.n.def.Bare() { // later ones would tell the same
		reply.Warnings = a.Datapath.Obstacles(!at.n.def.Internal, a.ports(at.n.def)...)
	}
	return reply, nil
}

// ports are the UDP ports that frames of a network come in by.
func (a *Agent) ports(n overlay.Network) []uint16 {
	switch {
	case n.Driver != overlay.DriverOverlay:
		return nil
	case !n.Encrypted:
		return []uint16{a.Facts.Facts().Params.DataPathPort}
	}
	says := a.Tunnels.Tunnels().Says
	return []uint16{says.Tunnels[0].Port, says.Tunnels[1].Port}
}

// place makes the endpoint in the view, asking for more addresses where the lease has none.
func (a *Agent) place(ctx context.Context, id overlay.NetworkID, r overlay.AttachRequest, t target) (at attached, err error) {
	for try := 0; try < 3; try++ {
		var refill, busy chan struct{}
		if e := a.do(ctx, func(life context.Context) {
			if busy = a.underWay(id, r.Name); busy == nil {
				at, err = a.put(life, id, r, t)
				refill = a.network(id).refill
			}
		}); e != nil {
			return at, e
		}
		var refused error
		switch {
		case busy != nil:
			try--
			wire.Waiting(ctx, "what is under way with "+r.Name)
			refused = await(ctx, busy, "what is under way with "+r.Name)
		case errors.Is(err, errNotLeased):
			refused = a.more(ctx, id, 0, named(r))
		case errors.Is(err, errLeaseFull) && refill != nil:
			refused = await(ctx, refill, "a manager") // it may bring what this request needs
		case errors.Is(err, errLeaseFull):
			refused = a.more(ctx, id, 1, nil)
		default:
			return at, err
		}
		if refused != nil {
			return at, refused
		}
	}
	return at, overlay.Errorf(overlay.Exhausted, "network %s has no address left for this node; detach something, or remove a node that is gone", r.Network)
}

// underWay is the end of what is being done with a workload in a network, or nil. In the loop.
func (a *Agent) underWay(id overlay.NetworkID, workload string) chan struct{} {
	for _, e := range a.endpoints {
		if e.Network == id && e.Workload == workload && e.busy != nil {
			return e.busy
		}
	}
	return nil
}

func await(ctx context.Context, done <-chan struct{}, what string) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return overlay.Errorf(overlay.Unavailable, "gave up waiting for %s: %w", what, ctx.Err())
	}
}

// named are the addresses that a request names.
func named(r overlay.AttachRequest) (addrs []netip.Addr) {
	for _, ip := range []netip.Addr{r.IP, r.IP6} {
		if ip.IsValid() {
			addrs = append(addrs, ip)
		}
	}
	return addrs
}

// put is place's step in the loop: it decides everything about the endpoint and plans it.
func (a *Agent) put(ctx context.Context, id overlay.NetworkID, r overlay.AttachRequest, t target) (attached, error) {
	n := a.network(id)
	if n.def.ID == "" {
		return attached{}, overlay.Errorf(overlay.NotFound, "network %s was removed meanwhile", r.Network)
	}
	var err error
	if n.def.Bare() {
		t, err = a.bare(n, r, t)
	} else {
		err = a.together(n, r.Name)
	}
	if err != nil {
		return attached{}, err
	}
	old, err := a.standing(n, r, t)
	if err != nil {
		return attached{}, err
	}
	if old != nil && old.state != overlay.EndpointLost {
		return attached{e: old, n: n, record: n.own[old.ID], lease: n.leases[a.Self], there: true, gen: a.replan()}, nil
	}
	if err := a.admits(); err != nil {
		return attached{}, err
	}
	if datapath.MAC(r.MAC) == plan.GatewayMAC {
		return attached{}, overlay.Errorf(overlay.Invalid, "--mac %s is the gateway's in every network; choose another", r.MAC)
	}
	if r.Host {
		if err := a.hides(n); err != nil {
			return attached{}, err
		}
	}
	e := &endpoint{state: overlay.EndpointPending, Row: Row{
		V: 1, Network: id, Workload: r.Name, MAC: r.MAC, Host: t.host, Priority: r.GwPriority, Boot: a.Boot,
		Namespace: t.ns, Make: t.make, Aliases: r.Aliases, Service: r.Service, Labels: r.Labels, PID: t.session, Started: t.start, Check: r.Health,
	}}
	if len(a.checks(e)) > 0 {
		e.Health, e.Since = overlay.HealthStarting, time.Now().Unix()
	}
	var kept Row
	if old != nil { // it is found again
		kept = old.Row
	}
	if e.ID = kept.ID; old == nil {
		e.ID = overlay.NewID[overlay.EndpointID](random[[16]byte](a))
	}
	if e.MAC.IsZero() {
		e.MAC = kept.MAC
	}
	if e.MAC.IsZero() && !n.def.Bare() {
		e.MAC = overlay.MACFrom(random[[6]byte](a))
	}
	if e.IPs, err = a.addresses(n, r, kept.IPs); err != nil {
		return attached{}, err
	}
	if e.Publish, err = a.published(n, r, kept.Publish, t.bound); err != nil {
		return attached{}, err
	}
	if !n.def.Bare() {
		if e.IfName, err = a.ifName(r, t); err != nil {
			return attached{}, err
		}
	}
	record, err := a.sign(n, e.record())
	if err != nil {
		return attached{}, err
	}
	at := attached{e: e, n: n, found: old != nil, first: len(a.used(id)) == 0, record: record, lease: n.leases[a.Self], change: n.change()}
	row := e.Row
	at.change.Put, at.change.Records = &row, append(at.change.Records, OwnRecord{Network: id, Endpoint: e.ID, Signed: record})
	e.begin()
	a.endpoints[e.ID] = e
	if n.saved != n.revision {
		// The facts reach the disk some time later. What this endpoint needs of them must be
		// there with it.
		at.change.Grant = &Grant{n.def, n.leases, n.revision}
		n.saved = n.revision
	}
	if !n.synced {
		a.sync(ctx, id)
		at.synced = n.done
	}
	a.topUp(ctx, n)
	at.gen = a.replan()
	return at, nil
}

// standing is the endpoint that a repeated request means. A workload is in a network once.
func (a *Agent) standing(n *network, r overlay.AttachRequest, t target) (*endpoint, error) {
	for _, e := range a.endpoints {
		if e.Network != n.def.ID || e.Workload != r.Name {
			continue
		}
		same := e.Namespace == t.ns && e.Make == t.make && e.PID == t.session && (r.IfName == "" || r.IfName == e.IfName) &&
			asPublished(r.Publish, e.Publish) && (!r.IP.IsValid() || slices.Contains(e.IPs, r.IP)) && (!r.IP6.IsValid() || slices.Contains(e.IPs, r.IP6))
		if !same && e.state != overlay.EndpointLost {
			return nil, overlay.Errorf(overlay.Exists, "%s is attached to network %s already (%s in %s); detach it first, or take another name",
				r.Name, n.def.Name, e.IfName, e.Namespace.Path)
		}
		return e, nil
	}
	return nil, nil
}

// addresses picks one of each family: the one asked for, the one kept for the workload, or the
// next. In the loop.
func (a *Agent) addresses(n *network, r overlay.AttachRequest, kept []netip.Addr) ([]netip.Addr, error) {
	var ips []netip.Addr
	for _, v4 := range []bool{true, false} {
		asked, flag := r.IP, "--ip"
		if !v4 {
			asked, flag = r.IP6, "--ip6"
		}
		if i := slices.IndexFunc(kept, func(ip netip.Addr) bool { return ip.Is4() == v4 }); i >= 0 && !asked.IsValid() {
			if _, ok := n.usable().Granted(kept[i]); ok {
				ips = append(ips, kept[i])
				continue
			}
		}
		ip, found, err := netip.Addr{}, false, error(nil)
		for _, s := range n.def.Subnets { // the first that has one
			if s.Prefix.Addr().Is4() != v4 || asked.IsValid() && !s.Prefix.Contains(asked) {
				continue
			}
			found = true
			if ip, err = a.take(n, s, asked, r.Name); err == nil {
				break
			}
		}
		switch {
		case err != nil:
			return nil, err
		case found:
			ips = append(ips, ip)
		case asked.IsValid():
			return nil, overlay.Errorf(overlay.Invalid, "%s %s is in no subnet of network %s; `heddle network inspect %s` lists them", flag, asked, n.def.Name, n.def.Name)
		}
	}
	return ips, nil
}

// ifName is the name asked for, or the first ethN, on the host heddleN, that is free in the
// namespace.
func (a *Agent) ifName(r overlay.AttachRequest, t target) (string, error) {
	taken := map[string]bool{}
	for _, name := range t.links {
		taken[name] = true
	}
	for _, e := range a.endpoints {
		if e.Namespace == t.ns && e.state != overlay.EndpointLost {
			taken[e.IfName] = true
		}
	}
	if r.IfName != "" {
		if taken[r.IfName] {
			return "", overlay.Errorf(overlay.Exists, "namespace %s has an interface %s already, which this attach did not make; choose another with --ifname", t.ns.Path, r.IfName)
		}
		return r.IfName, nil
	}
	base := "eth"
	if t.host {
		base = "heddle"
	}
	for i := 0; ; i++ {
		if name := fmt.Sprintf("%s%d", base, i); !taken[name] {
			return name, nil
		}
	}
}

// owners are those whose objects the endpoint needs.
func owners(e *endpoint) []datapath.Owner {
	o := []datapath.Owner{datapath.Owner(e.Network), datapath.Owner(e.ID)}
	if e.Make != "" {
		o = append(o, plan.NamespaceOwner(e.Make))
	}
	if len(e.Publish) > 0 {
		o = append(o, plan.PublishOwner)
	}
	return o
}

// realise makes the endpoint durable, real and known, all at the same time where it can.
func (a *Agent) realise(ctx context.Context, at attached) (silent []string, err error) {
	told := make(chan error, 1)
	go func() { // ends before realise does
		err := a.save(at.change)
		if err == nil && at.synced != nil {
			// Who is told may send at once. A workload that can't resolve the sender then asks again
			// a whole second later.
			err = a.complete(ctx, at)
		}
		if err == nil {
			silent, err = a.tell(ctx, at.e.Network, at.record, at.lease)
		}
		told <- err
	}()
	err = a.Datapath.Wait(ctx, at.gen, owners(at.e)...)
	if err = first(<-told, err); err != nil {
		return nil, err
	}
	a.Resolver.Follow()
	return silent, a.do(context.WithoutCancel(ctx), func(life context.Context) {
		at.e.state = overlay.EndpointReady
		at.e.end()
		a.watch(life, at.e)
		a.mind(life, at.e)
		if a.serves(at.e) {
			a.replan() // this node's own workloads reach it, too
			return
		}
		a.nameFrom(a.view())
	})
}

// tell publishes a record of this node's own and names who has not acknowledged it in time.
func (a *Agent) tell(ctx context.Context, id overlay.NetworkID, record, lease overlay.Signed) (silent []string, err error) {
	wait, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	return a.tellUntil(wait, id, record, lease)
}

// tellUntil is tell for as long as ctx lasts. The first record of a new life takes away what was said
// before, so that what stands goes with it.
func (a *Agent) tellUntil(ctx context.Context, id overlay.NetworkID, record, lease overlay.Signed) (silent []string, err error) {
	var renewed []OwnRecord
	_ = a.do(context.WithoutCancel(ctx), func(context.Context) { // whoever asked may have gone; it is told all the same
		if n := a.networks[id]; n != nil {
			renewed = n.renewed
		}
	})
	late, err := a.Peers.Publish(ctx, id, append(signed(Change{Records: renewed}), record), lease)
	if err != nil {
		a.unsaid(id, record)
	}
	for _, node := range late {
		silent = append(silent, a.nodeName(node))
	}
	return silent, err
}

// unsaid notes that a record is never told: others must not wait for its number.
func (a *Agent) unsaid(id overlay.NetworkID, record overlay.Signed) {
	a.Peers.Skip(id, number(record), number(record))
}

// complete waits until what the participants hold of a network stands in the kernel too.
func (a *Agent) complete(ctx context.Context, at attached) error {
	select {
	case <-at.synced:
	case <-ctx.Done():
		return overlay.Errorf(overlay.Unavailable, "gave up waiting for the other participants: %w", ctx.Err())
	}
	var gen uint64
	if err := a.do(ctx, func(context.Context) { gen = a.replan() }); err != nil {
		return err
	}
	return a.Datapath.Wait(ctx, gen, owners(at.e)...)
}

// withdraw takes back an attach that failed: nothing half-made stays.
func (a *Agent) withdraw(at attached) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	a.unsaid(at.e.Network, at.record)
	_ = a.do(ctx, func(life context.Context) {
		at.n.saved = 0 // the disk may lack it
		if at.found {
			a.lose(life, at.e)
		}
	})
	if at.found {
		return
	}
	if err := a.takeOff(ctx, at.e); err != nil {
		a.Log.Error("take back a failed attach", "endpoint", at.e.ID, "err", err)
	}
}

func (a *Agent) nodeName(id overlay.NodeID) string {
	if n, ok := a.Facts.Facts().Nodes[id]; ok {
		return n.Name
	}
	return id.Short()
}

func random[T [6]byte | [16]byte](a *Agent) (b T) {
	s := make([]byte, len(b))
	a.Random(s)
	for i := range s {
		b[i] = s[i]
	}
	return b
}
