package control

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type fixture struct {
	t    *testing.T
	ca   pki.CA
	port *Port
	me   *pki.Credentials
}

func (f *fixture) node(role overlay.Role) *pki.Credentials {
	id, err := pki.NewIdentity()
	if err != nil {
		f.t.Fatal(err)
	}
	p := overlay.Place{Cluster: "c1", Epoch: 1}
	der, err := f.ca.Sign(pki.Subject{Place: p, Node: id.Node, Role: role}, id.Public(), time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	if id, err = id.Joined(p, der, f.ca.Cert.Raw); err != nil {
		f.t.Fatal(err)
	}
	c, err := pki.NewCredentials(id, func(pki.Subject) bool { return false }, time.Now)
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

func start(t *testing.T) *fixture {
	ca, err := pki.NewCA("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, ca: ca}
	f.me = f.node(overlay.Manager)
	f.port, err = Listen(netip.MustParseAddrPort("127.0.0.1:0"), f.me, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.port.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return f
}

// echo answers each connection of a listener with a word.
func echo(l net.Listener, word string) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, word+"\n")
			c.Close()
		}
	}()
}

// ask connects from a source address and reads the word.
func (f *fixture) ask(from string, t *tls.Config) (string, error) {
	d := net.Dialer{Timeout: 3 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := tls.DialWithDialer(&d, "tcp", f.port.Addr().String(), t)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	s, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(s), err
}

func TestByProtocol(t *testing.T) {
	f := start(t)
	m, w := f.node(overlay.Manager), f.node(overlay.Worker)
	echo(f.port.Listener(pki.ALPNAPI), "api")
	if _, err := f.ask("127.0.0.1", m.ForRaft("")); err == nil {
		t.Error("raft is answered although nobody serves it")
	}
	raft := f.port.Listener(pki.ALPNRaft)
	echo(raft, "raft")
	for _, tc := range []struct {
		name string
		tls  *tls.Config
		want string
	}{
		{"api", w.ForManager(f.me.Identity().Node), "api"},
		{"raft of a manager", m.ForRaft(""), "raft"},
		{"raft of a worker", w.ForRaft(""), ""},
		{"join that nobody serves", pki.ForJoin(pki.Digest(f.ca.Cert.Raw), time.Now), ""},
	} {
		if got, err := f.ask("127.0.0.1", tc.tls); got != tc.want {
			t.Errorf("%s: %q (%v)", tc.name, got, err)
		}
	}
	raft.Close()
	if _, err := f.ask("127.0.0.1", m.ForRaft("")); err == nil {
		t.Error("raft is answered after its listener was closed")
	}
	echo(f.port.Listener(pki.ALPNAPI), "api2")
	if got, err := f.ask("127.0.0.1", w.ForManager("")); got != "api2" {
		t.Errorf("after a change of who serves: %q (%v)", got, err)
	}
}

// Connections that never finish their handshake hold up nobody, from whatever source.
func TestHalfOpen(t *testing.T) {
	f := start(t)
	echo(f.port.Listener(pki.ALPNAPI), "api")
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for range 1000 {
		c, err := net.Dial("tcp", f.port.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
		_, _ = c.Write([]byte{22}) // the first byte of a ClientHello
	}
	begin := time.Now()
	if got, err := f.ask("127.0.0.2", f.node(overlay.Worker).ForManager("")); got != "api" {
		t.Fatalf("%q (%v)", got, err)
	}
	if d := time.Since(begin); d > 500*time.Millisecond {
		t.Errorf("a healthy client waited %v", d)
	}
	f.port.mu.Lock()
	defer f.port.mu.Unlock()
	if n := f.port.unchecked[netip.MustParseAddr("127.0.0.1")]; n > maxPerSource {
		t.Errorf("%d connections of one source are held", n)
	}
}

// A join counts until it is closed.
func TestJoinsAreCounted(t *testing.T) {
	f := start(t)
	l := f.port.Listener(pki.ALPNJoin)
	c, err := tls.Dial("tcp", f.port.Addr().String(), pki.ForJoin(pki.Digest(f.ca.Cert.Raw), time.Now))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	count := func() int {
		f.port.mu.Lock()
		defer f.port.mu.Unlock()
		return f.port.total
	}
	if n := count(); n != 1 {
		t.Errorf("%d connections are counted", n)
	}
	s.Close()
	s.Close() // counts once
	if n := count(); n != 0 {
		t.Errorf("%d connections are counted after the end", n)
	}
}

func TestPortInUse(t *testing.T) {
	f := start(t)
	_, err := Listen(f.port.Addr(), f.me, slog.New(slog.DiscardHandler))
	if overlay.KindOf(err) != overlay.InUse {
		t.Errorf("%v", err)
	}
}
