//go:build linux

package e2e

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

// rounds is how often faults are repeated; `make soak` asks for more.
var rounds = flag.Int("rounds", 1, "how often tests of faults repeat theirs")

// The leader is killed amid creates and attaches from eight clients. What was acknowledged is
// there, once, and no VNI, subnet or address is given twice.
func TestTheLeaderIsKilledAmidWrites(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 3, Workers: 2})
	a, b := w.Host(4), w.Host(5)
	for round := range *rounds {
		shared := fmt.Sprintf("shared-%d", round)
		w.ok(a, "network", "create", shared, "--subnet", "10.200.0.0/22")
		acked := w.storm(a, b, round, shared)
		w.soon(10*time.Second, "a write after the storm", func(ctx context.Context) error {
			_, err := w.Do(ctx, a, "network", "create", fmt.Sprintf("calm-%d", round))
			return err
		})
		w.allOnce(a, acked)
		var rows []cluster.Endpoint
		w.soon(5*time.Second, "all endpoints", func(ctx context.Context) error {
			if err := w.JSON(ctx, a, &rows, "endpoint", "ls", "--format", "json", "--filter", "network="+shared); err != nil {
				return err
			}
			if len(rows) < 8 {
				return fmt.Errorf("%d endpoints of 8 are listed", len(rows))
			}
			return nil
		})
		held := map[string]string{}
		for _, e := range rows {
			if other := held[e.IPv4.String()]; other != "" {
				t.Errorf("%s and %s both have %s", other, e.Name, e.IPv4)
			}
			held[e.IPv4.String()] = e.Name
			w.ok(map[string]*lab.Host{a.Name(): a, b.Name(): b}[e.Node], "detach", e.Name)
		}
		w.ok(a, "network", "prune", "-f")
		if t.Failed() {
			return
		}
	}
}

// storm has eight clients create 25 networks each and attach one workload, kills the leader in
// the middle, and starts it again. It returns the IDs of what was acknowledged.
func (w world) storm(a, b *lab.Host, round int, shared string) map[string]string {
	w.t.Helper()
	leader, err := w.Leader(w.t.Context(), a)
	if err != nil {
		w.t.Fatal(err)
	}
	const clients, each = 8, 25
	var mu sync.Mutex
	acked, unknown := map[string]string{}, 0
	var made atomic.Int32
	half := make(chan struct{})
	var wg sync.WaitGroup
	for c := range clients {
		h := []*lab.Host{a, b}[c%2]
		wg.Go(func() {
			for i := range each {
				name := fmt.Sprintf("n%d-%d-%d", round, c, i)
				id, err := w.Do(w.t.Context(), h, "network", "create", "-q", name)
				mu.Lock()
				if err == nil {
					acked[name] = id
				} else {
					unknown++
				}
				mu.Unlock()
				if made.Add(1) == clients*each/2 {
					close(half)
				}
				if i == each/2 {
					if _, err := w.Do(w.t.Context(), h, "attach", fmt.Sprintf("w%d-%d", round, c), "--network", shared); err != nil {
						w.t.Errorf("attach amid the storm: %v", err)
					}
				}
			}
		})
	}
	<-half
	if err := leader.KillDaemon(); err != nil {
		w.t.Error(err)
	}
	wg.Wait()
	if err := leader.StartDaemon(); err != nil {
		w.t.Error(err)
	}
	w.t.Logf("round %d: %d of %d creates were acknowledged, %d failed", round, len(acked), clients*each, unknown)
	return acked
}

// allOnce fails the test unless every acknowledged network is there, once, under its ID, and no
// two have a VNI or an automatic subnet in common.
func (w world) allOnce(h *lab.Host, acked map[string]string) {
	w.t.Helper()
	var rows []cluster.Network
	w.decode(h, &rows, "network", "ls", "--format", "json")
	names, vnis, subnets := map[string]string{}, map[uint32]string{}, map[string]string{}
	for _, n := range rows {
		subnet := n.IPAM.Config[0].Subnet.String()
		if names[n.Name] != "" || vnis[n.VNI] != "" || subnets[subnet] != "" {
			w.t.Errorf("network %s (VNI %d, %s): its name, VNI or subnet is there twice", n.Name, n.VNI, subnet)
		}
		names[n.Name], vnis[n.VNI], subnets[subnet] = n.ID, n.Name, n.Name
	}
	for name, id := range acked {
		if names[name] != id {
			w.t.Errorf("network %s was acknowledged as %s, and is %q", name, id, names[name])
		}
	}
}

// A network grows by a subnet, and networks without endpoints are pruned.
func TestANetworkIsUpdated(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 1, Workers: 1})
	m, a := w.Host(1), w.Host(2)
	w.ok(m, "network", "create", "blue", "--subnet", "10.60.0.0/30", "--label", "team=a")
	w.attach(a, "one", "blue")
	w.refused(m, 1, []string{"no IPv4 address left"}, "attach", "two", "--network", "blue")
	w.refused(m, 1, []string{"10.60.0.0/30", "overlap"}, "network", "update", "blue", "--subnet", "10.60.0.0/29")
	w.ok(m, "network", "update", "blue", "--subnet", "10.60.1.0/24", "--label", "tier=front", "--label-rm", "team")
	two := w.attach(m, "two", "blue")
	if !strings.HasPrefix(two.IPv4.String(), "10.60.1.") {
		t.Errorf("two has %s", two.IPv4)
	}
	three := w.attach(a, "three", "blue")
	w.reaches(a, "three", two)
	w.reaches(m, "two", three)
	// Two subnets of one segment meet through the gateway, which is where the sender is.
	w.soon(time.Second, "one reaches two", func(context.Context) error { return w.ping(a, "one", two.IPv4.Addr()) })
	if out := w.ok(a, "network", "inspect", "blue", "--format", "{{.Labels}}"); out != "map[tier:front]" {
		t.Errorf("the labels are %s", out)
	}
	w.ok(m, "network", "create", "idle")
	if out := w.ok(a, "network", "prune", "--force"); out != "idle" {
		t.Errorf("prune removed %q", out)
	}
	w.refused(m, 1, []string{"overlaps"}, "update", "--default-addr-pool", "10.64.0.0/16")
	w.ok(m, "update", "--default-addr-pool", "172.20.0.0/22")
}

// With the managers away for good, reads say how to read this node's copy, within 5 s.
func TestReadsWithoutManagers(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 3, Workers: 1})
	a := w.Host(4)
	w.ok(a, "network", "create", "blue")
	w.ok(a, "network", "create", "red")
	w.ok(a, "service", "create", "shop", "--network", "blue", "--vip", "10.64.0.77")
	w.ok(a, "service", "create", "shop", "--network", "red")
	e := w.attach(a, "one", "blue", "--service", "shop")
	for _, h := range w.Managers()[:2] {
		if err := h.KillDaemon(); err != nil {
			t.Fatal(err)
		}
	}
	m := w.Host(3) // a manager without a quorum
	for _, h := range []*lab.Host{a, m} {
		_, err := w.within(5500*time.Millisecond, h, "network", "ls")
		w.isRefusal(err, 1, []string{"--stale"})
	}
	for _, tc := range []struct {
		h    *lab.Host
		args []string
		want string
	}{
		{a, []string{"network", "ls", "--stale", "--format", "{{.Name}}"}, "blue"},
		{m, []string{"network", "ls", "--stale", "--format", "{{.Name}}"}, "blue\nred"},
		{a, []string{"endpoint", "ls", "--stale", "--format", "{{.Node}}/{{.Name}} {{.IPv4}}"}, a.Name() + "/one " + e.IPv4.String()},
		{m, []string{"endpoint", "ls", "--stale", "--format", "{{.Node}}/{{.Name}} {{.IPv4}}"}, a.Name() + "/one " + e.IPv4.String()},
		{a, []string{"network", "inspect", "blue", "--stale", "--format", "{{.Device}}"}, "vxlan0"},
		{a, []string{"service", "ls", "--stale", "--format", "{{.Network}}/{{.Name}} {{.VIPs}}"}, "blue/shop [10.64.0.77]"},
		{a, []string{"service", "ps", "shop", "--stale", "--format", "{{.Node}}/{{.Workload}} {{.Used}}"}, a.Name() + "/one true"},
		{m, []string{"service", "ls", "--stale", "--format", "{{.Network}}/{{.Name}}"}, "blue/shop\nred/shop"},
	} {
		if out, err := w.within(time.Second, tc.h, tc.args...); err != nil || out != tc.want {
			t.Errorf("%s: %v prints %q (%v), not %q", tc.h.Name(), tc.args, out, err, tc.want)
		}
	}
	out := w.ok(a, "node", "ls", "--stale", "--format", "{{.Name}}")
	if got := strings.Fields(out); !slices.Equal(got, []string{"n1", "n2", "n3", "n4"}) {
		t.Errorf("the nodes are %q", got)
	}
	if _, err := w.within(time.Second, a, "attach", "two", "--network", "blue"); err != nil {
		t.Error(err)
	}
	if _, err := w.within(time.Second, a, "detach", "two"); err != nil {
		t.Error(err)
	}
	if _, err := w.within(time.Second, a, "status"); err != nil {
		t.Error(err)
	}
}
