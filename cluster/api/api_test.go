package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/cluster/control"
	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var place = overlay.Place{Cluster: "c1", Epoch: 1}

// stub is a Backend that leads, and a Source whose facts the test sets.
type stub struct {
	mu      sync.Mutex
	facts   overlay.Facts
	changed chan struct{}
	beat    Beat
	asked   []Caller
	grants  []overlay.NodeID
	whole   bool // Since knows nothing
	sinces  []uint64
}

func newStub() *stub {
	return &stub{changed: make(chan struct{}), beat: Beat{Leader: "x", Commit: 1 << 40}, facts: overlay.Facts{V: 1, Level: 1, Place: place, Nodes: map[overlay.NodeID]overlay.Node{}}}
}

func (s *stub) Leader() (overlay.NodeID, bool)                           { return "x", true }
func (s *stub) LeaderChanged() <-chan struct{}                           { return nil }
func (s *stub) Verify(context.Context) error                             { return nil }
func (s *stub) Networks(context.Context) ([]overlay.NetworkRow, error)   { return nil, nil }
func (s *stub) Endpoints(context.Context) ([]overlay.Endpoint, error)    { return nil, nil }
func (s *stub) Nodes(context.Context) ([]overlay.NodeRow, error)         { return nil, nil }
func (s *stub) Tokens(context.Context) ([]overlay.TokenRow, error)       { return nil, nil }
func (s *stub) RevokeToken(context.Context, string) error                { return nil }
func (s *stub) RemoveNetwork(context.Context, string) error              { return nil }
func (s *stub) Join(context.Context, JoinRequest) (r JoinReply, _ error) { return r, nil }
func (s *stub) UpdateNetwork(context.Context, string, overlay.NetworkUpdate) (r overlay.NetworkRow, _ error) {
	return r, nil
}

func (s *stub) Services(context.Context) ([]overlay.ServiceRow, error)          { return nil, nil }
func (s *stub) Service(context.Context, string) (r overlay.ServiceRow, _ error) { return r, nil }
func (s *stub) RemoveService(context.Context, string) error                     { return nil }
func (s *stub) CreateService(context.Context, overlay.ServiceRequest) (r overlay.ServiceRow, _ error) {
	return r, nil
}

func (s *stub) UpdateService(context.Context, string, overlay.ServiceUpdate) (r overlay.ServiceRow, _ error) {
	return r, nil
}

func (s *stub) UpdateCluster(context.Context, overlay.ClusterUpdate) (p overlay.Params, _ error) {
	return p, nil
}
func (s *stub) Terms(context.Context, TermsRequest) (t Terms, _ error) { return t, nil }
func (s *stub) DialBack(context.Context, JoinRequest, netip.Addr) (r JoinReply, _ error) {
	return r, nil
}

func (s *stub) Network(context.Context, string) (r overlay.NetworkRow, _ error) {
	return r, nil
}

func (s *stub) CreateNetwork(context.Context, overlay.NetworkSpec) (r overlay.NetworkRow, _ error) {
	return r, nil
}

func (s *stub) UpdateNode(context.Context, string, overlay.NodeUpdate) (r overlay.NodeRow, _ error) {
	return r, nil
}

func (s *stub) RemoveNode(_ context.Context, by Caller, _ string, _ bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, by)
	return nil
}

func (s *stub) CreateToken(context.Context, overlay.TokenRequest) (r overlay.TokenReply, _ error) {
	return r, nil
}

func (s *stub) RotateTokens(context.Context, overlay.TokenRequest) (r overlay.TokenReply, _ error) {
	return r, nil
}

func (s *stub) Grant(_ context.Context, n overlay.NodeID, _ GrantRequest) (r GrantReply, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grants = append(s.grants, n)
	return r, nil
}
func (s *stub) Renew(context.Context, overlay.NodeID) (c Certificate, _ error) { return c, nil }
func (s *stub) Leave(context.Context, overlay.NodeID) error                    { return nil }
func (s *stub) UpdateSelf(context.Context, overlay.NodeID, Addresses) (n overlay.Node, _ error) {
	return n, nil
}

func (s *stub) Release(context.Context, overlay.NodeID, overlay.Signed) (g GrantReply, _ error) {
	return g, nil
}
func (s *stub) ManagerReady(context.Context, overlay.NodeID, Ready) error { return nil }

func (s *stub) FactsFor(overlay.NodeID) *overlay.Facts {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.facts
	return &f
}

func (s *stub) Since(rev uint64, _ overlay.NodeID) (overlay.Delta, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sinces = append(s.sinces, rev)
	if s.whole {
		return overlay.Delta{}, false
	}
	d := overlay.Delta{V: 1, Revision: s.facts.Revision}
	for _, n := range s.facts.Nodes {
		if n.Index > rev {
			d.Nodes = append(d.Nodes, n)
		}
	}
	return d, true
}

func (s *stub) Changed(rev uint64) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.facts.Revision > rev {
		done := make(chan struct{})
		close(done)
		return done
	}
	return s.changed
}

func (s *stub) Beat() Beat {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.beat
}

// put changes a row at a revision.
func (s *stub) put(rev uint64, n overlay.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.Index = rev
	nodes := map[overlay.NodeID]overlay.Node{n.ID: n}
	for k, v := range s.facts.Nodes {
		if k != n.ID {
			nodes[k] = v
		}
	}
	s.facts.Nodes, s.facts.Revision = nodes, rev
	close(s.changed)
	s.changed = make(chan struct{})
}

// site is a node with a control port.
type site struct {
	*stub
	cred *pki.Credentials
	port *control.Port
	stop func()
}

type cluster struct {
	t       *testing.T
	ca      pki.CA
	mu      sync.Mutex
	removed map[overlay.NodeID]bool
}

func newCluster(t *testing.T) *cluster {
	ca, err := pki.NewCA("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{t: t, ca: ca, removed: map[overlay.NodeID]bool{}}
}

func (c *cluster) node(role overlay.Role) *pki.Credentials {
	id, err := pki.NewIdentity()
	if err != nil {
		c.t.Fatal(err)
	}
	der, err := c.ca.Sign(pki.Subject{Place: place, Node: id.Node, Role: role}, id.Public(), time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	if id, err = id.Joined(place, der, c.ca.Cert.Raw); err != nil {
		c.t.Fatal(err)
	}
	cred, err := pki.NewCredentials(id, func(s pki.Subject) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.removed[s.Node]
	}, time.Now)
	if err != nil {
		c.t.Fatal(err)
	}
	return cred
}

var quiet = slog.New(slog.DiscardHandler)

// manager serves a stub; with b nil it is a worker.
func (c *cluster) serve(role overlay.Role, s *stub) *site {
	m := &site{stub: s, cred: c.node(role)}
	var err error
	if m.port, err = control.Listen(netip.MustParseAddrPort("127.0.0.1:0"), m.cred, quiet); err != nil {
		c.t.Fatal(err)
	}
	conf := HandlerConfig{
		Credentials: m.cred, Hello: overlay.Hello{Version: "test", Reads: overlay.Reads()},
		Address: func(overlay.NodeID) (netip.AddrPort, bool) { return netip.AddrPort{}, false },
	}
	if s != nil {
		conf.Backend = s
	}
	h := NewHandler(conf)
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	api, join := m.port.Listener(pki.ALPNAPI), m.port.Listener(pki.ALPNJoin)
	all.Go(func() { _ = Serve(ctx, api, h, quiet) })
	all.Go(func() { _ = ServeJoin(ctx, join, h, quiet) })
	all.Go(func() { _ = m.port.Run(ctx) })
	m.stop = sync.OnceFunc(func() { cancel(); all.Wait(); h.Close() })
	c.t.Cleanup(m.stop)
	return m
}

func (m *site) at() Manager { return Manager{m.cred.Identity().Node, m.port.Addr()} }

func (m *site) client(cred *pki.Credentials) (*Client, func()) {
	c := NewClient(cred.Identity().Node, cred, []Manager{m.at()})
	return c, c.Close
}

// Each route for each kind of caller: nothing that is not in the table is open.
func TestRoutesByRole(t *testing.T) {
	c := newCluster(t)
	m := c.serve(overlay.Manager, newStub())
	gone := c.node(overlay.Manager)
	c.removed[gone.Identity().Node] = true
	callers := map[string]*pki.Credentials{"worker": c.node(overlay.Worker), "manager": c.node(overlay.Manager), "removed": gone, "stranger": nil}
	want := map[who]map[string]bool{
		member:   {"worker": true, "manager": true},
		operator: {"manager": true},
		leaver:   {"worker": true, "manager": true, "removed": true},
		joiner:   {"stranger": true},
	}
	table := append(routes(m.stub), route{method: "GET", path: pathHello, who: member}, route{method: "GET", path: "/v1/secrets", who: "nobody"})
	for name, cred := range callers {
		conf := pki.ForJoin(pki.Digest(c.ca.Cert.Raw), time.Now)
		if cred != nil {
			conf = cred.ForManager("")
		}
		tr := &http.Transport{DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", m.port.Addr().String())
		}}
		for _, r := range table {
			path := strings.NewReplacer("{ref}", "a", "{id}", "a").Replace(r.path)
			req, err := http.NewRequestWithContext(t.Context(), r.method, "https://m"+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatalf("%s: %s %s: %v", name, r.method, r.path, err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if got := resp.StatusCode == http.StatusOK; got != want[r.who][name] {
				t.Errorf("%s: %s %s: %s", name, r.method, r.path, resp.Status)
			}
		}
		tr.CloseIdleConnections()
	}
}

// Only managers speak for others, and a grant goes to the caller alone.
func TestSpeakingForOthers(t *testing.T) {
	c := newCluster(t)
	m := c.serve(overlay.Manager, newStub())
	victim := c.node(overlay.Worker).Identity().Node
	for role, want := range map[overlay.Role]int{overlay.Worker: http.StatusForbidden, overlay.Manager: http.StatusOK} {
		cred := c.node(role)
		cl, done := m.client(cred)
		req, err := newRequest(t.Context(), m.cred.Identity().Node, "POST", pathGrant, []byte(`{"network":"blue"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(headerFor, string(victim)+" worker")
		resp, err := cl.trans.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %s", role, resp.Status)
		}
		if _, err := cl.Grant(t.Context(), GrantRequest{Network: "blue", Want: 1}); err != nil || m.grants[len(m.grants)-1] != cred.Identity().Node {
			t.Errorf("%v %v", m.grants, err)
		}
		done()
	}
}

func TestWorkerAnswersHello(t *testing.T) {
	c := newCluster(t)
	w := c.serve(overlay.Worker, nil)
	tr := newTransport(c.node(overlay.Worker).ForManager, nil)
	tr.DialTLSContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&tls.Dialer{Config: c.node(overlay.Worker).ForNode(w.cred.Identity().Node)}).DialContext(ctx, "tcp", w.port.Addr().String())
	}
	defer tr.CloseIdleConnections()
	for path, want := range map[string]int{pathHello: 200, "/v1/networks": 503} {
		req, err := newRequest(t.Context(), "w", "GET", path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want || (want == 200 && !bytes.Contains(b, []byte(`"reads"`))) {
			t.Errorf("%s: %s %s", path, resp.Status, b)
		}
	}
}

// Any node greets any other, and tells its time.
func TestGreet(t *testing.T) {
	c := newCluster(t)
	w := c.serve(overlay.Worker, nil)
	g, err := Greet(t.Context(), c.node(overlay.Worker), w.cred.Identity().Node, w.at().Control)
	if err != nil || len(g.Hello.Reads) == 0 || g.Ahead.Abs() > time.Second {
		t.Errorf("%+v, %v", g, err)
	}
	if _, err := Greet(t.Context(), c.node(overlay.Worker), "another", w.at().Control); err == nil {
		t.Error("another node than was meant greets")
	}
}

func TestClientFailsOver(t *testing.T) {
	c := newCluster(t)
	a, b := c.serve(overlay.Manager, newStub()), c.serve(overlay.Manager, newStub())
	cl, done := a.client(c.node(overlay.Worker))
	defer done()
	cl.SetManagers([]Manager{a.at(), b.at()})
	for range 2 {
		if _, err := cl.Grant(t.Context(), GrantRequest{Network: "blue", Want: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.grants) != 2 || len(b.grants) != 0 {
		t.Errorf("it does not stick to one: %d %d", len(a.grants), len(b.grants))
	}
	a.stop()
	for range 2 {
		if _, err := cl.Grant(t.Context(), GrantRequest{Network: "blue", Want: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.grants) != 2 || cl.Managers()[0] != b.at() {
		t.Errorf("it went on with %v", cl.Managers())
	}
	cl.SetManagers([]Manager{a.at(), b.at()})
	if cl.Managers()[0] != b.at() {
		t.Error("the one in use was forgotten")
	}
	// An error that is an answer is not tried elsewhere.
	resp, err := cl.Do(t.Context(), "GET", "/v1/nothing", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := wire.Decode(resp, nil); overlay.KindOf(err) != overlay.NotFound {
		t.Error(err)
	}
}

func TestBodyLimit(t *testing.T) {
	c := newCluster(t)
	m := c.serve(overlay.Manager, newStub())
	cl, done := m.client(c.node(overlay.Worker))
	defer done()
	long, _ := json.Marshal(map[string]string{"network": strings.Repeat("x", wire.MaxBody)})
	for _, tc := range []struct {
		name, want string
		body       []byte
	}{{"too long", "longer", long}, {"unknown field", "unknown field", []byte(`{"netwrok":"x"}`)}, {"no JSON", "can't be read", []byte(`<`)}} {
		resp, err := cl.Do(t.Context(), "POST", pathGrant, tc.body)
		if err != nil {
			t.Fatal(err)
		}
		if err := wire.Decode(resp, nil); overlay.KindOf(err) != overlay.Invalid || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
		resp.Body.Close()
	}
}
