//go:build linux

package e2e

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// within runs heddle on a host and takes the time.
func (w world) within(limit time.Duration, h *lab.Host, args ...string) (string, error) {
	w.t.Helper()
	begin := time.Now()
	out, err := w.Do(w.t.Context(), h, args...)
	if took := time.Since(begin); took > limit {
		w.t.Errorf("%s: %v took %s, more than %s", h.Name(), args, took, limit)
	}
	return out, err
}

// A /29 has five addresses for endpoints. They go to who needs them, whoever holds them.
func TestTheLastAddressOfASmallSubnet(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 1, Workers: 3})
	m, a, b, c := w.Host(1), w.Host(2), w.Host(3), w.Host(4)
	w.ok(m, "network", "create", "small", "--subnet", "10.50.0.0/29")
	ok := func(h *lab.Host, args ...string) {
		t.Helper()
		if _, err := w.within(time.Second, h, args...); err != nil {
			t.Fatal(err)
		}
	}
	attach := func(h *lab.Host, name string) { t.Helper(); ok(h, "attach", name, "--network", "small") }
	attach(a, "a1") // each may take a reserve
	attach(b, "b1")
	attach(c, "c1")
	attach(a, "a2")
	attach(b, "b2")
	_, err := w.within(2*time.Second, c, "attach", "c2", "--network", "small")
	w.isRefusal(err, 1, []string{"no IPv4 address left"})
	_, err = w.within(2*time.Second, m, "attach", "m1", "--network", "small", "--ip", w.endpoint(a, "a1").IPv4.Addr().String())
	w.isRefusal(err, 1, []string{"in use by a1 on node n2"})

	ok(a, "detach", "a2") // idles with a
	attach(c, "c2")
	freed := w.endpoint(b, "b2").IPv4.Addr().String()
	ok(b, "detach", "b2")
	ok(m, "attach", "m1", "--network", "small", "--ip", freed)
	w.reaches(c, "c2", w.endpoint(m, "m1"))
	w.reaches(m, "m1", w.endpoint(c, "c2"))

	ok(b, "detach", "b1")
	if err := b.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	_, err = w.within(2*time.Second, a, "attach", "a3", "--network", "small")
	w.isRefusal(err, 1, []string{"n3", "does not answer", "heddle node rm n3"})
	if err := b.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	attach(a, "a3")
	w.reaches(c, "c1", w.endpoint(a, "a3"))
	if out := w.ok(m, "network", "ls", "--format", "{{range .IPAM.Config}}{{.InUse}} {{.Leased}} {{.Addresses}}{{end}}"); out != "5 5 5" {
		t.Errorf("in use, leased and usable are %q", out)
	}
}

// An address moves to another workload on another node at once, while a peer that knows the
// old one sends to it.
func TestAnAddressIsReusedAtOnce(t *testing.T) {
	w := common(t)
	net := w.network(w.Host(1), "--ipv6")
	p, a, b := w.Host(3), w.Host(4), w.Host(5)
	w.attach(p, "peer", net)
	near := w.attach(p, "near", net) // a neighbour on the peer's own node
	far := w.attach(a, "far", net)
	far2 := far
	far2.Name = "far2"
	for _, move := range []struct {
		from, to *lab.Host
		old      cluster.Endpoint
		name     string
	}{{a, b, far, "far2"}, {p, a, near, "near2"}, {b, p, far2, "far3"}} {
		w.reaches(p, "peer", move.old)
		gap4, gap6 := w.gap(p, "peer", move.old.IPv4.Addr()), w.gap(p, "peer", move.old.IPv6.Addr())
		w.ok(move.from, "detach", move.old.Name)
		e := w.attach(move.to, move.name, net, "--ip", move.old.IPv4.Addr().String(), "--ip6", move.old.IPv6.Addr().String())
		w.reaches(p, "peer", e)
		for _, gap := range []time.Duration{gap4(), gap6()} {
			t.Logf("%s after %s: no answers for %s", e.Name, move.old.Name, gap)
			if gap > time.Second {
				t.Errorf("no answers for %s", gap)
			}
		}
	}
	// A daemon that starts in between does not know what its workloads remember.
	w.ok(a, "detach", "near2")
	if err := errors.Join(p.KillDaemon(), p.StartDaemon()); err != nil {
		t.Fatal(err)
	}
	w.reaches(p, "peer", w.attach(b, "near3", net, "--ip", near.IPv4.Addr().String(), "--ip6", near.IPv6.Addr().String()))
}

// gap sends 100 probes a second to an address until the function that it returns is called,
// which tells the longest time without an answer.
func (w world) gap(h *lab.Host, workload string, to netip.Addr) func() time.Duration {
	w.t.Helper()
	said, err := os.CreateTemp(w.t.TempDir(), "ping")
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := h.Start(lab.Command{Args: in(workload, probe.Args("ping", "-c", "0", "-i", "10ms", "-w", "50ms", to.String())), Stdout: said})
	if err != nil {
		w.t.Fatal(err)
	}
	return func() time.Duration {
		_ = p.Signal(2)
		_ = p.Wait(w.t.Context()) // some had no answer
		b, _ := os.ReadFile(said.Name())
		_, text, _ := strings.Cut(string(b), "longest gap ")
		text, _, _ = strings.Cut(text, "\n")
		gap, err := time.ParseDuration(text)
		if err != nil {
			w.t.Fatalf("the probe said %q", b)
		}
		return gap
	}
}
