package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

type cluster struct {
	t  *testing.T
	ca CA
	overlay.Place
	revoked map[overlay.NodeID]bool
}

func newCluster(t *testing.T, name string) *cluster {
	ca, err := NewCA(name, now)
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{t, ca, overlay.Place{Cluster: name, Epoch: 1}, map[overlay.NodeID]bool{}}
}

// node makes a member whose certificate was signed at a time.
func (c *cluster) node(role overlay.Role, epoch uint64, signed time.Time) *Credentials {
	id, err := NewIdentity()
	if err != nil {
		c.t.Fatal(err)
	}
	p := overlay.Place{Cluster: c.Cluster, Epoch: epoch}
	der, err := c.ca.Sign(Subject{Place: p, Node: id.Node, Role: role}, id.Public(), signed)
	if err != nil {
		c.t.Fatal(err)
	}
	if id, err = id.Joined(p, der, c.ca.Cert.Raw); err != nil {
		c.t.Fatal(err)
	}
	cr, err := NewCredentials(id, func(s Subject) bool { return c.revoked[s.Node] }, func() time.Time { return now })
	if err != nil {
		c.t.Fatal(err)
	}
	return cr
}

// handshake connects and returns what each side says, and whom the server saw.
func handshake(server, client *tls.Config) (seen Subject, serverErr, clientErr error) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	deadline := time.Now().Add(5 * time.Second)
	_ = a.SetDeadline(deadline)
	_ = b.SetDeadline(deadline)
	done := make(chan error, 1)
	s := tls.Server(a, server)
	go func() {
		err := s.Handshake()
		if err != nil {
			a.Close()
		}
		done <- err
	}()
	c := tls.Client(b, client)
	if clientErr = c.Handshake(); clientErr == nil { // in TLS 1.3 the server judges after the client is done
		go func() { _, _ = c.Read(make([]byte, 1)) }()
	} else {
		b.Close()
	}
	serverErr = <-done
	if serverErr == nil {
		seen, _ = PeerSubject(s.ConnectionState())
	}
	return seen, serverErr, clientErr
}

func TestWhoMayConnect(t *testing.T) {
	c, other := newCluster(t, "c1"), newCluster(t, "c2")
	impostor := newCluster(t, "c1") // the name is the same, the CA is not
	m, m2 := c.node(overlay.Manager, 1, now), c.node(overlay.Manager, 1, now)
	w, gone := c.node(overlay.Worker, 1, now), c.node(overlay.Manager, 1, now)
	c.revoked[gone.Identity().Node] = true
	past := c.node(overlay.Manager, 1, now.Add(-certLife-2*time.Hour))
	barely := c.node(overlay.Manager, 1, now.Add(-certLife-30*time.Minute))
	future := c.node(overlay.Manager, 1, now.Add(3*time.Hour))
	oldEpoch := c.node(overlay.Manager, 0, now)
	foreign, forged := other.node(overlay.Manager, 1, now), impostor.node(overlay.Manager, 1, now)
	all := func(string) bool { return true }
	id := func(c *Credentials) overlay.NodeID { return c.Identity().Node }
	digest := Digest(c.ca.Cert.Raw)
	clock := func() time.Time { return now }
	for _, tc := range []struct {
		name           string
		server, client *tls.Config
		wantServer     string // part of the error; "" is success
		wantClient     string
	}{
		{"worker asks a manager", m.Control(all), w.ForManager(""), "", ""},
		{"manager asks a manager by ID", m.Control(all), m2.ForManager(id(m)), "", ""},
		{"another manager answers", m.Control(all), w.ForManager(id(m2)), "bad certificate", "was expected"},
		{"a worker answers as manager", w.Control(all), m.ForManager(""), "bad certificate", "no manager"},
		{"a worker answers its hello", w.Control(all), m.ForNode(id(w)), "", ""},
		{"manager of another cluster answers", foreign.Control(all), w.ForManager(""), "bad certificate", "another cluster"},
		{"node of another cluster asks", m.Control(all), foreign.ForManager(""), "bad certificate", "another cluster"},
		{"same name, other CA", forged.PeerServer("x/1"), w.PeerClient("", "x/1"), "bad certificate", "another cluster"},
		{"expired manager", past.Control(all), w.ForManager(""), "bad certificate", "expired"},
		{"expired within the skew", barely.Control(all), w.ForManager(""), "", ""},
		{"manager from the future", future.Control(all), w.ForManager(""), "bad certificate", "not valid before"},
		{"expired node asks a manager", m.Control(all), past.ForManager(""), "", ""},
		{"removed node is heard by the API", m.Control(all), gone.ForManager(""), "", ""},
		{"raft between managers", m.Control(all), m2.ForRaft(id(m)), "", ""},
		{"raft with expired managers", past.Control(all), past.ForRaft(""), "", ""},
		{"a worker opens raft", m.Control(all), w.ForRaft(id(m)), "no manager", ""},
		{"a removed manager opens raft", m.Control(all), gone.ForRaft(id(m)), "revoked", ""},
		{"raft of an old epoch", m.Control(all), oldEpoch.ForRaft(id(m)), "epoch", "epoch"},
		{"raft to a worker", w.Control(all), m.ForRaft(id(w)), "", "no manager"},
		{"nobody serves raft here", m.Control(func(p string) bool { return p != ALPNRaft }), m2.ForRaft(""), "protocol", "protocol"},
		{"join", m.Control(all), ForJoin(digest, clock), "", ""},
		{"join with a token of another cluster", foreign.Control(all), ForJoin(digest, clock), "bad certificate", "token is of another cluster"},
		{"join at a worker", w.Control(all), ForJoin(digest, clock), "bad certificate", "no manager"},
		{"join protocol opens no API", m.Control(all), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNAPI}}, "certificate", ""},
		{"no protocol named", m.Control(all), &tls.Config{InsecureSkipVerify: true}, "certificate", ""},
		{"TLS 1.2", m.Control(all), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNJoin}, MaxVersion: tls.VersionTLS12}, "version", "version"},
		{"peers", w.PeerServer("g/1"), m.PeerClient(id(w), "g/1"), "", ""},
		{"peers whose dates have passed", past.PeerServer("g/1"), past.PeerClient(id(past), "g/1"), "", ""},
		{"a removed peer", w.PeerServer("g/1"), gone.PeerClient(id(w), "g/1"), "revoked", ""},
		{"to a removed peer", gone.PeerServer("g/1"), w.PeerClient(id(gone), "g/1"), "", "revoked"},
		{"a peer with another's address", w.PeerServer("g/1"), w.PeerClient(id(m), "g/1"), "", "was expected"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			seen, s, c := handshake(tc.server, tc.client)
			if !matches(c, tc.wantClient) {
				t.Errorf("client: %v, want %q", c, tc.wantClient)
			}
			if tc.wantClient == "" && !matches(s, tc.wantServer) {
				t.Errorf("server: %v, want %q", s, tc.wantServer)
			}
			if (tc.wantClient != "" || tc.wantServer != "") && s == nil && c == nil {
				t.Error("connected")
			}
			if s == nil && c == nil && tc.client.GetClientCertificate != nil && seen.Node == "" {
				t.Error("the server does not know who asked")
			}
		})
	}
}

func matches(err error, want string) bool {
	if want == "" {
		return err == nil
	}
	return err != nil && strings.Contains(err.Error(), want)
}

func TestRevokedBy(t *testing.T) {
	node := overlay.NodeID(strings.Repeat("a", 32))
	f := &overlay.Facts{Nodes: map[overlay.NodeID]overlay.Node{node: {Role: overlay.Worker, Index: 10}}, Removals: map[overlay.NodeID]overlay.Signed{}}
	r := RevokedBy(func() *overlay.Facts { return f })
	for _, tc := range []struct {
		name string
		s    Subject
		want bool
	}{
		{"worker", Subject{Node: node, Role: overlay.Worker}, false},
		{"manager before its demotion", Subject{Node: node, Role: overlay.Manager, Revision: 9}, true},
		{"manager promoted later than these facts", Subject{Node: node, Role: overlay.Manager, Revision: 11}, false},
		{"manager these facts do not know", Subject{Node: "x", Role: overlay.Manager}, false},
	} {
		if got := r(tc.s); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
	f.Removals[node] = overlay.Signed{}
	if !r(Subject{Node: node, Role: overlay.Worker}) {
		t.Error("removed node is not revoked")
	}
}

func TestRenewal(t *testing.T) {
	c := newCluster(t, "c1")
	cert, _ := x509.ParseCertificate(c.node(overlay.Worker, 1, now).Identity().Cert)
	for after, want := range map[time.Duration]bool{0: false, 44 * 24 * time.Hour: false, 46 * 24 * time.Hour: true, 100 * 24 * time.Hour: true} {
		if got := NeedsRenewal(cert, now.Add(after)); got != want {
			t.Errorf("after %v: %v", after, got)
		}
	}
	if d := now.Sub(cert.NotBefore); d != time.Hour {
		t.Errorf("NotBefore lies %v back", d)
	}
}

func TestReload(t *testing.T) {
	c := newCluster(t, "c1")
	m, w := c.node(overlay.Manager, 1, now), c.node(overlay.Worker, 1, now)
	serve := w.Control(func(string) bool { return true })
	if _, _, err := handshake(serve, m.ForManager("")); err == nil {
		t.Fatal("a worker answered as manager")
	}
	id := w.Identity()
	der, err := c.ca.Sign(Subject{Place: c.Place, Node: id.Node, Role: overlay.Manager}, id.Public(), now)
	if err != nil {
		t.Fatal(err)
	}
	if id, err = id.Joined(c.Place, der, id.CA); err != nil {
		t.Fatal(err)
	}
	if err := w.Set(id); err != nil {
		t.Fatal(err)
	}
	if _, _, err := handshake(serve, m.ForManager("")); err != nil {
		t.Fatalf("after promotion: %v", err)
	}
}

func TestIdentityFile(t *testing.T) {
	c := newCluster(t, "c1")
	path := filepath.Join(t.TempDir(), "identity.json")
	if _, err := LoadIdentity(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("missing: %v", err)
	}
	id := c.node(overlay.Worker, 1, now).Identity()
	for range 2 { // the second replaces the first
		if err := id.Save(path); err != nil {
			t.Fatal(err)
		}
	}
	got, err := LoadIdentity(path)
	if err != nil || got.Node != id.Node || got.Place != id.Place || !got.Key.Equal(id.Key) || got.Subject().Role != overlay.Worker {
		t.Fatalf("%v %v", got.Node, err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	swapped := id
	swapped.Cert = c.node(overlay.Worker, 1, now).Identity().Cert
	for _, tc := range []struct {
		name, want string
		spoil      func() error
	}{
		{"wide mode", "chmod 600", func() error { return os.Chmod(path, 0o640) }},
		{"another's certificate", "another node", func() error { return swapped.Save(path) }},
		{"cut short", "can't be read", func() error { return os.WriteFile(path, []byte(`{"v":1,"no`), 0o600) }},
		{"later version", "unknown here", func() error { return os.WriteFile(path, []byte(`{"v":9}`), 0o600) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.spoil(); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadIdentity(path); !matches(err, tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			_ = os.Remove(path)
		})
	}
}

func TestParseToken(t *testing.T) {
	tok := NewToken([]byte("a CA"))
	text := tok.Text()
	for _, tc := range []struct{ name, in, want string }{
		{"whole", text, ""},
		{"upper case and space", " " + strings.ToUpper(text) + "\n", ""},
		{"empty", "", "no join token"},
		{"Swarm's", "SWMTKN-1-abc-def", "no join token"},
		{"cut short", text[:len(text)-1], "not whole"},
		{"too long", text + "a", "not whole"},
		{"without the secret", text[:len("HDL1-")+caLen], "not whole"},
		{"not in base 32", text[:len(text)-2] + "1a", "wrong character"},
		{"stray bits", text[:len(text)-1] + "b", "wrong character"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseToken(tc.in)
			if !matches(err, tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if err == nil && got != tok {
				t.Error("another token came out")
			}
		})
	}
	if strings.Contains(tok.String(), text[len(text)-secretLen:]) {
		t.Error("String shows the secret")
	}
	if string(NewToken([]byte("a CA")).Hash()) == string(tok.Hash()) {
		t.Error("two tokens have one secret")
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(NewToken([]byte("x")).Text())
	f.Add("HDL1--")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err == nil && !strings.EqualFold(tok.Text(), strings.TrimSpace(s)) {
			t.Errorf("%q was read as %q", s, tok.Text())
		}
	})
}
