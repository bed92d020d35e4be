package dns

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	msg "github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay/names"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lab is a server on loopback, with workloads at addresses there, and servers of the host.
type lab struct {
	t      *testing.T
	server *Server
	at     string
	conf   string
	log    bytes.Buffer
	logMu  sync.Mutex
	port   uint16 // of the host's servers
	stop   func()
}

func (l *lab) Write(b []byte) (int, error) {
	l.logMu.Lock()
	defer l.logMu.Unlock()
	return l.log.Write(b)
}

func (l *lab) said() string {
	l.logMu.Lock()
	defer l.logMu.Unlock()
	return l.log.String()
}

// newLab has workloads "one" at 127.0.0.11 and "two" at 127.0.0.12. Each of upstreams is at 127.0.1.N.
func newLab(t *testing.T, upstreams ...msg.HandlerFunc) *lab {
	t.Helper()
	l := &lab{t: t, conf: filepath.Join(t.TempDir(), "resolv.conf")}
	if err := os.WriteFile(l.conf, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	servers := &Servers{file: l.conf}
	l.server = NewServer(servers, slog.New(slog.NewTextHandler(l, nil)))
	b := networkOf(blue, "blue", "127.0.0.0/24", false)
	one, two := own("1", blue, "one", "127.0.0.11"), own("2", blue, "two", "127.0.0.12")
	one.Namespace, two.Namespace = datapath.NS{Path: "one"}, datapath.NS{Path: "two"}
	l.server.Answer((*names.Table)(nil).Next(names.Input{Self: "a1", Networks: []names.Network{b}, Own: []names.Endpoint{one, two}}))
	c, tcp := listen(t, "127.0.0.1", 0)
	l.at = c.LocalAddr().String()
	var serving sync.WaitGroup
	serving.Go(func() { l.server.ServePackets(blue, c.(*net.UDPConn)) })
	serving.Go(func() { l.server.ServeStreams(blue, tcp) })
	l.stop = sync.OnceFunc(func() {
		_ = c.SetReadDeadline(time.Unix(1, 0))
		_ = tcp.(*net.TCPListener).SetDeadline(time.Unix(1, 0))
		serving.Wait()
		l.server.Close()
		c.Close()
		tcp.Close()
	})
	t.Cleanup(l.stop)
	var conf []string
	for i, h := range upstreams {
		ip := fmt.Sprintf("127.0.1.%d", i+1)
		l.upstream(ip, h)
		conf = append(conf, "nameserver "+ip)
	}
	servers.port = l.port
	l.write(strings.Join(conf, "\n"))
	return l
}

func (l *lab) write(conf string) {
	if err := os.WriteFile(l.conf, []byte(conf), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// listen opens a port for UDP and TCP; 0 is any that is free for both.
func listen(t *testing.T, ip string, port uint16) (net.PacketConn, net.Listener) {
	t.Helper()
	for {
		p, err := net.ListenPacket("udp", fmt.Sprintf("%s:%d", ip, port))
		if err != nil {
			t.Fatal(err)
		}
		tcp, err := net.Listen("tcp", p.LocalAddr().String())
		if err == nil {
			return p, tcp
		}
		p.Close()
		if port != 0 {
			t.Fatal(err)
		}
	}
}

// upstream serves by UDP and TCP at an address, at the port of the others.
func (l *lab) upstream(ip string, h msg.HandlerFunc) {
	p, tcp := listen(l.t, ip, l.port)
	l.port = p.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	for _, s := range []*msg.Server{{PacketConn: p, Handler: h}, {Listener: tcp, Handler: h}} {
		up, down := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go func() { defer close(down); _ = s.ActivateAndServe() }()
		<-up
		l.t.Cleanup(func() { _ = s.Shutdown(); <-down })
	}
}

// ask asks from a workload's address.
func (l *lab) ask(from, network, name string, kind uint16) (*msg.Msg, error) {
	c := msg.Client{Net: network, Timeout: 6 * time.Second, Dialer: &net.Dialer{}}
	if ip := net.ParseIP(from); network == "tcp" {
		c.Dialer.LocalAddr = &net.TCPAddr{IP: ip}
	} else {
		c.Dialer.LocalAddr = &net.UDPAddr{IP: ip}
	}
	r, _, err := c.Exchange(new(msg.Msg).SetQuestion(name, kind), l.at)
	return r, err
}

func (l *lab) gets(from, network, name, want string) {
	l.t.Helper()
	r, err := l.ask(from, network, name, msg.TypeA)
	if err != nil {
		l.t.Errorf("%s asks for %s by %s: %v", from, name, network, err)
		return
	}
	raw, err := r.Pack()
	if err != nil {
		l.t.Fatal(err)
	}
	if got := said(l.t, raw, replied); !strings.HasPrefix(got, want) {
		l.t.Errorf("%s gets %s for %s by %s, want %s", from, got, name, network, want)
	}
}

// has replies with an address.
func has(ip string) msg.HandlerFunc {
	return func(w msg.ResponseWriter, q *msg.Msg) {
		m := new(msg.Msg)
		m.SetReply(q)
		m.Answer = []msg.RR{&msg.A{Hdr: header4(q.Question[0].Name, msg.TypeA, 5), A: net.ParseIP(ip)}}
		_ = w.WriteMsg(m)
	}
}

func refuses(code int) msg.HandlerFunc {
	return func(w msg.ResponseWriter, q *msg.Msg) { _ = w.WriteMsg(new(msg.Msg).SetRcode(q, code)) }
}

func TestWorkloadsAreAnswered(t *testing.T) {
	l := newLab(t, has("192.0.2.1"))
	for _, network := range []string{"udp", "tcp"} {
		l.gets("127.0.0.11", network, "two.", "NOERROR A 127.0.0.12")
		l.gets("127.0.0.11", network, "example.com.", "NOERROR A 192.0.2.1")
		l.gets("127.0.0.11", network, "nobody.heddle.internal.", "NXDOMAIN")
	}
	c := msg.Client{Timeout: 50 * time.Millisecond, Dialer: &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP("127.0.0.99")}}}
	if r, _, err := c.Exchange(new(msg.Msg).SetQuestion("two.", msg.TypeA), l.at); err == nil {
		t.Errorf("a stranger gets %s", r)
	}
}

func TestTheHostsServers(t *testing.T) {
	silent := func(msg.ResponseWriter, *msg.Msg) {}
	forged := func(w msg.ResponseWriter, q *msg.Msg) {
		m := new(msg.Msg).SetReply(q)
		m.Id++
		_ = w.WriteMsg(m)
		other := new(msg.Msg).SetQuestion("evil.example.", msg.TypeA)
		other.Id = q.Id
		_ = w.WriteMsg(new(msg.Msg).SetReply(other))
		has("192.0.2.5")(w, q)
	}
	for _, tc := range []struct {
		name      string
		upstreams []msg.HandlerFunc
		want      string
	}{
		{"none", nil, "SERVFAIL"},
		{"the first knows", []msg.HandlerFunc{has("192.0.2.1"), has("192.0.2.2")}, "NOERROR A 192.0.2.1"},
		{"the first fails", []msg.HandlerFunc{refuses(msg.RcodeServerFailure), has("192.0.2.2")}, "NOERROR A 192.0.2.2"},
		{"the first refuses", []msg.HandlerFunc{refuses(msg.RcodeRefused), has("192.0.2.2")}, "NOERROR A 192.0.2.2"},
		{"the first is silent", []msg.HandlerFunc{silent, has("192.0.2.2")}, "NOERROR A 192.0.2.2"},
		{"there is none of that name", []msg.HandlerFunc{refuses(msg.RcodeNameError), has("192.0.2.2")}, "NXDOMAIN"},
		{"all fail", []msg.HandlerFunc{refuses(msg.RcodeServerFailure), refuses(msg.RcodeRefused)}, "REFUSED"},
		{"somebody else replies first", []msg.HandlerFunc{forged}, "NOERROR A 192.0.2.5"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			newLab(t, tc.upstreams...).gets("127.0.0.11", "udp", "example.com.", tc.want)
		})
	}
}

// What is cut off is fetched by TCP, and cut off again only where the workload can't take it.
func TestLongRepliesComeWhole(t *testing.T) {
	long := func(n int) msg.HandlerFunc {
		return func(w msg.ResponseWriter, q *msg.Msg) {
			m := new(msg.Msg).SetReply(q)
			for i := range n {
				m.Answer = append(m.Answer, &msg.A{Hdr: header4(q.Question[0].Name, msg.TypeA, 5), A: net.IPv4(192, 0, 2, byte(i)).To4()})
			}
			if w.LocalAddr().Network() == "udp" {
				m.Answer, m.Truncated = nil, true
			}
			_ = w.WriteMsg(m)
		}
	}
	for _, tc := range []struct {
		network string
		n       int
		cut     bool
	}{{"udp", 20, false}, {"udp", 200, true}, {"tcp", 200, false}} {
		l := newLab(t, long(tc.n))
		r, err := l.ask("127.0.0.11", tc.network, "example.com.", msg.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		if r.Truncated != tc.cut || !tc.cut && len(r.Answer) != tc.n {
			t.Errorf("%s: %d of %d answers, cut off %v", tc.network, len(r.Answer), tc.n, r.Truncated)
		}
	}
}

func TestTheFileIsReadAgain(t *testing.T) {
	l := newLab(t, has("192.0.2.1"))
	l.upstream("127.0.1.9", has("192.0.2.9"))
	l.gets("127.0.0.11", "udp", "example.com.", "NOERROR A 192.0.2.1")
	l.write("# changed\nnameserver 127.0.1.9\noptions ndots:2\n")
	deadline := time.Now().Add(3 * time.Second)
	for {
		if r, err := l.ask("127.0.0.11", "udp", "example.com.", msg.TypeA); err == nil && len(r.Answer) == 1 && strings.Contains(r.Answer[0].String(), "192.0.2.9") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the other server is not asked")
		}
	}
}

func TestResolvConf(t *testing.T) {
	text := "; a comment\nsearch example.com\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver bad\n nameserver\tfd00::53 \nnameserver 9.9.9.9\nnameserver 8.8.8.8\n"
	if got := fmt.Sprint(parse(text, 53)); got != "[127.0.0.53:53 [fe80::1%eth0]:53 [fd00::53]:53]" {
		t.Errorf("the servers are %s", got)
	}
}

// One workload's questions that nobody answers take no place of another's; what is too much is
// dropped.
func TestOneWorkloadTakesNoOthersPlace(t *testing.T) {
	var asked atomic.Int32
	l := newLab(t, func(w msg.ResponseWriter, q *msg.Msg) {
		if strings.HasPrefix(q.Question[0].Name, "slow") {
			asked.Add(1)
			return
		}
		has("192.0.2.1")(w, q)
	})
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP("127.0.0.11")}, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(l.at)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 3 * mostForwards {
		raw, _ := new(msg.Msg).SetQuestion(fmt.Sprintf("slow%d.example.com.", i), msg.TypeA).Pack()
		if _, err := c.Write(raw); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	l.gets("127.0.0.12", "udp", "example.com.", "NOERROR A 192.0.2.1")
	l.gets("127.0.0.12", "udp", "one.", "NOERROR A 127.0.0.11")
	l.gets("127.0.0.11", "udp", "two.", "NOERROR A 127.0.0.12")
	if took := time.Since(start); took > time.Second {
		t.Errorf("others waited for %s", took)
	}
	if n := asked.Load(); n > mostForwards {
		t.Errorf("%d of a workload's questions are under way", n)
	}
}

func TestBounds(t *testing.T) {
	var b bounds
	now := time.Now()
	one, two := datapath.NS{Path: "one"}, datapath.NS{Path: "two"}
	asked := func(ns datapath.NS, at time.Time) (n int) {
		for b.question(ns, at) {
			n++
		}
		return n
	}
	if n := asked(one, now); n != burst {
		t.Errorf("%d questions at once", n)
	}
	if n := asked(two, now); n != burst {
		t.Errorf("%d questions at once beside another's", n)
	}
	if n := asked(one, now.Add(10*time.Millisecond)); n < perSecond/100-1 || n > perSecond/100 {
		t.Errorf("%d questions in 10 ms", n)
	}
	var dones []func()
	for {
		done, ok := b.stream(one, now)
		if !ok {
			break
		}
		dones = append(dones, done)
	}
	if len(dones) != mostStreams {
		t.Errorf("%d connections", len(dones))
	}
	b.forget(now.Add(time.Hour))
	if len(b.of) != 1 {
		t.Errorf("%d workloads are remembered, want the one with connections", len(b.of))
	}
	for _, done := range dones {
		done()
	}
	if b.streams != 0 || b.of[one].streams != 0 {
		t.Errorf("%d connections are left", b.streams)
	}
}

// A server of the host that is a workload, and asks its own resolver what it is asked, is left out.
func TestALoopIsFound(t *testing.T) {
	var own atomic.Pointer[lab]
	var back atomic.Int32
	loops := func(w msg.ResponseWriter, q *msg.Msg) {
		back.Add(1)
		if r, err := own.Load().ask("127.0.0.12", "udp", q.Question[0].Name, q.Question[0].Qtype); err == nil {
			r.Id = q.Id
			_ = w.WriteMsg(r)
		}
	}
	l := newLab(t, loops)
	own.Store(l)
	l.gets("127.0.0.11", "udp", "example.com.", "SERVFAIL")
	deadline := time.Now().Add(5 * time.Second)
	for !strings.Contains(l.said(), "127.0.1.1") {
		if time.Now().After(deadline) {
			t.Fatalf("nobody says so: %s", l.said())
		}
		time.Sleep(time.Millisecond)
	}
	before := back.Load()
	start := time.Now()
	l.gets("127.0.0.11", "udp", "other.example.com.", "SERVFAIL")
	if took := time.Since(start); took > time.Second || back.Load() > before+mostForwards {
		t.Errorf("it is asked again: %d times, for %s", back.Load()-before, took)
	}
	if n := strings.Count(l.said(), "left out"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
}

// What is under way at the end is ended.
func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	got, release := make(chan struct{}), make(chan struct{})
	l := newLab(t, func(w msg.ResponseWriter, q *msg.Msg) {
		if q.Question[0].Qtype == msg.TypeA {
			close(got)
			<-release
		}
		has("192.0.2.1")(w, q)
	})
	done := make(chan error, 1)
	go func() {
		_, err := l.ask("127.0.0.11", "udp", "example.com.", msg.TypeA)
		done <- err
	}()
	<-got
	time.AfterFunc(50*time.Millisecond, func() { close(release) })
	l.stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestStreamsThatAreNone(t *testing.T) {
	l := newLab(t)
	for what, b := range map[string][]byte{
		"too long":      {0xff, 0xff, 1, 2, 3},
		"no question":   {0, 3, 1, 2, 3},
		"only a length": {0},
	} {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.11")}}
		c, err := d.DialContext(context.Background(), "tcp", l.at)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(b)
		_ = c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
			t.Errorf("%s: %d bytes, %v", what, n, err)
		}
		c.Close()
	}
	l.gets("127.0.0.11", "tcp", "two.", "NOERROR A 127.0.0.12")
}
