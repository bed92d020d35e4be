//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

func TestTheLeaderIsKilled(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 3, Workers: 2})
	a, b := w.Host(4), w.Host(5)
	w.ok(a, "network", "create", "net", "--ipv6")
	w.attach(a, "a", "net")
	e := w.attach(b, "b", "net")
	w.ok(a, "service", "create", "shop", "--network", "net", "--selector", "tier=front", "--publish", "80")
	service := w.ok(a, "service", "inspect", "shop")
	done := w.stream(a, "a", e.IPv4.Addr())
	for round := range 2 {
		leader, err := w.Leader(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		if err := leader.KillDaemon(); err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		w.soon(3*time.Second, "the next write", func(ctx context.Context) error {
			_, err := w.Do(ctx, a, "network", "create", fmt.Sprintf("after-%d", round))
			return err
		})
		t.Logf("%s after the leader's end the next write was accepted", time.Since(killed).Round(time.Millisecond))
		w.attach(b, fmt.Sprintf("c%d", round), "net") // from the lease
		if after := w.ok(a, "service", "inspect", "shop"); after != service {
			t.Errorf("the service was %s\nand is %s", service, after)
		}
		if err := leader.StartDaemon(); err != nil {
			t.Fatal(err)
		}
		w.role(a, leader.Name(), "manager")
		w.soon(10*time.Second, "the old leader follows", func(ctx context.Context) error {
			out, err := w.Do(ctx, leader, "network", "ls", "--format", "{{.Name}}")
			if err == nil && !strings.Contains(out, fmt.Sprintf("after-%d", round)) {
				err = fmt.Errorf("it lists %q", out)
			}
			return err
		})
	}
	done()
}

// With all managers gone traffic goes on, and nodes attach inside their leases.
func TestAllManagersAreGone(t *testing.T) {
	t.Parallel() // most of it is waiting
	w := start(t, cluster.Config{Managers: 1, Workers: 2})
	a, b := w.Host(2), w.Host(3)
	w.ok(a, "network", "create", "net", "--ipv6")
	w.attach(a, "a", "net")
	e := w.attach(b, "b", "net")
	done := w.stream(a, "a", e.IPv6.Addr())
	if err := w.Host(1).KillDaemon(); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		late := w.attach(b, fmt.Sprintf("late%d", i), "net")
		w.reaches(a, "a", late)
	}
	w.ok(a, "status")
	w.ok(b, "detach", "late0")
	w.refused(a, 1, []string{"manager"}, "network", "create", "other")
	if err := b.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := b.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	again := w.attach(b, "after-restart", "net")
	w.reaches(a, "a", again)
	if err := errors.Join(b.KillDaemon(), a.KillDaemon(), a.StartDaemon()); err != nil { // nobody tells a what b hosts
		t.Fatal(err)
	}
	w.soon(5*time.Second, "a takes b for dead", func(ctx context.Context) error {
		out, err := w.Do(ctx, a, "status")
		if err == nil && !regexp.MustCompile(b.Name()+" .* dead").MatchString(out) {
			err = fmt.Errorf("status says %s", out)
		}
		return err
	})
	for begin := time.Now(); time.Since(begin) < 3*time.Second && !t.Failed(); { // three times as long as until a asks again
		w.reaches(a, "a", again)
	}
	if err := b.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	done()
	if err := w.Host(1).StartDaemon(); err != nil {
		t.Fatal(err)
	}
	w.soon(10*time.Second, "a write after the manager's return", func(ctx context.Context) error {
		_, err := w.Do(ctx, a, "network", "create", "other")
		return err
	})
}

// links are the links of a host's namespaces, with their numbers.
func (w world) links(h *lab.Host) string {
	w.t.Helper()
	out, err := h.Output(w.t.Context(), "sh", "-c", "for n in $(ls /run/netns); do echo $n; ip -n $n -o link | cut -d: -f1,2; done")
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// A daemon killed in the middle of an attach leaves the attachment whole or gone.
func TestTheDaemonIsKilledInTheMiddleOfAnAttach(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 1, Workers: 2})
	a, b := w.Host(2), w.Host(3)
	w.ok(a, "network", "create", "net", "--ipv6")
	w.attach(a, "a", "net")
	w.attach(b, "warm", "net")
	whole := 0
	for i := range 8 {
		name := fmt.Sprintf("w%d", i)
		p, err := b.Start(lab.Command{Args: []string{"heddle", "attach", name, "--network", "net"}})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond) // the fault's moment
		if err := b.KillDaemon(); err != nil {
			t.Fatal(err)
		}
		_ = p.Wait(t.Context())
		if err := b.StartDaemon(); err != nil {
			t.Fatal(err)
		}
		w.soon(5*time.Second, name+" is whole or gone", func(ctx context.Context) error {
			e := w.endpoint(b, name)
			if e.Name == "" {
				if _, err := os.Stat(b.Path("/run/netns/" + name)); err == nil {
					return fmt.Errorf("the endpoint is gone, its namespace is not")
				}
				return nil
			}
			if e.State != "ready" {
				return fmt.Errorf("the endpoint is %s", e.State)
			}
			for _, addr := range addrs(e) {
				if err := w.ping(a, "a", addr); err != nil {
					return err
				}
			}
			whole++
			return nil
		})
		w.attach(b, name, "net") // repeatable in either case
	}
	t.Logf("%d of 8 were whole", whole)
}

// A worker that is cut off, for a moment or until it counts as dead, and comes back learns
// what happened meanwhile, and tells.
func TestAWorkerIsCutOffAndComesBack(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 1, Workers: 2})
	a, b := w.Host(2), w.Host(3)
	w.ok(a, "network", "create", "net", "--ipv6")
	for _, dead := range []bool{false, true} {
		gone, onB := w.attach(a, fmt.Sprint("gone", dead), "net"), w.attach(b, fmt.Sprint("b", dead), "net")
		if err := w.Partition([]*lab.Host{b}, []*lab.Host{w.Host(1), a}); err != nil {
			t.Fatal(err)
		}
		if dead {
			for _, side := range []struct {
				at   *lab.Host
				node string
			}{{a, "n3"}, {b, "n2"}} {
				w.soon(30*time.Second, "n2 and n3 hold each other for dead", func(ctx context.Context) error {
					out, err := w.Do(ctx, side.at, "status", "--format", "{{range .Peers}}{{.Name}} {{.State}},{{end}}")
					if err == nil && !strings.Contains(out, side.node+" dead") {
						err = errors.New(out)
					}
					return err
				})
				w.suspends(side.at, side.node, true)
			}
			w.refused(a, 1, []string{onB.Name, "rotation"}, "resolve", onB.Name, "--network", "net")
		}
		newA, newB := w.attach(a, fmt.Sprint("new-a", dead), "net"), w.attach(b, fmt.Sprint("new-b", dead), "net")
		w.ok(a, "detach", gone.Name)
		if err := w.Heal(); err != nil {
			t.Fatal(err)
		}
		healed := time.Now()
		w.soon(time.Second, "both sides know of both", func(ctx context.Context) error {
			return errors.Join(w.holds(ctx, b, newA.MAC, true), w.holds(ctx, a, newB.MAC, true), w.holds(ctx, b, gone.MAC, false))
		})
		t.Logf("both sides know of both %s after the healing", time.Since(healed).Round(time.Millisecond))
		w.suspends(a, "n3", false)
		w.suspends(b, "n2", false)
		w.ok(a, "resolve", onB.Name, "--network", "net")
		for _, e := range []cluster.Endpoint{newB, onB} {
			w.reaches(a, newA.Name, e)
		}
		w.reaches(b, newB.Name, newA)
	}
}

// holds says whether a MAC is among the forwarding entries of a host's overlays, as wanted.
// suspends waits until a host has suspended the names and addresses of another, or has not.
func (w world) suspends(h *lab.Host, node string, want bool) {
	w.t.Helper()
	w.soon(3*time.Second, fmt.Sprintf("%s suspends %s: %v", h.Name(), node, want), func(ctx context.Context) error {
		var s cluster.Status
		if err := w.JSON(ctx, h, &s, "status", "--format", "json"); err != nil {
			return err
		}
		for _, p := range s.Peers {
			if p.Name == node && (p.Suspended != "") == want {
				return nil
			}
		}
		return fmt.Errorf("%+v", s.Peers)
	})
}

func (w world) holds(ctx context.Context, h *lab.Host, mac string, want bool) error {
	out, err := h.Output(ctx, "sh", "-c", "for n in $(ls /run/netns | grep heddle-); do ip netns exec $n bridge fdb show; done")
	if err == nil && strings.Contains(out, mac) != want {
		err = fmt.Errorf("%s has an entry for %s: %v", h.Name(), mac, !want)
	}
	return err
}

// A node that was off while others came and went, and one that comes in late with an empty
// disk, end equal to the rest. So does one whose disk was set back: what it said in the life
// that it has forgotten does not count any more.
func TestNodesEndEqual(t *testing.T) {
	t.Parallel() // most of it is waiting
	w := start(t, cluster.Config{Managers: 1, Workers: 3, Spare: 1})
	a, off, back, late := w.Host(2), w.Host(3), w.Host(4), w.Host(5)
	w.ok(a, "network", "create", "net", "--ipv6")
	keep := map[*lab.Host]cluster.Endpoint{}
	for _, h := range []*lab.Host{a, off, back} {
		keep[h] = w.attach(h, "keep-"+h.Name(), "net")
	}
	old := w.attach(a, "old", "net")
	if err := off.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	w.ok(a, "detach", "old")
	young := w.attach(a, "young", "net")

	if err := back.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	w.sh(back, "cp /var/lib/heddle/node.db /var/lib/heddle/before")
	if err := back.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	forgotten := w.attach(back, "forgotten", "net")
	if err := back.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	w.sh(back, "mv /var/lib/heddle/before /var/lib/heddle/node.db")
	if err := w.SetMTU(back, 1400); err != nil { // it says so under a number that others know already
		t.Fatal(err)
	}

	for _, h := range []*lab.Host{off, back} {
		if err := h.StartDaemon(); err != nil {
			t.Fatal(err)
		}
	}
	w.ok(late, "join", w.Host(1).Addr().String(), "--token", w.ok(w.Host(1), "token", "create", "worker", "-q"))
	keep[late] = w.attach(late, "keep-late", "net")
	again := w.attach(back, "again", "net")
	w.soon(5*time.Second, "all hold the same", func(ctx context.Context) error {
		var errs []error
		for h := range keep {
			for _, e := range keep {
				errs = append(errs, w.holds(ctx, h, e.MAC, true))
			}
			errs = append(errs, w.holds(ctx, h, young.MAC, true), w.holds(ctx, h, again.MAC, true),
				w.holds(ctx, h, old.MAC, false), w.holds(ctx, h, forgotten.MAC, false))
		}
		return errors.Join(errs...)
	})
	w.soon(5*time.Second, "all know the MTU of n4", func(ctx context.Context) error {
		out, err := a.Output(ctx, in("keep-n2", []string{"cat", "/sys/class/net/eth0/mtu"})...)
		if err == nil && strings.TrimSpace(out) != "1350" {
			err = fmt.Errorf("it is %s on n2, want 1350", strings.TrimSpace(out))
		}
		return err
	})
	for h, e := range keep {
		w.reaches(late, "keep-late", e)
		w.reaches(h, e.Name, young)
	}
}

func TestAttachWorksWithPacketLoss(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 1, Workers: 2})
	a, b := w.Host(2), w.Host(3)
	w.ok(a, "network", "create", "net")
	w.attach(a, "a", "net")
	w.attach(b, "b", "net")
	if err := w.Loss(b, 30); err != nil {
		t.Fatal(err)
	}
	late := w.attach(b, "late", "net")
	if err := w.Heal(); err != nil {
		t.Fatal(err)
	}
	w.soon(5*time.Second, "the workload attached under loss is reached", func(context.Context) error {
		return w.ping(a, "a", late.IPv4.Addr())
	})
}

// What is changed by hand is repaired within a second.
func TestTheKernelIsRepaired(t *testing.T) {
	w := start(t, cluster.Config{Managers: 1, Workers: 1})
	a, b := w.Host(1), w.Host(2)
	w.ok(a, "network", "create", "one", "--ipv6")
	w.ok(a, "network", "create", "two", "--ipv6")
	for _, net := range []string{"one", "two"} {
		onA := w.attach(a, "a-"+net, net)
		w.attach(b, "b-"+net, net)
		var n []cluster.Network
		w.decode(b, &n, "network", "inspect", net)
		damage := map[string][]string{
			"one": {
				"bridge fdb del " + onA.MAC + " dev " + n[0].Device + " self",
				"bridge fdb del " + onA.MAC + " dev " + n[0].Device + " master",
				"ip neigh del " + onA.IPv4.Addr().String() + " dev " + n[0].Bridge,
			},
			"two": {"ip link del " + n[0].Device, "ip link del " + n[0].Bridge},
		}
		for _, args := range damage[net] {
			if err := b.Run(t.Context(), in(n[0].Namespace, strings.Fields(args))...); err != nil {
				t.Fatal(err)
			}
		}
		w.soon(time.Second, "repaired "+net, func(ctx context.Context) error {
			out, err := b.Output(ctx, in(n[0].Namespace, []string{"sh", "-c", "bridge fdb show dev " + n[0].Device + "; ip neigh show nud permanent"})...)
			if err == nil && strings.Count(out, onA.MAC) != 4 {
				return fmt.Errorf("%s", out)
			}
			for _, to := range addrs(onA) {
				if err == nil {
					err = w.ping(b, "b-"+net, to)
				}
			}
			return err
		})
	}
}

// A VXLAN frame from a host that is no member reaches nobody and is counted.
func TestFramesOfStrangersAreDroppedAndCounted(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 1, Workers: 1, Spare: 1})
	a, b, stranger := w.Host(1), w.Host(2), w.Host(3)
	w.ok(a, "network", "create", "net")
	victim := w.attach(a, "victim", "net")
	w.attach(b, "member", "net")
	var n []cluster.Network
	w.decode(a, &n, "network", "inspect", "net")
	forged := probe.Args("forge", "-to", a.Addr().String()+":4789", "-vni", fmt.Sprint(n[0].VNI), "-dst-mac", victim.MAC,
		"-src", "10.64.0.77", "-dst", victim.IPv4.Addr().String(), "-n", "20")
	before := w.dropped(a)
	if got := w.counted(a, "victim", func() error { return stranger.Run(t.Context(), forged...) }); got != 0 {
		t.Errorf("%d frames of a stranger came through", got)
	}
	if got := w.dropped(a) - before; got != 20 {
		t.Errorf("%d of 20 frames were counted as dropped", got)
	}
	before = w.dropped(b)
	if err := b.Run(t.Context(), probe.Args("as", append([]string{"65534"}, forged...)...)...); err == nil || !strings.Contains(err.Error(), "not permitted") {
		t.Errorf("a user of a member sends VXLAN: %v", err)
	}
	if got := w.dropped(b) - before; got != 1 { // the program ends at the first
		t.Errorf("%d frames of a user were counted as dropped, want 1", got)
	}
	// The same frames from a member without its rules do come through: the test would see them.
	if err := b.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	w.sh(b, "nft flush chain inet heddle output")
	if got := w.counted(a, "victim", func() error { return b.Run(t.Context(), forged...) }); got != 20 {
		t.Errorf("%d of 20 frames of a member came through", got)
	}
}

// dropped is the host's counter of frames refused by their source.
func (w world) dropped(h *lab.Host) uint64 {
	w.t.Helper()
	var s cluster.Status
	w.decode(h, &s, "status", "--format", "json")
	var sum uint64
	for name, n := range s.Counters {
		if strings.Contains(strings.ToLower(name), "frame") {
			sum += n
		}
	}
	return sum
}

// counted is how many UDP packets come to a workload's port 7777 while the step runs.
func (w world) counted(h *lab.Host, workload string, step func() error) (got int) {
	w.t.Helper()
	r, out, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	p, err := h.Start(lab.Command{Args: in(workload, probe.Args("count", "-for", "700ms")), Stdout: out, Stderr: out})
	out.Close()
	if err != nil {
		w.t.Fatal(err)
	}
	buf := make([]byte, 64)
	if n, _ := r.Read(buf); string(buf[:n]) != "listening\n" {
		w.t.Fatalf("count said %q", buf[:n])
	}
	if err := step(); err != nil {
		w.t.Fatal(err)
	}
	if err := p.Wait(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	n, _ := r.Read(buf)
	if _, err := fmt.Sscan(string(buf[:n]), &got); err != nil {
		w.t.Fatal(err)
	}
	return got
}
