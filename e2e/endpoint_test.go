//go:build linux

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// is waits for the state of a workload on its own node.
func (w world) is(h *lab.Host, name, state string) {
	w.t.Helper()
	w.soon(5*time.Second, name+" is "+state, func(context.Context) error {
		if e := w.endpoint(h, name); e.State != state {
			return fmt.Errorf("it is %q", e.State)
		}
		return nil
	})
}

// A workload whose namespace is gone, or replaced by another of its name, is out of the others'
// tables at once, and gets its addresses back when it is attached again.
func TestANamespaceIsLost(t *testing.T) {
	w := common(t)
	a, b := w.Host(4), w.Host(5)
	net := w.network(a, "--ipv6")
	w.attach(a, "peer", net)
	w.sh(b, "ip netns add lost-x")
	t.Cleanup(func() { _ = b.Run(context.Background(), "ip", "netns", "del", "lost-x") })
	x := w.attach(b, "x", net, "--netns", "lost-x")
	w.reaches(a, "peer", x)
	for _, loss := range []string{"ip netns del lost-x && ip netns add lost-x", "ip netns del lost-x"} {
		w.sh(b, loss)
		w.is(b, "x", "lost")
		w.soon(time.Second, "forgotten", func(ctx context.Context) error { return w.holds(ctx, a, x.MAC, false) })
		if out := w.ok(b, "status"); !strings.Contains(out, "heddle detach x") {
			t.Errorf("status does not say what to do: %s", out)
		}
		if !strings.Contains(loss, "netns add") {
			w.sh(b, "ip netns add lost-x")
		}
		again := w.attach(b, "x", net, "--netns", "lost-x")
		if again.IPv4 != x.IPv4 || again.IPv6 != x.IPv6 {
			t.Errorf("x had %s and %s, and has %s and %s", x.IPv4, x.IPv6, again.IPv4, again.IPv6)
		}
		w.reaches(a, "peer", again)
	}
}

// Several networks of one workload: interfaces in order, and the default route by priority, then
// by name; networks come and go while it runs.
func TestSeveralNetworks(t *testing.T) {
	w := common(t)
	a, b := w.Host(4), w.Host(5)
	nets := map[string]string{}
	for _, n := range []string{"alpha", "beta", "gamma"} {
		w.ok(a, "network", "create", "multi-"+n)
		nets[n] = "multi-" + n
		w.attach(b, "peer-"+n, nets[n])
	}
	t.Cleanup(func() {
		for _, h := range []*lab.Host{a, b} {
			for _, name := range []string{"web", "peer-alpha", "peer-beta", "peer-gamma"} {
				_, _ = w.Do(context.Background(), h, "detach", name)
			}
		}
		for _, n := range nets {
			_, _ = w.Do(context.Background(), a, "network", "rm", n)
		}
	})
	via := func(want string) {
		t.Helper()
		w.soon(time.Second, "the default route", func(ctx context.Context) error {
			out, err := a.Output(ctx, in("web", strings.Fields("ip route get 203.0.113.7"))...)
			if err == nil && !strings.Contains(out, "dev "+want+" ") {
				err = fmt.Errorf("it is not through %s: %s", want, out)
			}
			return err
		})
	}
	w.attach(a, "web", nets["beta"])
	via("eth0")
	w.ok(a, "network", "connect", nets["alpha"], "web")
	via("eth1") // alpha is before beta
	w.ok(a, "network", "connect", nets["gamma"], "web", "--ifname", "lan0", "--gw-priority", "7")
	via("lan0")
	for n := range nets {
		w.reaches(a, "web", w.endpoint(b, "peer-"+n))
	}
	if err := a.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := a.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	via("lan0")
	w.ok(a, "network", "disconnect", nets["gamma"], "web")
	via("eth1")
	w.reaches(a, "web", w.endpoint(b, "peer-beta"))
	w.refused(a, 1, []string{"not attached"}, "network", "disconnect", nets["gamma"], "web")
	w.refused(a, 1, []string{"not attached", "heddle attach"}, "network", "connect", nets["gamma"], "nobody")
}

// The host itself is an endpoint: it reaches workloads and they reach it; its own routes stay.
func TestTheHostIsAnEndpoint(t *testing.T) {
	w := common(t)
	a, b := w.Host(4), w.Host(5)
	net := w.network(a, "--ipv6")
	near, far := w.attach(a, "near", net), w.attach(b, "far", net)
	before, err := a.Output(t.Context(), "ip", "route", "show", "default")
	if err != nil {
		t.Fatal(err)
	}
	host := w.attach(a, "host", net, "--host")
	for _, e := range []cluster.Endpoint{near, far} {
		for _, to := range addrs(e) {
			if err := a.Run(t.Context(), probe.Args("ping", to.String())...); err != nil {
				t.Errorf("the host does not reach %s: %v", e.Name, err)
			}
		}
	}
	w.reaches(a, "near", host)
	w.reaches(b, "far", host)
	w.attach(a, "stranger", w.network(a))
	if w.ping(a, "stranger", far.IPv4.Addr()) == nil {
		t.Error("a workload of another network reaches one through the host, which is in its network")
	}
	if after, _ := a.Output(t.Context(), "ip", "route", "show", "default"); after != before {
		t.Errorf("its default route was %q, and is %q", before, after)
	}
	w.ok(a, "detach", "host")
	if out, _ := a.Output(t.Context(), "ip", "-o", "link"); strings.Contains(out, host.Interface+":") {
		t.Errorf("its interface stays: %s", out)
	}
	hidden := w.network(a, "--subnet", "192.168.0.0/16")
	w.refused(a, 1, []string{"192.168.77.0/24", "overlaps"}, "attach", "host", "--network", hidden, "--host")
}

// A reboot takes the kernel's objects and the namespaces of others; the node comes back from its
// own disk, without any manager, under the same addresses.
func TestAHostReboots(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 1, Workers: 2})
	m, a, b := w.Host(1), w.Host(2), w.Host(3)
	net := w.network(m, "--ipv6")
	w.attach(a, "peer", net)
	w.sh(b, "ip netns add given")
	made, given := w.attach(b, "made", net), w.attach(b, "given", net, "--netns", "given")
	if err := m.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := b.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	// The kernel takes a namespace down in its own time: its links go first, or the old ones answer.
	w.sh(b, `for n in $(ls /run/netns); do
			for l in $(ip -n $n -o link | cut -d: -f2 | cut -d@ -f1); do test $l = lo || ip -n $n link del $l 2>/dev/null || true; done
			ip netns del $n
		done
		nft flush ruleset
		echo 5bca2e8e-0000-4000-8000-000000000001 > /run/boot && mount --bind /run/boot /proc/sys/kernel/random/boot_id
		ip netns add given`)
	if err := b.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	w.is(b, "made", "ready")
	w.is(b, "given", "lost")
	if e := w.endpoint(b, "made"); e.IPv4 != made.IPv4 || e.MAC != made.MAC {
		t.Errorf("made had %s %s and has %s %s", made.IPv4, made.MAC, e.IPv4, e.MAC)
	}
	w.soon(5*time.Second, "made answers", func(context.Context) error { return w.ping(a, "peer", made.IPv4.Addr()) })
	w.reaches(a, "peer", made)
	again := w.attach(b, "given", net, "--netns", "given")
	if again.IPv4 != given.IPv4 {
		t.Errorf("given had %s, and has %s", given.IPv4, again.IPv4)
	}
	w.reaches(a, "peer", again)
	if err := m.StartDaemon(); err != nil {
		t.Fatal(err)
	}
}
