package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/cluster/api"
	"github.com/heddle-net/heddle/cluster/control"
	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/cluster/state"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var hello = overlay.Hello{Version: "test", Reads: overlay.Reads()}

// memory is a Store.
type memory struct {
	mu sync.Mutex
	f  *overlay.Facts
}

func (m *memory) LoadFacts() (*overlay.Facts, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.f, nil
}

func (m *memory) SaveFacts(f *overlay.Facts) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.f = f
	return nil
}

// view is an Observer that sees what the test says.
type view struct {
	mu     sync.Mutex
	down   map[overlay.NodeID]bool
	claims map[overlay.NetworkID][]*overlay.Claim
	routes map[overlay.NodeID][]netip.Prefix
	old    map[overlay.NodeID]overlay.Hello       // of nodes that run another build
	unread map[overlay.NetworkID][]*overlay.Claim // claims only after a Refresh of their owner
}

// Suspended are the nodes that are down, since the beginning of 2001.
func (v *view) Suspended() map[overlay.NodeID]time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := map[overlay.NodeID]time.Time{}
	for id, down := range v.down {
		if down {
			out[id] = time.Unix(978307200, 0)
		}
	}
	return out
}

func (v *view) Refresh(_ context.Context, nodes []overlay.NodeID) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, claims := range v.unread {
		for _, c := range claims {
			if v.down[c.Record.Owner] {
				return errors.New("no answer")
			}
			if slices.Contains(nodes, c.Record.Owner) {
				v.claims[id] = append(v.claims[id], c)
			}
		}
	}
	return nil
}

func (v *view) Record(n overlay.NodeID) (overlay.NodeRecord, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	r := overlay.NodeRecord{Routes: v.routes[n], Hello: hello, WireGuard: &overlay.WireGuard{Tunnels: [2]overlay.Tunnel{{Port: 5379}, {Port: 5381}}}}
	if old, ok := v.old[n]; ok {
		r.Hello = old
	}
	return r, true
}

// says makes a node one that says hello so.
func (v *view) says(h *host, hello overlay.Hello) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.old[h.id.Node] = hello
}

func (v *view) Peer(n overlay.NodeID) (string, string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.down[n] {
		return "down", "test"
	}
	return "ready", "test"
}

func (v *view) Claims(n overlay.NetworkID) []*overlay.Claim {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.claims[n]
}

// host is a node as far as managers are concerned: what the daemon wires, without the rest.
type host struct {
	t       *testing.T
	name    string
	dir     string
	id      pki.Identity
	cred    *pki.Credentials
	port    *control.Port
	client  *api.Client
	watcher *api.Watcher
	view    *view
	manager *Manager
	holder  *keeper
	clock   atomic.Int64 // nanoseconds that it goes fast

	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
	quit    func() // ends the manager, or what answers in its place
}

func logger() *slog.Logger {
	if os.Getenv("HEDDLE_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

func newHost(t *testing.T, name string) *host {
	id, err := pki.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return &host{t: t, name: name, dir: t.TempDir(), id: id, holder: &keeper{key: id.Key}, view: &view{old: map[overlay.NodeID]overlay.Hello{}, down: map[overlay.NodeID]bool{}, claims: map[overlay.NetworkID][]*overlay.Claim{}}}
}

func (h *host) facts() *overlay.Facts {
	if h.watcher == nil {
		return nil
	}
	return h.watcher.Facts()
}

// enter opens the control port of a member and starts what every node runs.
func (h *host) enter(id pki.Identity, at netip.AddrPort, managers []api.Manager) {
	h.id = id
	var err error
	if h.cred, err = pki.NewCredentials(id, pki.RevokedBy(h.facts), time.Now); err != nil {
		h.t.Fatal(err)
	}
	if h.port, err = control.Listen(at, h.cred, logger()); err != nil {
		h.t.Fatal(err)
	}
	h.client = api.NewClient(h.cred.Identity().Node, h.cred, managers)
	h.ctx, h.stop = context.WithCancel(context.Background())
	h.running.Go(func() { _ = h.port.Run(h.ctx) })
	h.t.Cleanup(h.end)
}

func (h *host) end() {
	if h.quit != nil {
		h.quit()
		h.quit = nil
	}
	h.stop()
	h.running.Wait()
	h.client.Close()
}

func (h *host) watch(first *overlay.Facts) {
	var err error
	h.watcher, err = api.NewWatcher(api.WatcherConfig{Self: h.id.Node, Client: h.client, Store: &memory{}, First: first, Log: logger()})
	if err != nil {
		h.t.Fatal(err)
	}
	h.running.Go(func() { _ = h.watcher.Run(h.ctx) })
}

// role starts what the node's role asks for, in place of what ran before.
func (h *host) role(run func(context.Context)) {
	if h.quit != nil {
		h.quit()
	}
	ctx, cancel := context.WithCancel(h.ctx)
	done := make(chan struct{})
	go func() { defer close(done); run(ctx) }()
	h.quit = func() { cancel(); <-done }
}

func (h *host) openManager() {
	var err error
	h.manager, err = Open(Config{
		Self: h.id.Node, Dir: h.dir, Credentials: h.cred, Port: h.port, Client: h.client,
		Observer: h.view, Holder: h.holder, Hello: hello, Now: func() time.Time { return time.Now().Add(time.Duration(h.clock.Load())) }, Log: logger(),
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) runManager() {
	m := h.manager
	h.role(func(ctx context.Context) {
		if err := m.Run(ctx); err != nil {
			h.t.Errorf("%s: Run: %v", h.name, err)
		}
	})
}

func (h *host) runWorker() {
	h.role(func(ctx context.Context) {
		_ = ServeWorker(ctx, h.port.Listener(pki.ALPNAPI), h.cred, hello, h.holder, logger())
	})
}

var params = overlay.Params{
	DataPathPort: 4789, PoolBits4: 24, PoolBits6: 64,
	Pools: []netip.Prefix{netip.MustParsePrefix("10.64.0.0/11"), netip.MustParsePrefix("fd12:3456:789a::/48")},
}

var anyPort = netip.MustParseAddrPort("127.0.0.1:0")

// found makes a cluster of one manager.
func found(t *testing.T) (*host, overlay.TokenReply) {
	return foundAt(t, state.Level, hello)
}

// foundAt is found at a feature level, by a build that says hello so.
func foundAt(t *testing.T, level int, says overlay.Hello) (*host, overlay.TokenReply) {
	h := newHost(t, "n1")
	h.view.says(h, says)
	// The port is not known before it listens, and the founding names it: draw one first.
	probe, err := control.Listen(anyPort, mustCredentials(t), logger())
	if err != nil {
		t.Fatal(err)
	}
	at := probe.Addr()
	probe.Close()
	f, err := Found(h.id, Founding{Name: h.name, Control: at, Gossip: netip.AddrPortFrom(at.Addr(), 5378), Params: params}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f.init.Level = level
	h.enter(f.Identity, at, []api.Manager{{ID: h.id.Node, Control: at}})
	h.openManager()
	if err := h.manager.Bootstrap(f); err != nil {
		t.Fatal(err)
	}
	h.runManager()
	tok, err := h.manager.Init(ctx(t), f)
	if err != nil {
		t.Fatal(err)
	}
	h.watch(h.manager.FactsFor(h.id.Node))
	h.watcher.SetLocal(h.manager)
	return h, tok
}

func mustCredentials(t *testing.T) *pki.Credentials {
	id, err := pki.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Found(id, Founding{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := pki.NewCredentials(f.Identity, func(pki.Subject) bool { return false }, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return c
}

func token(t *testing.T, s string) pki.Token {
	tok, err := pki.ParseToken(s)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// join brings another host in through a manager.
func join(t *testing.T, via *host, name, tok string) *host {
	t.Helper()
	h := newHost(t, name)
	probe, err := control.Listen(anyPort, mustCredentials(t), logger())
	if err != nil {
		t.Fatal(err)
	}
	at := probe.Addr()
	probe.Close()
	r := h.request(at)
	reply, err := api.Join(ctx(t), via.port.Addr().String(), token(t, tok), r)
	if err != nil {
		t.Fatal(err)
	}
	id, err := h.id.Joined(reply.Place, reply.Cert, reply.CA)
	if err != nil {
		t.Fatal(err)
	}
	h.enter(id, at, api.Managers(&reply.Facts))
	h.watch(&reply.Facts)
	if reply.Node.Role == overlay.Manager {
		h.openManager()
		h.runManager()
		h.watcher.SetLocal(h.manager)
	} else {
		h.runWorker()
	}
	return h
}

func (h *host) request(at netip.AddrPort) api.JoinRequest {
	return api.JoinRequest{Node: h.id.Node, Key: h.id.Public(), Name: h.name, Control: at, Gossip: netip.AddrPortFrom(at.Addr(), 5378), Hello: hello}
}

// do sends a request as the host's daemon does for its CLI.
func (h *host) do(method, path string, in, out any) error {
	var body []byte
	if in != nil {
		body, _ = json.Marshal(in)
	}
	resp, err := h.client.Do(ctx(h.t), method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return wire.Decode(resp, out)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s in time", what)
		}
	}
}

// three makes a cluster of three managers.
func three(t *testing.T) []*host {
	t.Helper()
	a, _ := found(t)
	var tok overlay.TokenReply
	uses := 0
	if err := a.do("POST", "/v1/tokens", overlay.TokenRequest{Role: overlay.Manager, Uses: &uses}, &tok); err != nil {
		t.Fatal(err)
	}
	hosts := []*host{a, join(t, a, "n2", tok.Token), join(t, a, "n3", tok.Token)}
	eventually(t, "three voters", func() bool { return voters(a) == 3 })
	return hosts
}

func voters(h *host) (n int) {
	servers, _ := h.manager.raft.Servers()
	for _, s := range servers {
		if s.Voter {
			n++
		}
	}
	return n
}

func leader(t *testing.T, hosts []*host) *host {
	t.Helper()
	var l *host
	eventually(t, "leader", func() bool {
		i := slices.IndexFunc(hosts, func(h *host) bool { return h.manager != nil && h.manager.raft.Leads() })
		if i >= 0 {
			l = hosts[i]
		}
		return i >= 0
	})
	return l
}

func spec(name string) overlay.NetworkSpec {
	return overlay.NetworkSpec{Name: name, Driver: overlay.DriverOverlay, IPv4: true, IPv6: true}
}

func TestInitJoinGrant(t *testing.T) {
	begin := time.Now()
	a, tok := found(t)
	if d := time.Since(begin); d > time.Second {
		t.Errorf("init took %v", d)
	} else {
		t.Logf("init took %v", d)
	}
	if want := "heddle join " + a.port.Addr().String() + " --token HDL1-"; !strings.HasPrefix(tok.Join, want) {
		t.Errorf("join line %q", tok.Join)
	}
	b := join(t, a, "n2", tok.Token)
	var net overlay.NetworkRow
	if err := b.do("POST", "/v1/networks", spec("blue"), &net); err != nil {
		t.Fatal(err)
	}
	g, err := b.client.Grant(ctx(t), api.GrantRequest{Network: "blue"})
	if err != nil {
		t.Fatal(err)
	}
	trust := b.facts().Trust()
	l, err := trust.CheckLease(g.Leases[b.id.Node])
	if err != nil || l.Node != b.id.Node || len(l.Grants) == 0 {
		t.Fatalf("%+v %v", l, err)
	}
	eventually(t, "lease in the facts", func() bool { return b.facts().Revision >= g.Revision && len(b.facts().Leases[net.ID]) == 1 })
	eventually(t, "lease in the manager's facts", func() bool { return len(a.facts().Leases[net.ID]) == 1 })
	if id, _ := a.watcher.Source(); id != a.id.Node {
		t.Errorf("the manager follows %q", id)
	}
	row := overlay.NetworkRow{}
	if err := b.do("GET", "/v1/networks/blue", nil, &row); err != nil || len(row.Participants) != 1 || row.Participants[0].Leased == 0 || row.Participants[0].Name != "n2" {
		t.Errorf("%+v %v", row, err)
	}

	// A network with endpoints stays, though the manager has not heard of them yet.
	a.view.mu.Lock()
	a.view.unread = map[overlay.NetworkID][]*overlay.Claim{net.ID: {{Record: overlay.Record{Owner: b.id.Node, Workload: "web", IPs: []netip.Addr{l.Grants[0].First}}}}}
	a.view.down[b.id.Node] = true
	a.view.mu.Unlock()
	if err := b.do("DELETE", "/v1/networks/blue", nil, nil); overlay.KindOf(err) != overlay.InUse || !strings.Contains(err.Error(), "no answer") || !strings.Contains(err.Error(), "start it") {
		t.Errorf("%v", err)
	}
	a.view.mu.Lock()
	a.view.down[b.id.Node] = false
	a.view.mu.Unlock()
	if err := b.do("DELETE", "/v1/networks/blue", nil, nil); overlay.KindOf(err) != overlay.InUse || !strings.Contains(err.Error(), "n2/web") {
		t.Errorf("%v", err)
	}
	var ends []overlay.Endpoint
	if err := b.do("GET", "/v1/endpoints", nil, &ends); err != nil || len(ends) != 1 || ends[0].NodeName != "n2" {
		t.Errorf("%+v %v", ends, err)
	}
	a.view.mu.Lock()
	clear(a.view.claims)
	a.view.unread = nil
	a.view.mu.Unlock()
	if err := b.do("DELETE", "/v1/networks/blue", nil, nil); err != nil {
		t.Error(err)
	}
	eventually(t, "end of the network", func() bool { return len(b.facts().Networks) == 0 })
	if err := b.do("GET", "/v1/networks/blue", nil, nil); overlay.KindOf(err) != overlay.NotFound {
		t.Errorf("%v", err)
	}
}

func TestJoinRefused(t *testing.T) {
	a, tok := found(t)
	other, foreign := found(t)
	_ = other
	one, ttl := 1, time.Second
	var single, short overlay.TokenReply
	if err := a.do("POST", "/v1/tokens", overlay.TokenRequest{Role: overlay.Worker, Uses: &one}, &single); err != nil {
		t.Fatal(err)
	}
	if err := a.do("POST", "/v1/tokens", overlay.TokenRequest{Role: overlay.Worker, TTL: &ttl}, &short); err != nil {
		t.Fatal(err)
	}
	w := join(t, a, "n2", single.Token)
	wrong := token(t, tok.Token)
	wrong.Secret[0]++
	closed := newHost(t, "x")
	at := netip.MustParseAddrPort("127.0.0.9:4000")
	for _, tc := range []struct {
		name, at, token, node string
		kind                  overlay.Kind
		want                  string
	}{
		{"wrong secret", a.port.Addr().String(), wrong.Text(), "n3", overlay.Denied, "token"},
		{"used up", a.port.Addr().String(), single.Token, "n3", overlay.Denied, "token"},
		{"token of another cluster", a.port.Addr().String(), foreign.Token, "n3", overlay.Denied, "another cluster"},
		{"name taken", a.port.Addr().String(), tok.Token, "n1", overlay.Exists, "n1"},
		{"nobody there", "127.0.0.1:1", tok.Token, "n3", overlay.Unavailable, "can't be reached"},
		{"a worker", w.port.Addr().String(), tok.Token, "n3", overlay.Denied, "no manager"},
		{"no port", "127.0.0.1", tok.Token, "n3", overlay.Invalid, "malformed"},
		{"expired", a.port.Addr().String(), short.Token, "n3", overlay.Denied, "expired"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.name == "expired" {
				a.clock.Store(int64(time.Minute))
			}
			closed.name = tc.node
			_, err := api.Join(ctx(t), tc.at, token(t, tc.token), closed.request(at))
			if overlay.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: %v", overlay.KindOf(err), err)
			}
			t.Log(err)
		})
	}
	// Idempotent by ID and key; the ID with another key is refused.
	r := w.request(netip.MustParseAddrPort("127.0.0.1:4001"))
	again, err := api.Join(ctx(t), a.port.Addr().String(), token(t, single.Token), r)
	if err != nil || again.Node.Number != a.facts().Nodes[w.id.Node].Number {
		t.Errorf("%+v %v", again.Node, err)
	}
	r.Key = closed.id.Public()
	if _, err := api.Join(ctx(t), a.port.Addr().String(), token(t, tok.Token), r); err == nil {
		t.Error("an ID was given to another key")
	}
}

func TestFollowersForward(t *testing.T) {
	hosts := three(t)
	l := leader(t, hosts)
	for i, h := range hosts {
		if h == l {
			continue
		}
		h.client.SetManagers([]api.Manager{{ID: h.id.Node, Control: h.port.Addr()}}) // itself alone
		name := fmt.Sprintf("net%d", i)
		if err := h.do("POST", "/v1/networks", spec(name), nil); err != nil {
			t.Fatal(err)
		}
		var rows []overlay.NetworkRow
		if err := h.do("GET", "/v1/networks", nil, &rows); err != nil || !slices.ContainsFunc(rows, func(r overlay.NetworkRow) bool { return r.Name == name }) {
			t.Errorf("a write is not read back: %v %v", rows, err)
		}
		var tok overlay.TokenReply
		if err := h.do("POST", "/v1/tokens", overlay.TokenRequest{Role: overlay.Worker}, &tok); err != nil {
			t.Fatal(err)
		}
		if w := join(t, h, fmt.Sprintf("w%d", i), tok.Token); w.facts().Nodes[w.id.Node].Role != overlay.Worker {
			t.Errorf("who joins through a follower is %+v", w.facts().Nodes[w.id.Node])
		}
	}
	var nodes []overlay.NodeRow
	if err := l.do("GET", "/v1/nodes", nil, &nodes); err != nil || len(nodes) != 5 {
		t.Fatalf("%v %v", nodes, err)
	}
	status := map[string]int{}
	for _, n := range nodes {
		status[n.ManagerStatus]++
	}
	if status["Leader"] != 1 || status["Reachable"] != 2 {
		t.Errorf("%v", status)
	}
}

// The leader goes; writes from the others go on, once each.
func TestLeaderStops(t *testing.T) {
	hosts := three(t)
	l := leader(t, hosts)
	i := slices.Index(hosts, l)
	other := hosts[(i+1)%3]
	l.quit()
	l.quit = nil
	begin := time.Now()
	if err := other.do("POST", "/v1/networks", spec("blue"), nil); err != nil {
		t.Fatal(err)
	}
	t.Logf("write after %v", time.Since(begin))
	eventually(t, "facts on the host whose manager stopped", func() bool { return len(other.facts().Networks) == 1 })
}

func TestPromoteDemoteLeave(t *testing.T) {
	a, tok := found(t)
	b := join(t, a, "n2", tok.Token)
	if err := b.do("PATCH", "/v1/nodes/n2", overlay.NodeUpdate{Role: overlay.Manager}, nil); overlay.KindOf(err) != overlay.Denied {
		t.Errorf("a worker promoted itself: %v", err)
	}
	if err := a.do("PATCH", "/v1/nodes/n1", overlay.NodeUpdate{Role: overlay.Worker}, nil); overlay.KindOf(err) != overlay.InUse {
		t.Errorf("the last manager was demoted: %v", err)
	}
	if err := a.do("PATCH", "/v1/nodes/n2", overlay.NodeUpdate{Role: overlay.Manager}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "promotion in the facts", func() bool { return b.facts().Nodes[b.id.Node].Role == overlay.Manager })
	renew(b)
	b.openManager()
	b.runManager()
	b.watcher.SetLocal(b.manager)
	eventually(t, "second voter", func() bool { return voters(a) == 2 })
	eventually(t, "facts from the own state", func() bool { id, _ := b.watcher.Source(); return id == b.id.Node })

	// The leader is demoted: it hands over first.
	if err := a.do("PATCH", "/v1/nodes/n1", overlay.NodeUpdate{Role: overlay.Worker}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "new leader alone", func() bool { return b.manager.raft.Leads() && voters(b) == 1 })
	eventually(t, "demotion in the facts", func() bool { return a.facts().Nodes[a.id.Node].Role == overlay.Worker })
	a.watcher.SetLocal(nil)
	renew(a)
	a.runWorker()
	if a.cred.Subject().Role != overlay.Worker {
		t.Error("the certificate still says manager")
	}
	if err := a.do("GET", "/v1/tokens", nil, nil); overlay.KindOf(err) != overlay.Denied {
		t.Errorf("a former manager lists tokens: %v", err)
	}
	if err := a.do("POST", "/v1/networks", spec("blue"), nil); err != nil {
		t.Fatal(err)
	}
	if err := a.client.Leave(ctx(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removal, told to the removed node", func() bool { _, ok := a.facts().Removals[a.id.Node]; return ok })
	if err := a.do("GET", "/v1/networks", nil, nil); overlay.KindOf(err) != overlay.Denied || !strings.Contains(err.Error(), "removed") {
		t.Errorf("%v", err)
	}
	if err := b.client.Leave(ctx(t)); overlay.KindOf(err) != overlay.InUse {
		t.Errorf("the last manager left: %v", err)
	}
}

// renew does what a daemon does when its role has changed.
func renew(h *host) {
	h.t.Helper()
	id, err := h.client.RenewIdentity(ctx(h.t), h.id)
	if err == nil {
		err = h.cred.Set(id)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.client.Close()
}

// Without a quorum reads fail in time and name --stale, writes fail in time.
func TestNoQuorum(t *testing.T) {
	hosts := three(t)
	l := leader(t, hosts)
	for _, h := range hosts {
		if h != l {
			h.quit()
			h.quit = nil
		}
	}
	var both sync.WaitGroup
	for _, tc := range []struct{ method, path, want string }{{"GET", "/v1/networks", "--stale"}, {"POST", "/v1/networks", "quorum"}} {
		both.Go(func() {
			begin := time.Now()
			err := l.do(tc.method, tc.path, spec("x"), nil)
			if overlay.KindOf(err) != overlay.Unavailable || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: %v", tc.method, err)
			}
			if d := time.Since(begin); d > 5*time.Second {
				t.Errorf("%s failed after %v", tc.method, d)
			}
		})
	}
	both.Wait()
	if err := l.do("GET", "/v1/networks?stale=1", nil, nil); err != nil {
		t.Errorf("stale read: %v", err)
	}
}

// A request that was executed, and whose answer was lost, is answered as the first time, though
// what it removed is gone.
func TestRemovingIsRepeatable(t *testing.T) {
	a, tok := found(t)
	join(t, a, "n2", tok.Token)
	leaver := join(t, a, "n3", tok.Token)
	if err := a.do("POST", "/v1/networks", spec("blue"), nil); err != nil {
		t.Fatal(err)
	}
	me := api.Caller{Node: a.id.Node, Role: overlay.Manager}
	for what, remove := range map[string]func(context.Context) error{
		"network": func(ctx context.Context) error { return a.manager.RemoveNetwork(ctx, "blue") },
		"node":    func(ctx context.Context) error { return a.manager.RemoveNode(ctx, me, "n2", true) },
	} {
		for range 2 {
			if err := remove(api.WithRequest(ctx(t), "first "+what)); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := remove(api.WithRequest(ctx(t), "another "+what)); overlay.KindOf(err) != overlay.NotFound {
			t.Errorf("%s, by another request: %v", what, err)
		}
	}
	for range 2 {
		if err := leaver.client.Leave(ctx(t)); err != nil {
			t.Errorf("leave: %v", err)
		}
	}
}

func TestRemoveNode(t *testing.T) {
	a, tok := found(t)
	b := join(t, a, "n2", tok.Token)
	if err := a.do("DELETE", "/v1/nodes/n2", nil, nil); overlay.KindOf(err) != overlay.InUse {
		t.Errorf("a node that is up was removed: %v", err)
	}
	if err := a.do("DELETE", "/v1/nodes/n1", nil, nil); err == nil {
		t.Error("a node removed itself")
	}
	if err := a.do("DELETE", "/v1/nodes/n2?force=1", nil, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "removal", func() bool { _, ok := b.facts().Removals[b.id.Node]; return ok })
	trust := b.facts().Trust()
	if r, err := trust.CheckRemoval(b.facts().Removals[b.id.Node]); err != nil || r.Node != b.id.Node {
		t.Errorf("%v %v", r, err)
	}
}
