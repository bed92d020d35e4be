package kernel

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/datapathtest"
	"github.com/heddle-net/heddle/datapath/netns"
)

// in runs fn in a namespace and returns what it makes.
func in[T any](t testing.TB, path string, fn func() (T, error)) (v T, err error) {
	t.Helper()
	f, err := netns.Open(path, 0)
	must(t, err)
	defer f.Close()
	err = netns.Do(f, func() (err error) { v, err = fn(); return err })
	return v, err
}

// tellsWho answers at a port of a namespace, TCP and UDP, with a name and who asks.
func tellsWho(t testing.TB, path, name string, port uint16) {
	t.Helper()
	l, err := in(t, path, func() (net.Listener, error) { return net.Listen("tcp", fmt.Sprintf(":%d", port)) })
	must(t, err)
	p, err := in(t, path, func() (net.PacketConn, error) { return net.ListenPacket("udp", fmt.Sprintf(":%d", port)) })
	must(t, err)
	var mu sync.Mutex
	var open []net.Conn
	var each sync.WaitGroup
	each.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			each.Go(func() { // until one of both ends it
				b := make([]byte, 100)
				for {
					if _, err := c.Read(b); err != nil {
						return
					}
					fmt.Fprintf(c, "%s %s", name, c.RemoteAddr())
				}
			})
		}
	})
	each.Go(func() {
		for b := make([]byte, 100); ; {
			_, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = p.WriteTo(fmt.Appendf(nil, "%s %s", name, from), from)
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		each.Wait()
	})
}

// asker is a connection from a namespace, or what UDP has of one.
type asker struct{ net.Conn }

func dialFrom(t testing.TB, path, proto, to string) (asker, error) {
	t.Helper()
	c, err := in(t, path, func() (net.Conn, error) { return net.DialTimeout(proto, to, time.Second) })
	if err != nil {
		return asker{}, err
	}
	t.Cleanup(func() { c.Close() })
	return asker{c}, nil
}

// ask is who answers, and whom that one sees.
func (a asker) ask() (name string, seen netip.Addr, err error) {
	if _, err := a.Write([]byte("who?")); err != nil {
		return "", seen, err
	}
	_ = a.SetReadDeadline(time.Now().Add(time.Second))
	b := make([]byte, 100)
	n, err := a.Read(b)
	if err != nil && err != io.EOF {
		return "", seen, err
	}
	name, from, _ := strings.Cut(string(b[:n]), " ")
	at, err := netip.ParseAddrPort(from)
	return name, at.Addr().Unmap(), err
}

func asks(t testing.TB, path, proto, to string) (name string, seen netip.Addr, err error) {
	t.Helper()
	a, err := dialFrom(t, path, proto, to)
	if err != nil {
		return "", seen, err
	}
	return a.ask()
}

// published is a node whose network has two workloads that answer at port 80, and a host beside it.
func published(t *testing.T) (n *node, client string, w1, w2 datapath.NS) {
	t.Helper()
	hosts := underlay(t, 2)
	n = startNode(t, hosts[0], datapathtest.Overlay{ID: "n1", VNI: datapathtest.MinVNI + 1, Local: vtep(0)})
	client = hosts[1].lab.Path("host")
	for i, path := range []string{hostPath(n.host), client} {
		ip(t, path, "addr", "add", fmt.Sprintf("2001:db8::%d/64", i+1), "dev", "eth0", "nodad")
		ip(t, path, "link", "set", "lo", "up")
	}
	w1, w2 = n.Workload(t, "w1"), n.Workload(t, "w2")
	n.o.Endpoints = []datapathtest.Endpoint{{N: 1, NS: w1}, {N: 2, NS: w2}}
	for name, w := range map[string]datapath.NS{"w1": w1, "w2": w2} {
		ip(t, w.Path, "link", "set", "lo", "up")
		tellsWho(t, w.Path, name, 80)
	}
	return n, client, w1, w2
}

func (n *node) publish(t *testing.T, ports ...datapathtest.Published) datapath.Config {
	t.Helper()
	c := n.o.Publish(ports...)
	must(t, n.loop.Wait(t.Context(), n.loop.Set(c), "n1", "publish", "endpoint1", "endpoint2"))
	return c
}

// A published port is reached from outside, where the client's address is kept, from the host itself by
// any address of its own, and from workloads, also the one that it leads to.
func TestPublishedPorts(t *testing.T) {
	n, client, w1, w2 := published(t)
	host := hostPath(n.host)
	c := n.publish(t, datapathtest.Published{Proto: "tcp", Port: 8080, Target: 80, Ns: []int{1}}, datapathtest.Published{Proto: "udp", Port: 8080, Target: 80, Ns: []int{1}},
		datapathtest.Published{Proto: "tcp", At: vtep(0), Port: 8081, Target: 80, Ns: []int{2}, Hide: true})
	if ops := n.wrong(t, &c); len(ops) != 0 {
		t.Fatalf("it is to be done again: %v", ops)
	}
	for _, tt := range []struct{ what, from, to, seen string }{
		{"from outside", client, "10.99.0.1:8080", "10.99.0.2"},
		{"from outside, IPv6", client, "[2001:db8::1]:8080", "2001:db8::2"},
		{"from the host", host, "10.99.0.1:8080", "10.99.0.1"},
		{"from the host, IPv6", host, "[2001:db8::1]:8080", "2001:db8::1"},
		{"from the host's loopback", host, "127.0.0.1:8080", "169.254.128.0"},
		{"from the host's loopback, IPv6", host, "[::1]:8080", "fd68::"},
		{"from a workload", w2.Path, "10.99.0.1:8080", "169.254.128.0"},
		{"from a workload, IPv6", w2.Path, "[2001:db8::1]:8080", "fd68::"},
		{"from itself", w1.Path, "10.99.0.1:8080", "169.254.128.0"},
	} {
		for _, proto := range []string{"tcp", "udp"} {
			name, seen, err := asks(t, tt.from, proto, tt.to)
			if err != nil || name != "w1" || seen.String() != tt.seen {
				t.Errorf("%s by %s: %s answers and sees %s, %v; want w1 that sees %s", tt.what, proto, name, seen, err, tt.seen)
			}
		}
	}
	if name, seen, err := asks(t, client, "tcp", "10.99.0.1:8081"); err != nil || name != "w2" || seen.String() != "10.64.255.254" {
		t.Errorf("a workload that answers elsewhere: %s answers and sees %s, %v", name, seen, err)
	}
	for _, to := range []string{"10.99.0.1:80", "10.99.0.1:8082", "[2001:db8::1]:8081", "127.0.0.1:8081"} {
		if name, _, err := asks(t, host, "tcp", to); err == nil {
			t.Errorf("%s answers at %s", name, to)
		}
	}
}

// New flows go to all backends. When one goes, its flows of UDP go to another, and those of TCP end,
// unless it only leaves; flows to others stay as they are. What was there before the port was open comes
// in, too, and nothing after it was closed.
func TestFlowsFollowPublishedPorts(t *testing.T) {
	n, client, _, _ := published(t)
	of := func(backends ...int) []datapathtest.Published {
		return []datapathtest.Published{{Proto: "tcp", Port: 8080, Target: 80, Ns: backends}, {Proto: "udp", Port: 8080, Target: 80, Ns: backends}}
	}
	n.publish(t)
	early, err := dialFrom(t, client, "udp", "10.99.0.1:8080")
	must(t, err)
	if name, _, err := early.ask(); err == nil {
		t.Fatalf("%s answers at a port that is not open", name)
	}
	c := n.publish(t, of(1, 2)...)

	open := map[string]map[string]asker{"tcp": {}, "udp": {}} // one to each backend
	for proto, by := range open {
		for range 100 {
			a, err := dialFrom(t, client, proto, "10.99.0.1:8080")
			must(t, err)
			name, _, err := a.ask()
			must(t, err)
			if by[name] = a; len(by) == 2 {
				break
			}
		}
		if len(by) != 2 {
			t.Fatalf("100 flows of %s go to one backend", proto)
		}
	}
	answers := func(when, proto, was, want string) {
		t.Helper()
		name, _, err := open[proto][was].ask()
		for i := 0; err != nil && want != "" && i < 2; i++ { // a datagram may be lost
			name, _, err = open[proto][was].ask()
		}
		if name != want || (err != nil) != (want == "") {
			t.Errorf("%s, the flow of %s to %s is answered by %q, %v; want %q", when, proto, was, name, err, want)
		}
	}
	if name, _, err := early.ask(); err != nil {
		t.Errorf("who came before the port was open: %s, %v", name, err)
	}

	for i := range c.Entrances[0].Workloads.Ports { // the second one leaves
		c.Entrances[0].Workloads.Ports[i].To[1].Leaves = true
	}
	must(t, n.loop.Wait(t.Context(), n.loop.Set(c), "n1", "publish"))
	for proto := range open {
		answers("when one leaves", proto, "w1", "w1")
		answers("when one leaves", proto, "w2", "w2")
		for range 20 {
			if name, _, err := asks(t, client, proto, "10.99.0.1:8080"); err != nil || name != "w1" {
				t.Fatalf("a new flow of %s goes to %q, %v", proto, name, err)
			}
		}
	}

	n.publish(t, of(1)...)
	answers("when one is gone", "udp", "w2", "w1")
	answers("when one is gone", "tcp", "w2", "")
	for proto := range open {
		answers("when another is gone", proto, "w1", "w1")
	}

	n.publish(t)
	answers("when the port is closed", "udp", "w1", "")
	answers("when the port is closed", "tcp", "w1", "")
}

// A start finds what stands, and leaves it alone; so it does with what it does not know of services.
func TestEntrancesAreAdopted(t *testing.T) {
	n, client, _, _ := published(t)
	port := datapathtest.Published{Proto: "tcp", Port: 8080, Target: 80, Ns: []int{1}}
	c := n.o.Publish(port)
	for i := range c.Entrances {
		c.Entrances[i].Services, c.Entrances[i].Workloads = c.Entrances[i].Workloads, datapath.Passages{}
	}
	must(t, n.loop.Wait(t.Context(), n.loop.Set(c), "n1", "publish"))
	a, err := dialFrom(t, client, "tcp", "10.99.0.1:8080")
	must(t, err)
	n.stop()
	rules := func() string {
		return run(t, hostPath(n.host), "nft", "-a", "list", "ruleset") + run(t, n.dir.Path("heddle-n1"), "nft", "-a", "list", "ruleset")
	}
	before := rules()

	n.Close()
	again := &host{New(Config{Host: hostPath(n.host), Netns: n.dir}), n.dir, n.lab}
	t.Cleanup(again.Close)
	n = startNode(t, again, n.o)
	partial := n.o.Publish()
	for i := range partial.Entrances {
		partial.Entrances[i].Partial = true
	}
	for _, c := range []datapath.Config{partial, c} {
		must(t, n.loop.Wait(t.Context(), n.loop.Set(c), "n1", "publish"))
		if after := rules(); after != before {
			t.Errorf("a start changes\n%s\nto\n%s", before, after)
		}
		if name, _, err := a.ask(); err != nil || name != "w1" {
			t.Errorf("the connection is answered by %q, %v", name, err)
		}
	}
}

// By an uplink nobody reaches the host's own loopback, nor another network's uplink.
func TestUplinksLeadNowhereElse(t *testing.T) {
	n, client, w1, _ := published(t)
	n.publish(t, datapathtest.Published{Proto: "tcp", Port: 8080, Target: 80, Ns: []int{1}})
	host, ns := hostPath(n.host), n.dir.Path("heddle-n1")
	tellsWho(t, host, "host", 7777)
	if name, _, err := asks(t, host, "tcp", "127.0.0.1:7777"); err != nil || name != "host" {
		t.Fatalf("%q, %v", name, err)
	}
	ip(t, ns, "route", "add", "127.0.0.0/8", "via", "169.254.128.0", "table", "77")
	ip(t, ns, "rule", "add", "pref", "0", "to", "127.0.0.0/8", "lookup", "77")
	ip(t, ns, "route", "add", "127.0.0.1/32", "via", "169.254.128.0")
	for _, path := range []string{ns, w1.Path} {
		c, err := in(t, path, func() (net.Conn, error) { return net.Dial("udp", "127.0.0.1:7777") })
		if err == nil {
			a := asker{c}
			if name, _, err := a.ask(); err == nil && name == "host" {
				t.Errorf("the host's loopback is reached from %s", path)
			}
			c.Close()
		}
	}
	// From outside, and from workloads, only published ports are open, not the way that they go by.
	ip(t, client, "route", "add", "169.254.128.0/17", "via", "10.99.0.1")
	for _, from := range []string{client, w1.Path} {
		if name, _, err := asks(t, from, "tcp", "169.254.128.1:8080"); err == nil {
			t.Errorf("%s answers at the uplink's own address", name)
		}
	}
}
