package agent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/names"
	"github.com/heddle-net/heddle/overlay/plan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	self  = overlay.NodeID("aa000000000000000000000000000000")
	other = overlay.NodeID("bb000000000000000000000000000000")
	blue  = overlay.NetworkID("b1000000000000000000000000000000")
)

var (
	place   = overlay.Place{Cluster: "c1", Epoch: 1}
	ring    = ed25519.NewKeyFromSeed(make([]byte, 32))
	nodeKey = ed25519.NewKeyFromSeed([]byte(strings.Repeat("n", 32)))
)

// world is everything around an agent, in memory. Its methods are the interfaces' and may be
// called from any goroutine.
type world struct {
	mu        sync.Mutex
	facts     *overlay.Facts
	factsCh   chan struct{}
	peersCh   chan struct{}
	grants    int // how often the managers were asked
	size      int // addresses of each family per grant
	limit     int // addresses of the network
	lease     overlay.Lease
	released  []overlay.Release
	down      bool
	config    datapath.Config
	gen       uint64
	broken    map[datapath.Owner]error
	published []overlay.Signed
	told      chan overlay.Signed // the same, for who waits for one
	skipped   []overlay.Version
	floors    bool // the other node goes by them
	silent    []overlay.NodeID
	acks      time.Duration // until all have acknowledged
	saved     Saved
	saveErr   error
	slow      *slowDisk
	syncErr   error
	naming    time.Duration              // that SetParticipants takes
	named     map[overlay.NetworkID]bool // by SetParticipants
	early     bool                       // a network was asked for before
	ended     chan struct{}
	links     []string
	drawn     uint32 // of what is random
	obstacles []string
	bound     []datapath.Port // by programs of the host
	def       overlay.Network // of blue
	stated    overlay.Version
	inodes    map[string]uint64 // of namespaces; default 7
	routes    []netip.Prefix
	boot      string
	sick      map[string]string // what is wrong with workloads, by their namespaces
	probed    map[string]int    // how often they were probed
	following time.Duration     // that the resolver takes to follow
	table     *names.Table      // what the resolver answers from
	connected func(path string) (bool, error)
}

// gone is the inode of a namespace that is not there.
const gone = ^uint64(0)

func newWorld() *world {
	return &world{
		def: blueNet, factsCh: make(chan struct{}, 1), peersCh: make(chan struct{}, 1), size: 4, limit: 8, ended: make(chan struct{}), told: make(chan overlay.Signed, 64),
		broken: map[datapath.Owner]error{}, sick: map[string]string{}, probed: map[string]int{}, inodes: map[string]uint64{}, boot: "b1", saved: Saved{Counters: map[overlay.NetworkID]Counter{}, Barred: map[overlay.NetworkID][]overlay.Grant{}},
		facts: &overlay.Facts{V: 1, Place: place, Level: overlay.Level, Params: overlay.Params{DataPathPort: 4789}, Nodes: map[overlay.NodeID]overlay.Node{
			other: {ID: other, Name: "bee", Role: overlay.Manager},
		}},
	}
}

type factsOf struct{ *world }

func (w factsOf) Facts() *overlay.Facts    { w.mu.Lock(); defer w.mu.Unlock(); return w.facts }
func (w factsOf) Changed() <-chan struct{} { return w.factsCh }

var blueNet = overlay.Network{ID: blue, VNI: overlay.MinVNI, NetworkSpec: overlay.NetworkSpec{
	Name: "blue", Driver: overlay.DriverOverlay, IPv4: true, IPv6: true,
	Subnets: []overlay.Subnet{
		{Prefix: netip.MustParsePrefix("10.20.0.0/24"), Gateway: netip.MustParseAddr("10.20.0.1")},
		{Prefix: netip.MustParsePrefix("fd00:20::/64"), Gateway: netip.MustParseAddr("fd00:20::1")},
	},
}}

func (w *world) Grant(_ context.Context, ref string, want int, addrs []netip.Addr) (Grant, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down {
		return Grant{}, overlay.Errorf(overlay.Unavailable, "no manager answers")
	}
	if ref != "blue" && ref != string(blue) {
		return Grant{}, overlay.Errorf(overlay.NotFound, "there is no network %q", ref)
	}
	w.grants++
	n := min(w.grants*w.size, w.limit)
	if n == (w.grants-1)*w.size && want > 0 {
		return Grant{}, overlay.Errorf(overlay.Exhausted, "network blue is full")
	}
	l := overlay.Lease{V: 1, Place: place, Network: blue, Node: self, Key: nodeKey.Public().(ed25519.PublicKey), Index: uint64(w.grants)}
	add := func(first string, n int) {
		a := netip.MustParseAddr(first)
		last := a
		for range n - 1 {
			last = last.Next()
		}
		l.Grants = append(l.Grants, overlay.Grant{First: a, Last: last, Index: 1})
	}
	add("10.20.0.2", n)
	add("fd00:20::2", n)
	for _, a := range addrs {
		l.Grants = append(l.Grants, overlay.Grant{First: a, Last: a, Index: uint64(w.grants)})
	}
	return w.grant(l)
}

func (w *world) Enter(ctx context.Context, id overlay.NetworkID) (Grant, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down {
		return Grant{}, overlay.Errorf(overlay.Unavailable, "no manager answers")
	}
	w.grants++
	return w.grant(overlay.Lease{V: 1, Place: place, Network: id, Node: self, Key: nodeKey.Public().(ed25519.PublicKey), Index: uint64(w.grants)})
}

func (w *world) Hear(context.Context, overlay.NetworkID) {}

func (w *world) Refill(ctx context.Context, id overlay.NetworkID) (Grant, error) {
	return w.Grant(ctx, string(id), 0, nil)
}

// Release takes what a valid release gives back out of the lease.
func (w *world) Release(_ context.Context, s overlay.Signed) (Grant, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down {
		return Grant{}, overlay.Errorf(overlay.Unavailable, "no manager answers")
	}
	r, err := overlay.Trust{Place: place}.CheckRelease(s, self, nodeKey.Public().(ed25519.PublicKey))
	if err != nil {
		return Grant{}, err
	}
	w.released = append(w.released, r)
	l := w.lease
	l.Index++
	l.Grants, _ = overlay.Split(l.Grants, r.Grants)
	return w.grant(l)
}

// grant is the managers' answer with a lease. The caller holds mu.
func (w *world) grant(l overlay.Lease) (Grant, error) {
	w.lease = l
	s, err := overlay.Sign(overlay.DomainLease, ring, l)
	return Grant{Network: w.def, Leases: map[overlay.NodeID]overlay.Signed{self: s}, Revision: l.Index}, err
}

func (w *world) Publish(ctx context.Context, _ overlay.NetworkID, r []overlay.Signed, _ overlay.Signed) ([]overlay.NodeID, error) {
	w.mu.Lock()
	w.published = append(w.published, r...)
	for _, s := range r {
		w.told <- s
	}
	silent, acks := w.silent, w.acks
	w.mu.Unlock()
	if acks > 0 {
		select {
		case <-time.After(acks):
		case <-ctx.Done():
			silent = []overlay.NodeID{other}
		}
	}
	return silent, nil
}

func (w *world) Skip(_ overlay.NetworkID, from, to overlay.Version) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for v := from; v.Compare(to) <= 0; v.Number++ {
		w.skipped = append(w.skipped, v)
	}
}

func (w *world) Sync(_ context.Context, id overlay.NetworkID, _ overlay.Signed) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.early = w.early || !w.named[id]
	return w.syncErr
}

func (w *world) SetParticipants(networks map[overlay.NetworkID][]overlay.NodeID, _ []overlay.NodeID) {
	time.Sleep(w.naming)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.named = map[overlay.NetworkID]bool{}
	for id := range networks {
		w.named[id] = true
	}
}

func (w *world) Suspended() map[overlay.NodeID]time.Time { return nil }

func (w *world) Claims(overlay.NetworkID) []*overlay.Claim { return nil }
func (w *world) Stated(overlay.NetworkID) overlay.Version {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stated
}

func (w *world) Nodes() map[overlay.NodeID]overlay.NodeRecord {
	w.mu.Lock()
	defer w.mu.Unlock()
	bee := overlay.NodeRecord{DataPath4: netip.MustParseAddr("192.0.2.2"), MTU: 1500}
	if w.floors {
		bee.Hello.Reads = overlay.Reads()
	}
	return map[overlay.NodeID]overlay.NodeRecord{self: {DataPath4: netip.MustParseAddr("192.0.2.1"), MTU: 1500}, other: bee}
}
func (w *world) Revision() uint64         { return 0 }
func (w *world) Applied(uint64)           {}
func (w *world) Changed() <-chan struct{} { return w.peersCh }

func (w *world) Set(c datapath.Config) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gen++
	w.config = c
	return w.gen
}

func (w *world) Wait(_ context.Context, _ uint64, owners ...datapath.Owner) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range owners {
		for _, l := range w.config.Links {
			if err := w.broken[datapath.Owner(l.Peer.Name)]; err != nil && l.Owner == o {
				return err
			}
		}
	}
	return nil
}

func (w *world) Inode(path string) (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch inode := w.inodes[path]; {
	case path == "/missing" || inode == gone:
		return 0, overlay.Errorf(overlay.NotFound, "namespace %s does not exist", path)
	case inode != 0:
		return inode, nil
	}
	return 7, nil
}

// tunnelsOf is the world as a node's WireGuard devices.
type tunnelsOf struct{ w *world }

func (t tunnelsOf) Tunnels() plan.Tunnels    { return plan.Tunnels{} }
func (t tunnelsOf) Changed() <-chan struct{} { return nil }

func (w *world) Routes() ([]netip.Prefix, error)         { return w.routes, nil }
func (w *world) LinkNames(datapath.NS) ([]string, error) { return w.links, nil }
func (w *world) Err(datapath.Owner) error                { return nil }
func (w *world) Bound() ([]datapath.Port, error)         { return w.bound, nil }
func (w *world) Program(datapath.Port) string            { return "nginx (PID 7)" }
func (w *world) Obstacles(bool, ...uint16) []string      { return w.obstacles }

func (w *world) Load() (Saved, error) { w.mu.Lock(); defer w.mu.Unlock(); return w.saved, nil }
func (w *world) Save(c Change) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at := w.slow; at != nil && at.hold(c) {
		w.mu.Unlock()
		at.held <- struct{}{}
		<-at.release
		w.mu.Lock()
		if at.err != nil {
			return at.err
		}
	}
	if w.saveErr != nil {
		return w.saveErr
	}
	w.saved.Endpoints = slices.DeleteFunc(w.saved.Endpoints, func(r Row) bool { return slices.Contains(c.Delete, r.ID) })
	if c.Put != nil {
		w.saved.Endpoints = slices.DeleteFunc(w.saved.Endpoints, func(r Row) bool { return r.ID == c.Put.ID })
		w.saved.Endpoints = append(w.saved.Endpoints, *c.Put)
	}
	for _, r := range c.Records {
		w.saved.Records = append(w.saved.Records, r)
		w.saved.Counters[c.Network] = c.Counter
	}
	if c.Floor != (overlay.Version{}) {
		w.saved.Records = slices.DeleteFunc(w.saved.Records, func(r OwnRecord) bool { return r.Version().Compare(c.Floor) <= 0 })
	}
	if c.Barred != nil {
		w.saved.Barred[c.Network] = *c.Barred
	}
	if c.Grant != nil {
		w.saved.Networks = append(w.saved.Networks, *c.Grant)
	}
	return nil
}

func (w *world) Answer(t *names.Table) { w.mu.Lock(); defer w.mu.Unlock(); w.table = t }
func (w *world) Follow()               { time.Sleep(w.following) }

func (w *world) Started(pid int) (uint64, error) { return uint64(pid) * 10, nil }
func (w *world) Ended(ctx context.Context, _ int, _ uint64) error {
	select {
	case <-w.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *world) Probe(_ context.Context, ns datapath.NS, _ overlay.Health, _ netip.AddrPort) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.probed[ns.Path]++
	if why := w.sick[ns.Path]; why != "" {
		return errors.New(why)
	}
	return nil
}

func (w *world) Connected(ns datapath.NS, _ []netip.Addr) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.connected == nil {
		return false, nil
	}
	return w.connected(ns.Path)
}

// start runs an agent in w until the test ends or stop is called.
func start(t *testing.T, w *world) (a *Agent, stop func()) {
	t.Helper()
	a, err := New(Config{
		Self: self, Name: "ay", Key: nodeKey, Boot: w.boot, Facts: factsOf{w}, Control: w, Peers: w, Tunnels: tunnelsOf{w}, Datapath: w, Processes: w, Workloads: w, Resolver: w, Store: w,
		Random: func(b []byte) {
			w.drawn++
			b[0], b[1], b[len(b)-1] = byte(w.drawn), byte(w.drawn>>8), byte(w.drawn>>16)
		}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { defer close(ran); _ = a.Run(ctx) }()
	stop = func() { cancel(); <-ran }
	t.Cleanup(stop)
	return a, stop
}

func attach(t *testing.T, a *Agent, name string) overlay.Endpoint {
	t.Helper()
	r, err := a.Attach(t.Context(), overlay.AttachRequest{Name: name, Network: "blue"})
	if err != nil {
		t.Fatalf("attach %s: %v", name, err)
	}
	return r.Endpoint
}

func detach(ctx context.Context, a *Agent, name, network string) error {
	_, err := a.Detach(ctx, overlay.DetachRequest{Name: name, Network: network})
	return err
}

func TestAttachIsLocalAfterTheFirst(t *testing.T) {
	w := newWorld()
	w.size = 8
	a, _ := start(t, w)
	first := attach(t, a, "web")
	if first.IPv4.String() != "10.20.0.2/24" || first.IPv6.String() != "fd00:20::2/64" || first.State != overlay.EndpointReady || first.Interface != "eth0" {
		t.Fatalf("first endpoint: %+v", first)
	}
	w.mu.Lock()
	w.down = true
	w.mu.Unlock()
	if e := attach(t, a, "db"); e.IPv4.String() != "10.20.0.3/24" {
		t.Errorf("second endpoint has %s", e.IPv4)
	}
	if again := attach(t, a, "web"); again.ID != first.ID {
		t.Errorf("a repeated attach made another endpoint")
	}
	if len(w.saved.Endpoints) != 2 || len(w.published) != 3 || string(w.published[2].Body) != string(w.published[0].Body) {
		t.Errorf("%d endpoints saved, %d records published; want 2, and 2 of which one again", len(w.saved.Endpoints), len(w.published))
	}
	var r overlay.Record
	if err := w.published[1].Decode(overlay.DomainRecord, &r); err != nil || r.Number != 2 || r.Workload != "db" || r.Owner != self {
		t.Errorf("second record: %+v, %v", r, err)
	}
}

// The first attach of a network on a node says what stands in its way; the later ones don't
// repeat it.
func TestObstaclesAreTold(t *testing.T) {
	w := newWorld()
	w.obstacles = []string{"the chain `inet other forward` drops what workloads send out"}
	a, _ := start(t, w)
	for i, name := range []string{"a", "b"} {
		r, err := a.Attach(t.Context(), overlay.AttachRequest{Name: name, Network: "blue"})
		if err != nil || (len(r.Warnings) == 1) != (i == 0) {
			t.Errorf("%s: warnings %q, %v", name, r.Warnings, err)
		}
	}
}

func TestLeaseIsRefilledThenFull(t *testing.T) {
	w := newWorld() // 4 addresses per grant, 8 in all
	a, _ := start(t, w)
	seen := map[string]bool{}
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		seen[attach(t, a, name).IPv4.String()] = true
	}
	if len(seen) != 8 {
		t.Fatalf("8 workloads have %d addresses", len(seen))
	}
	_, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "i", Network: "blue"})
	if overlay.KindOf(err) != overlay.Exhausted {
		t.Fatalf("ninth attach: %v", err)
	}
	if err := detach(t.Context(), a, "c", ""); err != nil {
		t.Fatal(err)
	}
	if e := attach(t, a, "i"); e.IPv4.String() != "10.20.0.4/24" {
		t.Errorf("after a detach, got %s", e.IPv4)
	}
}

func TestAddressesAreReusedLast(t *testing.T) {
	w := newWorld()
	w.size = 8
	a, _ := start(t, w)
	gone := attach(t, a, "web").IPv4
	if err := detach(t.Context(), a, "web", "blue"); err != nil {
		t.Fatal(err)
	}
	if e := attach(t, a, "db"); e.IPv4 == gone {
		t.Errorf("the address just given back was taken again while others were free")
	}
}

func TestRefused(t *testing.T) {
	cases := []struct {
		name string
		req  overlay.AttachRequest
		prep func(*world)
		kind overlay.Kind
		says string
	}{
		{"unknown network", overlay.AttachRequest{Name: "x", Network: "red"}, nil, overlay.NotFound, "red"},
		{"bad name", overlay.AttachRequest{Name: "a b", Network: "blue"}, nil, overlay.Invalid, "a b"},
		{"no manager", overlay.AttachRequest{Name: "x", Network: "blue"}, func(w *world) { w.down = true }, overlay.Unavailable, "no manager"},
		{"no namespace", overlay.AttachRequest{Name: "x", Network: "blue", Netns: "/missing"}, nil, overlay.NotFound, "/missing"},
		{"address of no subnet", overlay.AttachRequest{Name: "x", Network: "blue", IP: netip.MustParseAddr("10.99.0.1")}, nil, overlay.Invalid, "10.99.0.1"},
		{"taken interface name", overlay.AttachRequest{Name: "x", Network: "blue", Netns: "/ns", IfName: "lan0"}, func(w *world) { w.links = []string{"lo", "lan0"} }, overlay.Exists, "lan0"},
		{"full disk", overlay.AttachRequest{Name: "x", Network: "blue"}, func(w *world) { w.saveErr = errors.New("no space left on device") }, overlay.Internal, "no space"},
		{"a port that a program has", overlay.AttachRequest{Name: "x", Network: "blue", Publish: []overlay.Publish{{Port: 80, Target: 80, Proto: "tcp"}}}, func(w *world) {
			w.bound = []datapath.Port{{Proto: "tcp", Port: 80, At: netip.MustParseAddr("192.0.2.1")}}
		}, overlay.InUse, "taken by the program nginx (PID 7)"},
		{"a port of a service", overlay.AttachRequest{Name: "x", Network: "blue", Publish: []overlay.Publish{{Port: 80, Target: 80, Proto: "tcp"}}}, func(w *world) {
			// of another network: this node would take part in it because of the port
			w.facts.Services = map[overlay.ServiceID]overlay.Service{"s": {ID: "s", Network: "red", ServiceSpec: overlay.ServiceSpec{
				Name: "web", Publish: []overlay.Publish{{Port: 80, Target: 8080, Proto: "tcp", Mode: overlay.PublishIngress}},
			}}}
		}, overlay.InUse, "taken by the service web"},
		{"kernel refuses", overlay.AttachRequest{Name: "x", Network: "blue"}, func(w *world) { w.broken["eth0"] = overlay.Errorf(overlay.Exists, "foreign eth0") }, overlay.Exists, "foreign"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld()
			if tc.prep != nil {
				tc.prep(w)
			}
			a, _ := start(t, w)
			_, err := a.Attach(t.Context(), tc.req)
			if overlay.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("got %s %v, want %s with %q", overlay.KindOf(err), err, tc.kind, tc.says)
			}
			rows, err := a.Endpoints(t.Context())
			if err != nil || len(rows) != 0 || len(w.config.Links) != 0 || len(w.saved.Endpoints) != 0 {
				t.Errorf("something half-made stays: %v %v %v", rows, w.config.Links, w.saved.Endpoints)
			}
		})
	}
}

// What can't be taken off the disk stays, whole: the next start would bring it back.
func TestDetachOnAFullDisk(t *testing.T) {
	w := newWorld()
	a, stop := start(t, w)
	e := attach(t, a, "web")
	<-w.told
	w.set(func() { w.saveErr = errors.New("no space left on device") })
	if err := detach(t.Context(), a, "web", ""); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Fatalf("detached: %v", err)
	}
	if rows, err := a.Endpoints(t.Context()); err != nil || len(rows) != 1 || rows[0].State != overlay.EndpointReady || len(w.config.Links) == 0 {
		t.Errorf("%+v, %v", rows, err)
	}
	select {
	case <-w.told:
		t.Error("the others were told that it is gone")
	default:
	}
	if want := []overlay.Version{{Incarnation: 1, Number: 2}}; !slices.Equal(w.skipped, want) {
		t.Errorf("the others wait for what was never said: skipped are %v, want %v", w.skipped, want)
	}
	w.set(func() { w.saveErr = nil })
	if err := detach(t.Context(), a, "web", ""); err != nil {
		t.Fatal(err)
	}
	<-w.told
	stop()
	again, _ := start(t, w)
	if rows, err := again.Endpoints(t.Context()); err != nil || len(rows) > 0 {
		t.Errorf("%s is back: %+v, %v", e.Name, rows, err)
	}
}

func TestGivenNamespaceGetsTheNextName(t *testing.T) {
	w := newWorld()
	w.links = []string{"lo", "eth0"}
	a, _ := start(t, w)
	r, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "web", Network: "blue", Netns: "/ns"})
	if err != nil || r.Endpoint.Interface != "eth1" {
		t.Errorf("interface %q, %v; want eth1", r.Endpoint.Interface, err)
	}
	_, err = a.Attach(t.Context(), overlay.AttachRequest{Name: "web", Network: "blue", Netns: "/elsewhere"})
	if overlay.KindOf(err) != overlay.Exists {
		t.Errorf("the same workload in another namespace: %v", err)
	}
}

func TestAskedAddressOutsideTheLease(t *testing.T) {
	w := newWorld()
	a, _ := start(t, w)
	r, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "web", Network: "blue", IP: netip.MustParseAddr("10.20.0.77")})
	if err != nil || r.Endpoint.IPv4.String() != "10.20.0.77/24" {
		t.Fatalf("%v %v", r.Endpoint.IPv4, err)
	}
	_, err = a.Attach(t.Context(), overlay.AttachRequest{Name: "db", Network: "blue", IP: netip.MustParseAddr("10.20.0.77")})
	if overlay.KindOf(err) != overlay.Exists || !strings.Contains(err.Error(), "web") {
		t.Errorf("an address in use: %v", err)
	}
}

func TestSilentParticipantsAreNamed(t *testing.T) {
	w := newWorld()
	w.silent = []overlay.NodeID{other}
	a, _ := start(t, w)
	r, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "web", Network: "blue"})
	if err != nil || !slices.Equal(r.Silent, []string{"bee"}) {
		t.Errorf("silent %v, %v", r.Silent, err)
	}
}

// A daemon that starts again wants exactly what it wanted before, and numbers go on.
func TestRestart(t *testing.T) {
	w := newWorld()
	w.size = 8
	a, stop := start(t, w)
	before := attach(t, a, "web")
	attach(t, a, "db")
	if err := detach(t.Context(), a, "db", ""); err != nil {
		t.Fatal(err)
	}
	stop()
	w.published, w.down = nil, true // and the facts on the disk are from before the attach
	a, _ = start(t, w)
	rows, err := a.Endpoints(t.Context())
	if err != nil || len(rows) != 1 || rows[0].ID != before.ID || rows[0].IPv4 != before.IPv4 {
		t.Fatalf("after a restart: %+v %v", rows, err)
	}
	if len(w.published) != 2 {
		t.Errorf("%d records stated again, want the endpoint and the tombstone", len(w.published))
	}
	if e := attach(t, a, "new"); e.IPv4.String() != "10.20.0.4/24" {
		t.Errorf("the new endpoint has %s, want one that was not given back just before", e.IPv4)
	}
	var r overlay.Record
	if err := w.published[2].Decode(overlay.DomainRecord, &r); err != nil || r.Number != 4 {
		t.Errorf("the next change has number %d (%v), want 4", r.Number, err)
	}
}

// Who takes part is told before they are asked for what they hold: asked of nobody, a network would
// seem to be empty, and what leads to the others' endpoints would go.
func TestParticipantsAreNamedBeforeTheyAreAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a, stop := start(t, w)
		attach(t, a, "web")
		stop()
		w.named, w.early, w.naming = nil, false, time.Millisecond
		_, stop = start(t, w)
		defer stop()
		time.Sleep(time.Second)
		w.set(func() {
			if w.early || !w.named[blue] {
				t.Error("the participants were asked before anybody knew who they are")
			}
		})
	})
}

func TestRemovedNetworkAndNode(t *testing.T) {
	w := newWorld()
	a, _ := start(t, w)
	attach(t, a, "web")
	tell := func(f overlay.Facts) {
		w.mu.Lock()
		w.facts = &f
		w.mu.Unlock()
		w.factsCh <- struct{}{}
	}
	tell(overlay.Facts{V: 1, Revision: 99, Place: place, Nodes: map[overlay.NodeID]overlay.Node{}})
	for range 2 { // the second call comes after the loop has seen the facts
		if _, err := a.Endpoints(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if rows, _ := a.Endpoints(t.Context()); len(rows) != 0 {
		t.Errorf("endpoints of a removed network: %v", rows)
	}
}

func TestSessionEnds(t *testing.T) {
	w := newWorld()
	a, _ := start(t, w)
	if _, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "job", Network: "blue", Session: 42}); err != nil {
		t.Fatal(err)
	}
	close(w.ended)
	for s := range w.told {
		var r overlay.Record
		if err := s.Decode(overlay.DomainRecord, &r); err != nil {
			t.Fatal(err)
		}
		if r.Deleted {
			break
		}
	}
	if rows, err := a.Endpoints(t.Context()); err != nil || len(rows) != 0 {
		t.Errorf("endpoints after the process ended: %v %v", rows, err)
	}
}
