//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// A cluster over IPv6 carries networks of either family; a host without it is refused.
func TestTheUnderlayIsIPv6(t *testing.T) {
	t.Parallel()
	w := startHosts(t, cluster.Config{Managers: 1, Workers: 1, Spare: 1, Lab: lab.Config{IPv6: true}})
	m, a, none := w.Host(1), w.Host(2), w.Host(3)
	join := w.ok(m, "init", "-q", "--advertise-addr", m.Addr6().String())
	if !strings.Contains(join, m.Addr6().String()) {
		t.Errorf("the join command is %q", join)
	}
	token := w.ok(m, "token", "create", "worker", "-q")
	w.ok(a, "join", "["+m.Addr6().String()+"]:5377", "--token", token)
	for _, flags := range [][]string{{"--ipv6"}, {"--ipv6", "--ipv4=false"}, {}, {"--ipv6", "--encrypted"}} {
		net := w.network(m, flags...)
		one, two := w.attach(m, "one", net), w.attach(a, "two", net)
		w.reaches(m, "one", two)
		w.reaches(a, "two", one)
		w.ok(m, "detach", "one")
		w.ok(a, "detach", "two")
	}
	w.sh(none, "ip -6 addr flush dev eth0 scope global")
	w.refused(none, 1, []string{"can't be reached|unreachable"}, "join", m.Addr6().String(), "--token", token)
}

// The control plane may be of another family than the data path, whose family the whole cluster
// has in common.
func TestTheDataPathHasItsOwnFamily(t *testing.T) {
	t.Parallel()
	w := startHosts(t, cluster.Config{Managers: 1, Workers: 1, Spare: 1, Lab: lab.Config{IPv6: true}})
	m, a, none := w.Host(1), w.Host(2), w.Host(3)
	w.ok(m, "init", "--advertise-addr", m.Addr().String(), "--data-path-addr", m.Addr6().String())
	token := w.ok(m, "token", "create", "worker", "-q")
	w.ok(a, "join", m.Addr().String(), "--token", token)
	net := w.network(m, "--ipv6")
	one, two := w.attach(m, "one", net), w.attach(a, "two", net)
	w.reaches(m, "one", two)
	w.reaches(a, "two", one)
	dev := w.inNetwork(a, net, "ip -d link show vxlan0")
	if !strings.Contains(dev, "local "+a.Addr6().String()) {
		t.Errorf("the device is %q", dev)
	}
	w.refused(none, 1, []string{"no address of this host|IPv6"}, "join", m.Addr().String(), "--token", token, "--data-path-addr", none.Addr().String())
	w.sh(none, "ip -6 addr flush dev eth0 scope global")
	w.refused(none, 1, []string{"IPv6", "no global IPv6 address"}, "join", m.Addr().String(), "--token", token)
}

// inNetwork runs a line of shell in a network's namespace.
func (w world) inNetwork(h *lab.Host, network, line string) string {
	w.t.Helper()
	var n []cluster.Network
	w.decode(h, &n, "network", "inspect", network)
	out, err := h.Output(w.t.Context(), in(n[0].Namespace, []string{"sh", "-c", line})...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// Two networks may have the same addresses: nothing passes between them.
func TestSubnetsOverlap(t *testing.T) {
	w := common(t)
	a, b := w.Host(4), w.Host(5)
	red := w.network(a, "--subnet", "10.70.0.0/24")
	t.Run("", func(t *testing.T) {
		w := w
		w.t = t
		blue := w.network(a, "--subnet", "10.70.0.0/24")
		for net, name := range map[string]string{red: "red", blue: "blue"} {
			w.attach(a, name+"-a", net, "--ip", "10.70.0.10")
			w.attach(b, name+"-b", net, "--ip", "10.70.0.11")
		}
		w.attach(b, "red-c", red, "--ip", "10.70.0.12")
		w.serveIn(b, "red-b")
		w.serveIn(b, "blue-b")
		for _, name := range []string{"red", "blue"} {
			if said, err := w.fetches(a, name+"-a", "10.70.0.11"); err != nil || !strings.Contains(said, "from "+name+"-b") {
				t.Errorf("%s-a hears %q, %v", name, said, err)
			}
		}
		if w.ping(a, "blue-a", netip.MustParseAddr("10.70.0.12")) == nil {
			t.Error("blue-a reaches what only red has")
		}
	})
}

// Hosts of three MTUs share a network: its MTU is what the smallest can carry, and follows it.
func TestMixedMTUs(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 1, Workers: 2, Lab: lab.Config{MTU: 9000}})
	hosts := w.Hosts()
	net := w.network(w.Host(1), "--ipv6")
	big := w.network(w.Host(1), "-o", "mtu=1300")
	w.attach(hosts[0], "w0", net)
	is := func(h *lab.Host, workload string, mtu int) {
		t.Helper()
		w.soon(5*time.Second, "the MTU of "+workload, func(ctx context.Context) error {
			out, err := h.Output(ctx, in(workload, []string{"cat", "/sys/class/net/eth0/mtu"})...)
			if err == nil && strings.TrimSpace(out) != fmt.Sprint(mtu) {
				err = fmt.Errorf("it is %s, want %d", strings.TrimSpace(out), mtu)
			}
			return err
		})
	}
	is(hosts[0], "w0", 8950)
	for i, mtu := range []int{9000, 1500, 1400} {
		if err := w.SetMTU(hosts[i], mtu); err != nil {
			t.Fatal(err)
		}
	}
	for i, h := range hosts[1:] {
		w.attach(h, fmt.Sprint("w", i+1), net)
	}
	w.attach(hosts[2], "fixed", big)
	is(hosts[2], "fixed", 1300)
	bulks := func() {
		t.Helper()
		for i, from := range hosts {
			for j, to := range hosts {
				if i == j {
					continue
				}
				e := w.endpoint(to, fmt.Sprint("w", j))
				for _, at := range []string{e.IPv4.Addr().String(), "[" + e.IPv6.Addr().String() + "]"} {
					if out, err := from.Output(t.Context(), in(fmt.Sprint("w", i), probe.Args("fetch", "-timeout", "5s", "http://"+at+"/bulk"))...); err != nil || len(out) != 4<<20 {
						t.Errorf("w%d gets %d bytes from w%d at %s: %v", i, len(out), j, at, err)
					}
				}
			}
		}
	}
	for i, h := range hosts {
		is(h, fmt.Sprint("w", i), 1350)
		w.serveIn(h, fmt.Sprint("w", i))
	}
	bulks()
	if err := w.SetMTU(hosts[1], 1380); err != nil {
		t.Fatal(err)
	}
	for i, h := range hosts {
		is(h, fmt.Sprint("w", i), 1330)
	}
	bulks()
}

// A host gets another address under traffic: the others follow, with the managers away too.
func TestAHostGetsAnotherAddress(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 1, Workers: 2})
	m, a, b := w.Host(1), w.Host(2), w.Host(3)
	net := w.network(m, "--ipv6")
	sealed := w.network(m, "--encrypted")
	w.attach(a, "a", net)
	e := w.attach(b, "b", net)
	w.attach(m, "m", net)
	w.attach(a, "a-sealed", sealed)
	es := w.attach(b, "b-sealed", sealed)
	move := func(h *lab.Host, to string) {
		t.Helper()
		gap4, gap6 := w.gap(a, "a", e.IPv4.Addr()), w.gap(a, "a", e.IPv6.Addr())
		if err := w.SetAddr(h, netip.MustParseAddr(to)); err != nil {
			t.Fatal(err)
		}
		for _, addr := range addrs(e) {
			w.soon(5*time.Second, "answers from "+to, func(context.Context) error { return w.ping(a, "a", addr) })
		}
		w.soon(5*time.Second, "answers from "+to+" over WireGuard", func(context.Context) error { return w.ping(a, "a-sealed", es.IPv4.Addr()) })
		for _, gap := range []time.Duration{gap4(), gap6()} {
			t.Logf("%s moved to %s: no answers for %s", h.Name(), to, gap)
			if gap > 5*time.Second {
				t.Errorf("no answers for %s", gap)
			}
		}
	}
	move(b, "192.168.77.101") // who is asked
	w.soon(5*time.Second, "its row has the new address", func(ctx context.Context) error {
		out, err := w.Do(ctx, m, "node", "inspect", b.Name(), "--format", "{{.Addr}}")
		if err == nil && out != "192.168.77.101:5377" {
			err = fmt.Errorf("it is %s", out)
		}
		return err
	})
	if err := m.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	move(a, "192.168.77.102") // who asks
	move(b, "192.168.77.103")
	late := w.attach(b, "late", net)
	w.reaches(a, "a", late)
	if err := m.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	w.soon(10*time.Second, "all rows have the new addresses", func(ctx context.Context) error {
		out, err := w.Do(ctx, m, "node", "ls", "--format", "{{.Name}} {{.Addr}} {{.Status}}")
		want := fmt.Sprintf("n1 %s:5377 ready\nn2 192.168.77.102:5377 ready\nn3 192.168.77.103:5377 ready", m.Addr())
		if err == nil && out != want {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	move(m, "192.168.77.104") // the only manager
	w.soon(10*time.Second, "a write after the manager has moved", func(ctx context.Context) error {
		_, err := w.Do(ctx, a, "network", "create", "after")
		return err
	})
}

// A node that moves to an address that another node holds gets nothing of its traffic, and both
// are named.
func TestAnAddressIsClaimedByTwoNodes(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 1, Workers: 2, Spare: 1})
	m, a, b, c := w.Host(1), w.Host(2), w.Host(3), w.Host(4)
	w.sh(c, "ip link add side type veth peer name edis && ip link set side up && ip link set edis up && ip addr add 10.9.9.9/32 dev side")
	w.sh(m, "ip route add 10.9.9.9 via "+c.Addr().String())
	w.ok(c, "join", m.Addr().String(), "--data-path-addr", "10.9.9.9", "--token", w.ok(m, "token", "create", "worker", "-q"))
	net := w.network(m)
	w.attach(a, "a", net)
	e := w.attach(b, "b", net)
	w.attach(c, "c", net)
	done := w.stream(a, "a", e.IPv4.Addr())
	w.sh(c, "ip addr add "+b.Addr().String()+"/32 dev side && ip addr del 10.9.9.9/32 dev side")
	// What c sends to b it sends to itself: b hears of it from the others, in time.
	for h, within := range map[*lab.Host]time.Duration{m: 5 * time.Second, a: 5 * time.Second, b: 30 * time.Second} {
		w.soon(within, "the conflict is reported", func(ctx context.Context) error {
			out, err := w.Do(ctx, h, "status")
			if err == nil && !strings.Contains(out, "nodes n3 and n4 both say that they are at "+b.Addr().String()) {
				err = fmt.Errorf("%s", out)
			}
			return err
		})
	}
	w.reaches(a, "a", e)
	done()
	w.sh(c, "ip addr add 10.9.9.10/32 dev side && ip addr del "+b.Addr().String()+"/32 dev side")
	w.soon(5*time.Second, "the conflict is over", func(ctx context.Context) error {
		out, err := w.Do(ctx, a, "status")
		if err == nil && strings.Contains(out, "both say") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
}
