package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
	"github.com/heddle-net/heddle/overlay/wire"
)

// epoch is the time of every test.
var epoch = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

const (
	secretToken = "HDL1-secret" // given to join: no output may have it
	freshToken  = "HDL1-fresh"
)

// fakeDaemon serves the node's real API from rows in memory, and writes down what it is asked.
type fakeDaemon struct {
	socket string

	mu        sync.Mutex
	requests  []string
	namespace string   // of what is attached, where the request names none
	silent    []string // nodes that acknowledge nothing
	outside   bool     // in no cluster
	removed   bool     // from its cluster
	alone     bool     // no manager answers
	unheard   bool     // nor has one since the start
	networks  []overlay.NetworkRow
	nodes     []overlay.NodeRow
	tokens    []overlay.TokenRow
	endpoints []overlay.Endpoint
	services  []overlay.ServiceRow
	problems  []string
	detached  chan string // gets the names of what is detached, when it has room
}

func startFake(t *testing.T) *fakeDaemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "heddle") // short enough for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &fakeDaemon{
		socket: filepath.Join(dir, "heddle.sock"), detached: make(chan string, 16),
		networks: sampleNetworks(), nodes: sampleNodes(), tokens: sampleTokens(), endpoints: sampleEndpoints(),
		services: sampleServices(),
	}
	l, err := net.Listen("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	api := local.NewHandler(d)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		line := r.Method + " " + r.URL.RequestURI()
		if len(body) > 0 {
			line += " " + string(bytes.TrimSpace(body))
		}
		d.mu.Lock()
		d.requests = append(d.requests, line)
		d.mu.Unlock()
		r.Body = io.NopCloser(bytes.NewReader(body))
		api.ServeHTTP(w, r)
	}))
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return d
}

// exec runs a command line against the fake and returns what it did.
func (d *fakeDaemon) exec(ctx context.Context, stdin string, env map[string]string, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	c := &cli{
		in: strings.NewReader(stdin), out: &out, err: &err, now: func() time.Time { return epoch },
		env: func(k string) string {
			if v, ok := env[k]; ok || k != "HEDDLE_SOCKET" {
				return v
			}
			return d.socket
		},
	}
	code = c.run(ctx, args)
	return code, out.String(), err.String()
}

// asked returns the requests since the last call.
func (d *fakeDaemon) asked() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.requests
	d.requests = nil
	return r
}

func (d *fakeDaemon) Init(_ context.Context, r overlay.InitRequest) (overlay.MemberReply, error) {
	if !d.outside {
		return overlay.MemberReply{}, overlay.Errorf(overlay.Exists, "this node is in a cluster already; `heddle leave` takes it out")
	}
	return overlay.MemberReply{Node: id[overlay.NodeID]("a1"), Role: overlay.Manager, Join: "heddle join 192.0.2.1 --token " + freshToken}, nil
}

func (d *fakeDaemon) Join(_ context.Context, r overlay.JoinRequest) (overlay.MemberReply, error) {
	if r.Token != secretToken {
		return overlay.MemberReply{}, overlay.Errorf(overlay.Denied, "the token is not one of this cluster; make one with `heddle token create worker` on a manager")
	}
	return overlay.MemberReply{Node: id[overlay.NodeID]("b2"), Role: overlay.Worker}, nil
}

func (d *fakeDaemon) Leave(_ context.Context, force bool) error {
	if !force {
		return overlay.Errorf(overlay.InUse, "workloads are attached on this node (db, web); detach them, or add --force")
	}
	return nil
}

func (d *fakeDaemon) Resolve(_ context.Context, r overlay.ResolveRequest) (overlay.ResolveReply, error) {
	if err := r.Validate(); err != nil {
		return overlay.ResolveReply{}, err
	}
	if r.Name != "web" {
		return overlay.ResolveReply{}, overlay.Errorf(overlay.NotFound, "there is no %s in network %s; `heddle endpoint ls --filter network=%s` lists the workloads", r.Name, r.Network, r.Network)
	}
	return overlay.ResolveReply{Addrs: []netip.Addr{netip.MustParseAddr("10.64.0.10"), netip.MustParseAddr("fd00::a")}}, nil
}

func (d *fakeDaemon) Status(context.Context) (overlay.Status, error) {
	if d.removed {
		return overlay.Status{Version: "v1", Name: "alpha", Cluster: sampleStatus().Cluster, Problems: []string{"this node was removed"}}, nil
	}
	if d.outside {
		return overlay.Status{Version: "v1", Name: "alpha"}, nil
	}
	s := sampleStatus()
	s.Problems = d.problems
	return s, nil
}

func (d *fakeDaemon) Doctor(context.Context) (overlay.Diagnosis, error) {
	g := overlay.Diagnosis{Name: "alpha", Version: "v1", Member: true, Drift: []overlay.DriftRow{}, Findings: []overlay.Finding{
		{Name: "daemon", Verdict: overlay.Good, Found: "it answers"},
		{Name: "port 5377/tcp", Verdict: overlay.Good, Found: "the control port: beta, gamma"},
	}}
	if len(d.problems) > 0 {
		g.Repaired = map[string]uint64{"fdb": 3, "link": 1}
		g.Drift = append(g.Drift, overlay.DriftRow{What: "link", Where: "heddle-b1/ep-e1", Found: "missing", Do: "add link heddle-b1/ep-e1 veth peer web/eth0"})
		g.Findings = append(g.Findings,
			overlay.Finding{Name: "firewall", Verdict: overlay.Problem, Found: "a rule in the chain `inet f in` drops what other nodes send to 4789/udp", Mend: "nft delete rule inet f in handle 4"},
			overlay.Finding{Name: "link MTU", Verdict: overlay.Warning, Found: "1500 here and 1400 on beta: networks that both take part in use the smaller", Mend: "ip link set LINK mtu 1500   # on beta"})
	}
	return g, nil
}

func (d *fakeDaemon) Attach(_ context.Context, r overlay.AttachRequest) (overlay.AttachReply, error) {
	if r.Network != "blue" {
		return overlay.AttachReply{}, overlay.Errorf(overlay.NotFound, "there is no network %q; `heddle network ls` lists what there is", r.Network)
	}
	e := sampleEndpoints()[0]
	e.Name, e.Namespace, e.Interface = r.Name, "/run/netns/"+r.Name, "eth0"
	switch {
	case r.Host:
		e.Namespace, e.Interface = "", "heddle0"
	case r.Netns != "":
		e.Namespace = r.Netns
	case r.PID != 0:
		e.Namespace = fmt.Sprintf("/proc/%d/ns/net", r.PID)
	case d.namespace != "":
		e.Namespace = d.namespace
	}
	return overlay.AttachReply{Endpoint: e, Silent: d.silent}, nil
}

func (d *fakeDaemon) Detach(_ context.Context, r overlay.DetachRequest) (overlay.DetachReply, error) {
	if r.Name == "nobody" {
		return overlay.DetachReply{}, overlay.Errorf(overlay.NotFound, "nobody is not attached on this node; `heddle endpoint ls --local` lists what is")
	}
	select {
	case d.detached <- r.Name:
	default:
	}
	return overlay.DetachReply{Silent: d.silent}, nil
}

func (d *fakeDaemon) Endpoints(context.Context) ([]overlay.Endpoint, error) {
	return slices.DeleteFunc(slices.Clone(d.endpoints), func(e overlay.Endpoint) bool { return e.NodeName != "alpha" }), nil
}

func (d *fakeDaemon) RotateKeys(context.Context) error { return nil }

func (d *fakeDaemon) Copy(context.Context) (overlay.Copy, error) {
	c := overlay.Copy{Revision: 41, Age: 83 * time.Second, Networks: d.networks[:1], Nodes: d.nodes, Endpoints: d.endpoints[:2], Services: d.services[:1]}
	if d.unheard {
		c.Age = -1
	}
	return c, nil
}

func (d *fakeDaemon) Count([]overlay.ServiceRow) {} // the rows come complete

func (d *fakeDaemon) Here(r *overlay.NetworkRow) {
	if r.Name == "blue" {
		r.Namespace, r.Bridge, r.Device = "heddle-b10000000000", "br0", "vxlan0"
	}
}

// Cluster answers in the managers' place.
func (d *fakeDaemon) Cluster(_ context.Context, method, path string, body []byte) (int, []byte, error) {
	if d.alone {
		return 0, nil, overlay.Errorf(overlay.Unavailable, "no manager answers; `heddle status` lists them")
	}
	m := http.NewServeMux()
	serve := func(pattern string, answer func(r *http.Request) (any, error)) {
		m.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := answer(r)
			wire.Write(w, v, err)
		})
	}
	network := func(r *http.Request) (any, error) {
		return overlay.Find("network", r.PathValue("ref"), d.networks, func(n overlay.NetworkRow) (string, string) { return string(n.ID), n.Name })
	}
	node := func(r *http.Request) (overlay.NodeRow, error) {
		return overlay.Find("node", r.PathValue("ref"), d.nodes, nodeKey)
	}
	token := func(r *http.Request) (any, error) {
		return overlay.TokenReply{Row: d.tokens[0], Token: freshToken, Join: "heddle join 192.0.2.1 --token " + freshToken}, nil
	}
	serve("GET /v1/networks", func(*http.Request) (any, error) { return d.networks, nil })
	serve("GET /v1/networks/{ref}", network)
	serve("DELETE /v1/networks/{ref}", func(r *http.Request) (any, error) {
		n, err := network(r)
		if err == nil && len(n.(overlay.NetworkRow).Endpoints) > 0 {
			err = overlay.Errorf(overlay.InUse, "network blue has 2 endpoints: alpha/web, beta/db; detach them first")
		}
		return nil, err
	})
	serve("PATCH /v1/networks/{ref}", func(r *http.Request) (any, error) {
		n, err := network(r)
		if err != nil {
			return nil, err
		}
		row := n.(overlay.NetworkRow)
		row.Notes = []string{"10.9.0.0/16 hides a route of node beta"}
		return row, nil
	})
	serve("PATCH /v1/cluster", func(r *http.Request) (any, error) {
		var u overlay.ClusterUpdate
		err := json.NewDecoder(r.Body).Decode(&u)
		return overlay.Params{Pools: append([]netip.Prefix{netip.MustParsePrefix("10.64.0.0/11")}, u.AddPools...)}, err
	})
	serve("POST /v1/networks", func(r *http.Request) (any, error) {
		var s overlay.NetworkSpec
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			return nil, err
		}
		if s.Name == "blue" {
			return nil, overlay.Errorf(overlay.Exists, "network blue exists already; take another name")
		}
		return overlay.NetworkRow{ID: id[overlay.NetworkID]("c3"), Name: s.Name, Notes: []string{"10.9.0.0/16 hides a route of node beta"}}, nil
	})
	serve("GET /v1/nodes", func(*http.Request) (any, error) { return d.nodes, nil })
	serve("PATCH /v1/nodes/{ref}", func(r *http.Request) (any, error) {
		row, err := node(r)
		var u overlay.NodeUpdate
		_ = json.NewDecoder(r.Body).Decode(&u)
		if u.Role != "" {
			row.Role = u.Role
		}
		row.Availability = u.Availability
		return row, err
	})
	serve("DELETE /v1/nodes/{ref}", func(r *http.Request) (any, error) {
		n, err := node(r)
		if err == nil && n.Status == "ready" && r.URL.Query().Get("force") == "" {
			err = overlay.Errorf(overlay.InUse, "node %s is up; run `heddle leave` on it, or use --force", n.Name)
		}
		return nil, err
	})
	serve("GET /v1/tokens", func(*http.Request) (any, error) { return d.tokens, nil })
	serve("POST /v1/tokens", token)
	serve("POST /v1/tokens/rotate", token)
	serve("DELETE /v1/tokens/{id}", func(r *http.Request) (any, error) {
		if r.PathValue("id") != d.tokens[0].ID {
			return nil, overlay.Errorf(overlay.NotFound, "there is no token %q; `heddle token ls` lists what there is", r.PathValue("id"))
		}
		return nil, nil
	})
	d.serveServices(serve)
	serve("GET /v1/endpoints", func(*http.Request) (any, error) { return d.endpoints, nil })
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest(method, path, bytes.NewReader(body)))
	return w.Code, w.Body.Bytes(), nil
}

// id fills up the beginning of an ID.
func id[T ~string](begin string) T { return T((begin + strings.Repeat("0", 32))[:32]) }

func sampleNodes() []overlay.NodeRow {
	return []overlay.NodeRow{
		{ID: id[overlay.NodeID]("a1"), Name: "alpha", Addr: "192.0.2.1:5377", Role: overlay.Manager, Status: "ready", Availability: overlay.Active, ManagerStatus: "Leader", Version: "v1", Number: 1, Self: true},
		{ID: id[overlay.NodeID]("b2"), Name: "beta", Addr: "192.0.2.2:5377", Role: overlay.Worker, Status: "down", Availability: overlay.Drain, Version: "v1", Number: 2},
		{ID: id[overlay.NodeID]("b3"), Name: "gamma", Addr: "192.0.2.3:5377", Role: overlay.Worker, Status: "ready", Availability: overlay.Active, Version: "v2", Number: 3},
	}
}

func sampleEndpoints() []overlay.Endpoint {
	return []overlay.Endpoint{
		{
			ID: id[overlay.EndpointID]("e1"), Name: "web", Node: id[overlay.NodeID]("a1"), NodeName: "alpha", NetworkID: id[overlay.NetworkID]("b1"), NetworkName: "blue",
			IPv4: netip.MustParsePrefix("10.64.0.2/24"), IPv6: netip.MustParsePrefix("fd00:20::2/64"), MAC: overlay.MAC{2, 0, 0, 0, 0, 1}, State: overlay.EndpointReady,
			Interface: "eth0", Namespace: "/run/netns/web", Service: "shop", Labels: map[string]string{"tier": "front"}, Health: "unhealthy: dial tcp 10.64.0.2:80: connect: connection refused",
			Publish: []overlay.Publish{{Port: 8080, Target: 80, Proto: "tcp"}, {Addr: netip.MustParseAddr("192.0.2.1"), Port: 30000, Target: 53, Proto: "udp"}},
		},
		{
			ID: id[overlay.EndpointID]("e2"), Name: "db", Node: id[overlay.NodeID]("b2"), NodeName: "beta", NetworkID: id[overlay.NetworkID]("b1"), NetworkName: "blue",
			IPv4: netip.MustParsePrefix("10.64.0.3/24"), MAC: overlay.MAC{2, 0, 0, 0, 0, 2}, State: overlay.EndpointReady, Labels: map[string]string{"tier": "back", "gold": ""}, Health: "healthy",
		},
		{
			ID: id[overlay.EndpointID]("e3"), Name: "web", Node: id[overlay.NodeID]("b2"), NodeName: "beta", NetworkID: id[overlay.NetworkID]("b4"), NetworkName: "red",
			IPv6: netip.MustParsePrefix("fd00:30::2/64"), MAC: overlay.MAC{2, 0, 0, 0, 0, 3}, State: overlay.EndpointFailed,
		},
	}
}

func sampleNetworks() []overlay.NetworkRow {
	cidr := netip.MustParsePrefix
	return []overlay.NetworkRow{
		{
			ID: id[overlay.NetworkID]("b1"), Name: "blue", Driver: "overlay", Scope: "cluster", VNI: 8388608, EnableIPv4: true, EnableIPv6: true, MTU: 1450,
			IPAM: overlay.IPAMRow{Config: []overlay.IPAMConfigRow{
				{Addresses: 253, Leased: 16, InUse: 2, Subnet: cidr("10.64.0.0/24"), Gateway: netip.MustParseAddr("10.64.0.1")},
				{Addresses: 253, Leased: 16, InUse: 2, Subnet: cidr("fd00:20::/64"), Gateway: netip.MustParseAddr("fd00:20::1")},
			}},
			Labels: map[string]string{"team": "a"}, Options: map[string]string{"mtu": "1450"}, Endpoints: sampleEndpoints()[:2],
			Participants: []overlay.ParticipantRow{{Node: id[overlay.NodeID]("a1"), Name: "alpha", Leased: 8}, {Node: id[overlay.NodeID]("b2"), Name: "beta", Leased: 8}},
		},
		{
			ID: id[overlay.NetworkID]("b4"), Name: "red", Driver: "overlay", Scope: "cluster", VNI: 8388609, EnableIPv6: true, Internal: true,
			IPAM:   overlay.IPAMRow{Config: []overlay.IPAMConfigRow{{Subnet: cidr("fd00:30::/64"), Gateway: netip.MustParseAddr("fd00:30::1")}}},
			Labels: map[string]string{"team": "b"}, Participants: []overlay.ParticipantRow{{Node: id[overlay.NodeID]("b2"), Name: "beta", Leased: 8}},
		},
	}
}

func sampleTokens() []overlay.TokenRow {
	return []overlay.TokenRow{
		{ID: "7f3a", Role: overlay.Worker, Created: epoch.Add(-90 * time.Minute), Expires: epoch.Add(23 * time.Hour), Uses: -1},
		{ID: "91cc", Role: overlay.Manager, Created: epoch.Add(-48 * time.Hour), Expires: epoch.Add(-time.Second), Uses: 1},
		{ID: "b0b0", Role: overlay.Worker, Created: epoch.Add(-3 * time.Second), Uses: 5},
	}
}

func sampleStatus() overlay.Status {
	return overlay.Status{
		Version: "v1", Member: true, Cluster: string(id[overlay.NodeID]("cc")), Node: id[overlay.NodeID]("a1"), Name: "alpha", Role: overlay.Manager,
		Addr: "192.0.2.1:5377", DataPath: "192.0.2.1", Revision: 42, Networks: 1, Endpoints: sampleEndpoints()[:1],
		Ports:    []overlay.PortStatus{{Port: 5377, Proto: "tcp", Use: "control"}, {Port: 5378, Proto: "tcp+udp", Use: "gossip"}, {Port: 4789, Proto: "udp", Use: "VXLAN"}},
		Managers: []overlay.ManagerStatus{{Name: "alpha", Addr: "192.0.2.1:5377", Leader: true, Following: true}, {Name: "delta", Addr: "192.0.2.4:5377", Error: "refused"}},
		Peers: []overlay.PeerStatus{
			{Node: id[overlay.NodeID]("b2"), Name: "beta", Addr: "192.0.2.2:5378", State: "alive", LastProbe: epoch.Add(-300 * time.Millisecond), RTT: 412345 * time.Nanosecond},
			{Node: id[overlay.NodeID]("b3"), Name: "gamma", Addr: "192.0.2.3:5378", State: "unknown"},
			{Node: id[overlay.NodeID]("b4"), Name: "delta", Addr: "192.0.2.4:5378", State: "dead", Suspended: epoch.Add(-40 * time.Second)},
		},
		Counters: map[string]uint64{"record-refused": 3, "frame-refused": 0},
	}
}
