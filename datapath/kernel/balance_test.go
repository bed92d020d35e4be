package kernel

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// segment is some namespaces at a bridge, of which the first is a client.
type segment struct {
	*host
	ns []datapath.NS
}

func newSegment(t testing.TB, h *host, n int) *segment {
	s := &segment{host: h}
	at := h.lab.Path("host")
	ip(t, at, "link", "add", "br9", "type", "bridge")
	ip(t, at, "link", "set", "br9", "up")
	for i := range n {
		name := fmt.Sprint("at", i)
		must(t, h.lab.Make(name, func() error { return nil }))
		ns := datapath.NS{Path: h.lab.Path(name)}
		s.ns = append(s.ns, ns)
		ip(t, ns.Path, "link", "set", "lo", "up")
		ip(t, ns.Path, "link", "add", "eth0", "type", "veth", "peer", "name", fmt.Sprint("p", i), "netns", at)
		ip(t, ns.Path, "link", "set", "eth0", "up")
		ip(t, at, "link", "set", fmt.Sprint("p", i), "master", "br9", "up")
		for _, six := range []bool{false, true} {
			bits := "/24"
			if six {
				bits = "/64"
			}
			ip(t, ns.Path, "addr", "add", seat(i, six).String()+bits, "dev", "eth0", "nodad")
		}
	}
	return s
}

// seat is the address of the Nth at the segment; 100 and up are VIPs.
func seat(i int, six bool) netip.Addr {
	if six {
		return netip.AddrFrom16([16]byte{0xfd, 9, 15: byte(i)})
	}
	return netip.AddrFrom4([4]byte{10, 9, 0, byte(i)})
}

const (
	behindPort = 8080
	frontPort  = 80
)

// at are the sockets of seats, of both families.
func at(seats ...int) (out []netip.AddrPort) {
	for _, i := range seats {
		out = append(out, netip.AddrPortFrom(seat(i, false), behindPort), netip.AddrPortFrom(seat(i, true), behindPort))
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

func newVIP(n int, backends ...int) *datapath.VIP {
	v := &datapath.VIP{Service: fmt.Sprint("s", n), Addrs: []netip.Addr{seat(n, false), seat(n, true)}}
	for _, proto := range []string{"tcp", "udp"} {
		v.Ports = append(v.Ports, datapath.VIPPort{Proto: proto, Port: frontPort, Backends: at(backends...)})
	}
	return v
}

// serve answers each connection and each packet at a seat with the seat's number and the address that
// it comes from.
func (s *segment) serve(t testing.TB, i int) {
	t.Helper()
	for _, six := range []bool{false, true} {
		local := netip.AddrPortFrom(seat(i, six), behindPort)
		var l net.Listener
		inside(t, s.ns[i].Path, func() (err error) {
			l, err = net.Listen("tcp", local.String())
			return err
		})
		u := udp(t, s.ns[i].Path, local)
		u.SetReadDeadline(time.Time{})
		t.Cleanup(func() { l.Close() })
		answer := func(from net.Addr) []byte {
			a := netip.MustParseAddrPort(from.String())
			return fmt.Appendf(nil, "%d %s", i, a.Addr().Unmap())
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { c.Close() }) // its flow may have ended without a word
				go func() {
					for b := make([]byte, 1); ; {
						if _, err := c.Read(b); err != nil {
							return
						}
						_, _ = c.Write(answer(c.RemoteAddr()))
					}
				}()
			}
		}()
		go func() {
			for b := make([]byte, 10); ; {
				_, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(answer(from), from)
			}
		}()
	}
}

// dial opens a flow from the client.
func (s *segment) dial(t testing.TB, proto string, to netip.Addr, port uint16) (c net.Conn, err error) {
	t.Helper()
	inside(t, s.ns[0].Path, func() error {
		c, err = net.DialTimeout(proto, netip.AddrPortFrom(to, port).String(), 2*time.Second)
		return nil
	})
	return c, err
}

// ask sends something by a flow, and answers which seat has answered.
func ask(c net.Conn) (string, error) {
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		return "", err
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// once asks by a flow of its own.
func (s *segment) once(t testing.TB, proto string, to netip.Addr, port uint16) (string, error) {
	t.Helper()
	c, err := s.dial(t, proto, to, port)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return ask(c)
}

// hold makes the client's rules those of the VIPs, of which those in was stand.
func (s *segment) hold(t testing.TB, was, now []*datapath.VIP) {
	t.Helper()
	b, err := s.Balance(s.ns[0])
	must(t, err)
	defer b.Close()
	st, err := b.Read(was)
	must(t, err)
	if len(was) > 0 && (!st.Sound || len(datapath.ChangedVIPs(st.VIPs, was)) > 0) {
		t.Fatalf("sound %v, there %v", st.Sound, st.VIPs)
	}
	changes := datapath.ChangedVIPs(was, now)
	_, err = b.Write(st.Generation, !st.Sound, changes)
	must(t, err)
	st, err = b.Read(now)
	must(t, err)
	if !st.Sound || len(datapath.ChangedVIPs(st.VIPs, now)) > 0 {
		t.Fatalf("after it was written: sound %v, there %v\n%s", st.Sound, st.VIPs, run(t, s.ns[0].Path, "nft", "list", "ruleset"))
	}
	must(t, b.Flush(now, nil))
}

// A VIP leads to its backends, those of its own family and each as often as another, itself among
// them; and refuses what nobody serves, at once.
func TestVIP(t *testing.T) {
	s := newSegment(t, newHost(t), 3)
	for i := range 3 {
		s.serve(t, i)
	}
	none := []*datapath.VIP{newVIP(101)}
	s.hold(t, nil, none)
	refused := func(proto string, to netip.AddrPort) {
		t.Helper()
		begin := time.Now()
		_, err := s.once(t, proto, to.Addr(), to.Port())
		if is := errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EPERM); !is || time.Since(begin) > 500*time.Millisecond {
			t.Errorf("%s to %s: %v after %s", proto, to, err, time.Since(begin))
		}
	}
	for _, proto := range []string{"tcp", "udp"} { // nobody is behind anything
		refused(proto, netip.AddrPortFrom(seat(101, false), frontPort))
		refused(proto, netip.AddrPortFrom(seat(101, true), frontPort))
	}
	s.hold(t, none, []*datapath.VIP{newVIP(100, 0, 1, 2), none[0], newVIP(102, 1)})
	for _, proto := range []string{"tcp", "udp"} {
		for _, six := range []bool{false, true} {
			t.Run(fmt.Sprint(proto, " IPv6 ", six), func(t *testing.T) {
				const tries = 300
				by := map[string]int{}
				for range tries {
					got, err := s.once(t, proto, seat(100, six), frontPort)
					must(t, err)
					who, from, _ := strings.Cut(got, " ")
					if from != seat(0, six).String() {
						t.Fatalf("%s sees the client as %s", who, from)
					}
					by[who]++
				}
				if len(by) != 3 {
					t.Errorf("answers %v", by)
				}
				for who, n := range by {
					if n < tries/3/2 || n > tries/3*3/2 {
						t.Errorf("%s has %d of %d", who, n, tries)
					}
				}
				if got, err := s.once(t, proto, seat(102, six), frontPort); err != nil || !strings.HasPrefix(got, "1 ") {
					t.Errorf("one backend: %q, %v", got, err)
				}
				refused(proto, netip.AddrPortFrom(seat(101, six), frontPort))
				refused(proto, netip.AddrPortFrom(seat(100, six), 81))
				if got, err := s.once(t, proto, seat(1, six), behindPort); err != nil || !strings.HasPrefix(got, "1 ") {
					t.Errorf("past the VIP: %q, %v", got, err)
				}
			})
		}
	}
}

// What goes to a VIP is counted by backend, each connection and UDP flow once.
func TestTrafficIsCounted(t *testing.T) {
	s := newSegment(t, newHost(t), 3)
	wanted := datapath.Balancer{NS: s.ns[0], VIPs: []*datapath.VIP{newVIP(100, 1, 2), newVIP(101, 1)}}
	if got, err := s.Traffic(wanted); err != nil || len(got) != 0 {
		t.Errorf("without rules: %v, %v", got, err)
	}
	s.hold(t, nil, wanted.VIPs)
	for i := range 3 {
		s.serve(t, i)
	}
	const tries = 20
	want := map[datapath.Traffic]bool{}
	for _, six := range []bool{false, true} {
		by := map[string]uint64{}
		for i := range tries {
			c, err := s.dial(t, []string{"tcp", "udp"}[i%2], seat(100, six), frontPort)
			must(t, err)
			for range 3 { // by the same flow
				got, err := ask(c)
				must(t, err)
				if who, _, _ := strings.Cut(got, " "); who == "1" || who == "2" {
					by[who]++
				}
			}
			c.Close()
		}
		for i, who := range []string{"1", "2"} {
			want[datapath.Traffic{Service: "s100", Backend: seat(i+1, six), Flows: by[who] / 3}] = true
		}
		want[datapath.Traffic{Service: "s101", Backend: seat(1, six)}] = true
	}
	got, err := s.Traffic(wanted)
	must(t, err)
	for _, g := range got {
		if !want[g] {
			t.Errorf("%+v is not among %v", g, want)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// A flow stays where it is while its backend is used or kept; then UDP goes elsewhere, and TCP ends.
func TestFlowsOfBackends(t *testing.T) {
	s := newSegment(t, newHost(t), 3)
	for i := range 3 {
		s.serve(t, i)
	}
	for _, six := range []bool{false, true} {
		for _, proto := range []string{"tcp", "udp"} {
			t.Run(fmt.Sprint(proto, " IPv6 ", six), func(t *testing.T) {
				was := []*datapath.VIP{newVIP(100, 1)}
				s.hold(t, nil, was)
				c, err := s.dial(t, proto, seat(100, six), frontPort)
				must(t, err)
				defer c.Close()
				direct, err := s.dial(t, proto, seat(1, six), behindPort)
				must(t, err)
				defer direct.Close()
				answers := func(c net.Conn, want string) {
					t.Helper()
					if got, err := ask(c); err != nil || !strings.HasPrefix(got, want+" ") {
						t.Errorf("%q, %v; want %s", got, err, want)
					}
				}
				answers(c, "1")
				answers(direct, "1")
				kept := newVIP(100, 2)
				for i := range kept.Ports {
					kept.Ports[i].Kept = at(1)
				}
				s.hold(t, was, []*datapath.VIP{kept})
				answers(c, "1")
				if got, _ := s.once(t, proto, seat(100, six), frontPort); !strings.HasPrefix(got, "2 ") {
					t.Errorf("a new one goes to %q", got)
				}
				s.hold(t, []*datapath.VIP{kept}, []*datapath.VIP{newVIP(100, 2)})
				if proto == "udp" {
					answers(c, "2")
				} else if got, err := ask(c); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, io.EOF) {
					t.Errorf("TCP to a backend that is gone: %q, %v", got, err)
				}
				answers(direct, "1")
				b, err := s.Balance(s.ns[0])
				must(t, err)
				must(t, b.Remove())
				b.Close()
			})
		}
	}
}

// rules are the client's tables as nft prints them, with handles.
func (s *segment) rules(t testing.TB) string {
	return run(t, s.ns[0].Path, "nft", "-a", "list", "ruleset")
}

// What changes is the chain that leads elsewhere, and nothing else; and what is right is not written.
func TestVIPsAreChangedOneByOne(t *testing.T) {
	s := newSegment(t, newHost(t), 1)
	run(t, s.ns[0].Path, "nft", "add", "table", "inet", "mine")
	run(t, s.ns[0].Path, "nft", "add", "chain", "inet", "mine", "out", "{ type nat hook output priority -100; }")
	all := []*datapath.VIP{newVIP(100, 1, 2), newVIP(101, 1), newVIP(102)}
	s.hold(t, nil, all)
	before := s.rules(t)
	s.hold(t, all, all)
	if now := s.rules(t); now != before {
		t.Errorf("what was right was written again:\n%s\n%s", before, now)
	}
	more := slices.Clone(all)
	more[1] = newVIP(101, 1, 2)
	more[1].Ports[1] = all[1].Ports[1]
	s.hold(t, all, more)
	var differ []string
	now := strings.Split(s.rules(t), "\n")
	for _, line := range now {
		if !strings.Contains(before, line) {
			differ = append(differ, line)
		}
	}
	for _, line := range differ { // the maps' lines name their elements
		if !strings.Contains(line, "10.9.0.101 . tcp . 80") && !strings.Contains(line, "fd09::65 . tcp . 80") {
			t.Errorf("this has changed too: %s", line)
		}
	}
	if len(differ) == 0 || len(differ) > 8 {
		t.Errorf("%d lines have changed:\n%s", len(differ), strings.Join(differ, "\n"))
	}
	s.hold(t, more, []*datapath.VIP{more[2]})
	if now := s.rules(t); strings.Contains(now, "10.9.0.101") || strings.Contains(now, "10.9.0.100") {
		t.Errorf("something is left:\n%s", now)
	}
	b, err := s.Balance(s.ns[0])
	must(t, err)
	defer b.Close()
	must(t, b.Remove())
	must(t, b.Remove())
	if now := s.rules(t); strings.Contains(now, balancerTable) || !strings.Contains(now, "mine") {
		t.Errorf("after removal:\n%s", now)
	}
}

// A table of that name that others have made stays as it is.
func TestForeignBalancer(t *testing.T) {
	s := newSegment(t, newHost(t), 1)
	run(t, s.ns[0].Path, "nft", "add", "table", "inet", balancerTable)
	run(t, s.ns[0].Path, "nft", "add", "chain", "inet", balancerTable, "mine")
	run(t, s.ns[0].Path, "nft", "add", "rule", "inet", balancerTable, "mine", "accept")
	before := s.rules(t)
	b, err := s.Balance(s.ns[0])
	must(t, err)
	defer b.Close()
	if _, err := b.Read(nil); datapath.FaultOf(err) != datapath.Foreign {
		t.Errorf("reading it: %v", err)
	}
	if err := b.Remove(); datapath.FaultOf(err) != datapath.Foreign {
		t.Errorf("removing it: %v", err)
	}
	if now := s.rules(t); now != before {
		t.Errorf("it was changed:\n%s", now)
	}
}

// Damage of any kind is seen.
func TestDamagedBalancer(t *testing.T) {
	s := newSegment(t, newHost(t), 1)
	all := []*datapath.VIP{newVIP(100, 1, 2), newVIP(101, 1), newVIP(102)}
	for _, damage := range []string{
		"flush ruleset",
		"flush table inet heddle-services",
		"flush chain inet heddle-services output",
		"flush chain inet heddle-services spread4-2",
		"add element inet heddle-services backends4 { 10.9.0.100 . tcp . 80 . 7 : 10.9.0.66 . 80 }",
		"flush map inet heddle-services backends6",
		"flush map inet heddle-services ports4",
		"flush set inet heddle-services vips6",
		"delete element inet heddle-services vips4 { 10.9.0.100 }",
		"add element inet heddle-services vips4 { 10.9.0.7 }",
		"add element inet heddle-services ports4 { 10.9.0.100 . tcp . 90 : drop }",
		"insert rule inet heddle-services output accept",
		"insert rule inet heddle-services spread6-1 accept",
		"add chain inet heddle-services more",
	} {
		t.Run(damage, func(t *testing.T) {
			s.hold(t, nil, all)
			run(t, s.ns[0].Path, "nft", damage)
			b, err := s.Balance(s.ns[0])
			must(t, err)
			defer b.Close()
			st, err := b.Read(all)
			must(t, err)
			if st.Sound && len(datapath.ChangedVIPs(st.VIPs, all)) == 0 {
				t.Fatal("it is not seen")
			}
			_, err = b.Write(st.Generation, !st.Sound, datapath.ChangedVIPs(st.VIPs, all))
			must(t, err)
			if st, err = b.Read(all); err != nil || !st.Sound || len(datapath.ChangedVIPs(st.VIPs, all)) > 0 {
				t.Errorf("after the repair: %+v, %v", st, err)
			}
			must(t, b.Remove())
		})
	}
}

// Balancers that stand are known by a number in their comments: whoever changes the rules must raise
// balancerVersion, or nodes keep the old ones when heddle is upgraded, and then write here what this
// test says.
func TestBalancerVersion(t *testing.T) {
	const version, rules = 1, "3012908bf4408c04"
	all := sha256.New()
	put := func(exprs []expr.Any) {
		for _, e := range exprs {
			b, err := expr.Marshal(unix.NFPROTO_INET, e)
			must(t, err)
			all.Write(b)
		}
	}
	for _, r := range sharedRules() {
		put(r.exprs)
	}
	for _, f := range families {
		put(spread(f, 7))
	}
	if got := fmt.Sprintf("%x", all.Sum(nil)[:8]); got != rules || balancerVersion != version {
		t.Errorf("the rules of balancerVersion %d are %s; those of version %d are %s", balancerVersion, got, version, rules)
	}
}

// Who writes on top of what he does not know writes nothing.
func TestBalancerOfAnotherGeneration(t *testing.T) {
	s := newSegment(t, newHost(t), 1)
	b, err := s.Balance(s.ns[0])
	must(t, err)
	defer b.Close()
	st, err := b.Read(nil)
	must(t, err)
	g, err := b.Write(st.Generation, true, nil)
	must(t, err)
	if now, err := b.Generation(); err != nil || now != g {
		t.Errorf("generation %d, %v; want %d", now, err, g)
	}
	before := s.rules(t)
	if _, err := b.Write(st.Generation, false, []datapath.VIPChange{{Now: newVIP(100, 1)}}); !errors.Is(err, datapath.ErrOtherGeneration) {
		t.Errorf("written to another generation: %v", err)
	}
	if s.rules(t) != before {
		t.Error("something was written")
	}
}

// Changes in namespaces of others are told, as soon as they were opened once, and nothing keeps them
// alive.
func TestWatchRules(t *testing.T) {
	s := newSegment(t, newHost(t), 2)
	b, err := s.Balance(s.ns[0])
	must(t, err)
	b.Close()
	ctx, cancel := context.WithCancel(t.Context())
	type news struct {
		ns         datapath.NS
		generation uint32
	}
	heard, ended := make(chan news, 100), make(chan error, 1)
	go func() {
		ended <- s.WatchRules(ctx, func(ns datapath.NS, g uint32, lost bool) { heard <- news{ns, g} })
	}()
	defer func() { cancel(); <-ended }()
	for begin := time.Now(); ; {
		run(t, s.ns[1].Path, "nft", "add", "table", "inet", "unknown")
		run(t, s.ns[0].Path, "nft", "add", "table", "inet", fmt.Sprint("t", time.Since(begin).Microseconds()))
		select {
		case n := <-heard:
			if n.ns != s.ns[0] || n.generation == 0 {
				t.Fatalf("heard %+v", n)
			}
			return
		case <-time.After(100 * time.Millisecond): // it may not listen yet
		}
		if time.Since(begin) > 5*time.Second {
			t.Fatal("nothing is heard")
		}
	}
}
