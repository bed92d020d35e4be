package raftnode

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/cluster/control"
	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// journal is a State that remembers its commands.
type journal struct {
	mu   sync.Mutex
	list []string
}

func (j *journal) Apply(_ uint64, c []byte) (any, error) {
	if string(c) == "unknown" {
		return nil, errors.New("command of version 9 is unknown here")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.list = append(j.list, string(c))
	return len(j.list), nil
}

func (j *journal) Snapshot() (SnapshotWriter, error) {
	list := j.all()
	return func(w io.Writer) error {
		for _, s := range list {
			if err := binary.Write(w, binary.BigEndian, uint32(len(s))); err != nil {
				return err
			}
			if _, err := io.WriteString(w, s); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

func (j *journal) Restore(r io.Reader) error {
	b, err := io.ReadAll(r)
	var list []string
	for in := bytes.NewReader(b); in.Len() > 0 && err == nil; {
		var n uint32
		err = binary.Read(in, binary.BigEndian, &n)
		s := make([]byte, n)
		_, _ = io.ReadFull(in, s)
		list = append(list, string(s))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.list = list
	return err
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.list)
}

// member is a manager as these tests need one: an identity, a control port, a raft node.
type member struct {
	*Node
	c     *group
	cred  *pki.Credentials
	dir   string
	port  *control.Port
	state *journal
	hung  chan struct{} // while open, the disk hangs
	stop  func() error
	ended chan error
}

type group struct {
	t       *testing.T
	ca      pki.CA
	members []*member
	timing  Timing
}

func newGroup(t *testing.T, size int) *group {
	ca, err := pki.NewCA("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	g := &group{t: t, ca: ca, timing: DefaultTiming}
	for range size {
		g.add()
	}
	t.Cleanup(func() {
		for _, m := range g.members {
			m.end()
		}
	})
	return g
}

func (g *group) credentials(role overlay.Role) *pki.Credentials {
	id, err := pki.NewIdentity()
	if err != nil {
		g.t.Fatal(err)
	}
	p := overlay.Place{Cluster: "c1", Epoch: 1}
	der, err := g.ca.Sign(pki.Subject{Place: p, Node: id.Node, Role: role}, id.Public(), time.Now())
	if err != nil {
		g.t.Fatal(err)
	}
	if id, err = id.Joined(p, der, g.ca.Cert.Raw); err != nil {
		g.t.Fatal(err)
	}
	c, err := pki.NewCredentials(id, func(pki.Subject) bool { return false }, time.Now)
	if err != nil {
		g.t.Fatal(err)
	}
	return c
}

func (g *group) add() *member {
	m := &member{c: g, cred: g.credentials(overlay.Manager), dir: g.t.TempDir()}
	g.members = append(g.members, m)
	var err error
	if m.port, err = control.Listen(netip.MustParseAddrPort("127.0.0.1:0"), m.cred, slog.New(slog.DiscardHandler)); err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.port.Run(ctx) }()
	g.t.Cleanup(func() { cancel(); <-done })
	return m
}

// slowStore hangs in StoreLogs for as long as the member's disk does.
type slowStore struct {
	store
	m *member
}

func (s slowStore) StoreLogs(l []*raft.Log) error {
	if s.m.hung != nil {
		<-s.m.hung
	}
	return s.store.StoreLogs(l)
}

func (m *member) open() {
	s, err := openStore(m.dir)
	if err != nil {
		m.c.t.Fatal(err)
	}
	m.state = &journal{}
	m.Node, err = open(Config{
		Self: m.cred.Identity().Node, Dir: m.dir, State: m.state, Credentials: m.cred,
		Listen:  func() net.Listener { return m.port.Listener(pki.ALPNRaft) },
		Address: func(overlay.NodeID) (netip.AddrPort, bool) { return netip.AddrPort{}, false },
		Timing:  m.c.timing, Log: logger(),
	}, slowStore{s, m})
	if err != nil {
		m.c.t.Fatal(err)
	}
}

func logger() *slog.Logger {
	if os.Getenv("HEDDLE_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.DiscardHandler)
}

func (m *member) run() {
	ctx, cancel := context.WithCancel(context.Background())
	m.ended = make(chan error, 1)
	n, ended := m.Node, m.ended
	go func() { ended <- n.Run(ctx) }()
	m.stop = func() error { cancel(); return <-ended }
}

func (m *member) end() {
	if m.stop != nil {
		if err := m.stop(); err != nil {
			m.c.t.Errorf("Run: %v", err)
		}
		m.stop = nil
	}
}

func (m *member) wait(what string, ok func() bool) {
	m.c.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			m.c.t.Fatalf("no %s in time", what)
		}
	}
}

// up makes a cluster of all members.
func (g *group) up() {
	g.t.Helper()
	for i, m := range g.members {
		m.open()
		if i == 0 {
			if err := m.Bootstrap(m.port.Addr()); err != nil {
				g.t.Fatal(err)
			}
		}
		m.run()
	}
	first := g.members[0]
	first.wait("leader", first.Leads)
	for _, m := range g.members[1:] {
		if err := first.AddVoter(g.ctx(), m.Self, m.port.Addr()); err != nil {
			g.t.Fatal(err)
		}
	}
}

func (g *group) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	g.t.Cleanup(cancel)
	return ctx
}

func (g *group) leader() *member {
	var l *member
	g.members[0].wait("leader", func() bool {
		i := slices.IndexFunc(g.members, func(m *member) bool { return m.stop != nil && m.Leads() })
		if i >= 0 {
			l = g.members[i]
		}
		return i >= 0
	})
	return l
}

// propose tries all members until one takes the command.
func (g *group) propose(s string) {
	g.members[0].wait("accepted write", func() bool {
		return slices.ContainsFunc(g.members, func(m *member) bool {
			if m.stop == nil {
				return false
			}
			_, err := m.Propose(g.ctx(), []byte(s))
			return err == nil
		})
	})
}

func (g *group) agree(want []string) {
	g.t.Helper()
	for _, m := range g.members {
		if m.stop != nil {
			m.wait("agreement", func() bool { return slices.Equal(m.state.all(), want) })
		}
	}
}

func TestThreeManagers(t *testing.T) {
	g := newGroup(t, 3)
	begin := time.Now()
	g.up()
	t.Logf("three managers after %v", time.Since(begin))
	l := g.leader()
	if r, err := l.Propose(g.ctx(), []byte("a")); err != nil || r != 1 {
		t.Fatalf("%v %v", r, err)
	}
	if err := l.VerifyLeader(g.ctx()); err != nil {
		t.Error(err)
	}
	for _, m := range g.members {
		if m == l {
			continue
		}
		if _, err := m.Propose(g.ctx(), []byte("x")); !errors.Is(err, ErrNotLeader) || overlay.KindOf(err) != overlay.Unavailable {
			t.Errorf("a follower took a write: %v", err)
		}
		if err := m.VerifyLeader(g.ctx()); !errors.Is(err, ErrNotLeader) {
			t.Errorf("a follower answers for the leader: %v", err)
		}
		m.wait("word of the leader", func() bool { return m.Leader() == l.Self })
	}
	g.agree([]string{"a"})

	// A stop hands leadership over: the next write does not wait for an election.
	l.end()
	begin = time.Now()
	g.propose("b")
	if d := time.Since(begin); d > 500*time.Millisecond {
		t.Errorf("the write after a handover took %v", d)
	}
	l.open()
	l.run()
	g.agree([]string{"a", "b"})

	// Take one out.
	l = g.leader()
	out := g.members[(slices.Index(g.members, l)+1)%3]
	if err := l.Remove(g.ctx(), out.Self); err != nil {
		t.Fatal(err)
	}
	if s, err := l.Servers(); err != nil || len(s) != 2 {
		t.Errorf("%v %v", s, err)
	}
}

func TestSnapshot(t *testing.T) {
	g := newGroup(t, 1)
	g.up()
	m := g.members[0]
	g.propose("a")
	if err := m.raft.Load().Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	g.propose("b")
	m.end()
	begin := time.Now()
	m.open()
	if used, err := m.Used(); err != nil || !used {
		t.Errorf("%v %v", used, err)
	}
	m.run()
	m.wait("leader", m.Leads)
	if d := time.Since(begin); d > 500*time.Millisecond {
		t.Errorf("a lone manager leads after %v", d)
	}
	g.agree([]string{"a", "b"})
}

func TestWorkerOpensNoStream(t *testing.T) {
	g := newGroup(t, 1)
	g.up()
	w := &stream{Listener: g.members[0].port.Listener("unused/1"), cred: g.credentials(overlay.Worker), open: map[*streamConn]bool{}}
	defer w.Close()
	c, err := w.Dial(serverAddress(g.members[0].Self, g.members[0].port.Addr().String()), time.Second)
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a worker's stream is open: %v", err)
	}
	if n := len(g.members[0].stream.Load().open); n != 0 {
		t.Errorf("%d streams were taken", n)
	}
}

// A leader whose disk hangs gives up, says why, and another takes over.
func TestHungDisk(t *testing.T) {
	g := newGroup(t, 3)
	g.timing.Write = time.Second
	g.up()
	g.propose("a")
	g.agree([]string{"a"})
	l := g.leader()
	l.hung = make(chan struct{})
	begin := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := l.Propose(ctx, []byte("lost")); !errors.Is(err, ErrUnknown) {
		t.Errorf("%v", err)
	}
	err := <-l.ended
	l.stop = nil
	if err == nil || !strings.Contains(err.Error(), "did not finish a write") {
		t.Errorf("Run: %v", err)
	}
	g.propose("b")
	t.Logf("next write %v after the disk hung (deadline %v)", time.Since(begin), g.timing.Write)
	g.agree([]string{"a", "b"})
	close(l.hung)
}

// A manager whose disk is slow just after its election leads as soon as the disk is well.
func TestSlowDiskAtTheElection(t *testing.T) {
	g := newGroup(t, 1)
	m := g.members[0]
	m.open()
	if err := m.Bootstrap(m.port.Addr()); err != nil {
		t.Fatal(err)
	}
	m.hung = make(chan struct{})
	m.run()
	m.wait("election", func() bool { return m.Leader() == m.Self })
	time.AfterFunc(enqueueTimeout+500*time.Millisecond, func() { close(m.hung) }) // longer than one barrier waits
	m.wait("leader", m.Leads)
}

func TestUnknownCommandStops(t *testing.T) {
	g := newGroup(t, 1)
	g.up()
	m := g.members[0]
	if _, err := m.Propose(g.ctx(), []byte("unknown")); overlay.KindOf(err) != overlay.Internal {
		t.Errorf("%v", err)
	}
	if err := <-m.ended; err == nil || !strings.Contains(err.Error(), "version 9 is unknown") {
		t.Errorf("Run: %v", err)
	}
	m.stop = nil
	if len(m.state.all()) != 0 {
		t.Error("it was applied")
	}
}

// TestFailover measures leader loss. HEDDLE_ROUNDS and HEDDLE_LOAD (processes that burn CPU)
// make it the measurement of DESIGN.md.
func TestFailover(t *testing.T) {
	rounds, _ := strconv.Atoi(os.Getenv("HEDDLE_ROUNDS"))
	load, _ := strconv.Atoi(os.Getenv("HEDDLE_LOAD"))
	if rounds == 0 {
		rounds = 2
	}
	g := newGroup(t, 3)
	g.up()
	var want []string
	g.propose("begin")
	want = append(want, "begin")
	for range load {
		burn := exec.Command("sh", "-c", "while :; do :; done")
		if err := burn.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = burn.Process.Kill(); _ = burn.Wait() })
	}
	if quiet, _ := time.ParseDuration(os.Getenv("HEDDLE_QUIET")); quiet > 0 {
		terms := g.leader().Stats().Term
		for end := time.Now().Add(quiet); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			g.propose("q")
			want = append(want, "q")
		}
		t.Logf("needless elections in %v: %d", quiet, g.leader().Stats().Term-terms)
	}
	var took []time.Duration
	for i := range rounds {
		g.agree(want)
		l := g.leader()
		begin := time.Now()
		l.store.fail(errors.New("killed by the test"))
		<-l.ended
		l.stop = nil
		s := strconv.Itoa(i)
		g.propose(s)
		took = append(took, time.Since(begin))
		want = append(want, s)
		l.wait("raft to let go of its log", func() bool { // the disk is whole: only the flock has to go
			s, err := openStore(l.dir)
			if err == nil {
				s.Close()
			}
			return err == nil
		})
		l.open()
		l.run()
	}
	g.agree(want)
	slices.Sort(took)
	at := func(q float64) time.Duration {
		return took[min(len(took)-1, int(q*float64(len(took))))].Round(time.Millisecond)
	}
	t.Logf("%d leaders lost, %d burning processes: next write p50 %v p90 %v p99 %v max %v", rounds, load, at(.5), at(.9), at(.99), at(1))
	if at(.99) > 3*time.Second {
		t.Error("slower than promised")
	}
}
