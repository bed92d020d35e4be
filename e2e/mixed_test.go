//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

// previous is the commit that landed last: what operators run when they upgrade to this one. Each
// landing moves it on, to the last commit of the one before. What waits for a feature level is
// looked at while that commit has a lower one than this build.
const (
	previous      = "6af64002bcfa7e5520d3e66c38907793711788d0"
	previousLevel = 2
	level         = 4 // of this build
	sealedLevel   = 3 // with which encrypted networks came in
)

// build makes the program of a commit, as the Makefile does, and returns its file.
func build(t *testing.T, commit string) string {
	t.Helper()
	dir := t.TempDir()
	run := func(where, line string, args ...string) {
		t.Helper()
		c := exec.CommandContext(t.Context(), "sh", append([]string{"-c", line, "sh"}, args...)...)
		c.Dir = where
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	if exec.Command("git", "cat-file", "-e", commit+"^{commit}").Run() != nil {
		t.Fatalf("the history here lacks commit %s, the build that this one must live with; fetch it: git fetch --unshallow", commit)
	}
	src, file := filepath.Join(dir, "src"), filepath.Join(dir, "bin", "heddle")
	run("..", `mkdir "$2" && git archive "$1" | tar -x -C "$2"`, commit, src)
	run(src, `CGO_ENABLED=0 go build -trimpath -tags hashicorpmetrics -ldflags "-s -w -X main.version=$1" -o "$2" ./cmd/heddle`, commit[:7], file)
	return file
}

// upgrading is a cluster whose hosts go over to this build one after the other, while all of
// them make networks and attach to them.
type upgrading struct {
	world
	program string
	busy    map[*lab.Host]*sync.Mutex // held while the host's daemon is away
	done    map[*lab.Host]int         // rounds of churn
	end     func()
	stage   int
}

// A cluster goes over to this build from the one before: workers, followers, the leader. At no
// time does anybody lack anything that worked before, and in the end what is new works.
func TestMixedVersions(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir, err := cluster.Bin()
	if err != nil {
		t.Fatal(err)
	}
	old := build(t, previous)
	w := &upgrading{
		world:   start(t, cluster.Config{Managers: 3, Workers: 1, Spare: 2, Lab: lab.Config{Bin: filepath.Dir(old)}}),
		program: filepath.Join(dir, "heddle"), busy: map[*lab.Host]*sync.Mutex{}, done: map[*lab.Host]int{},
	}
	worker, late, last := w.Host(4), w.Host(5), w.Host(6)
	w.ok(w.Host(1), "network", "create", "blue")
	for _, h := range w.Hosts()[:4] {
		w.ok(h, "attach", "w-"+h.Name(), "--network", "blue")
	}
	quiet := w.stream(worker, "w-n4", w.endpoint(w.Host(1), "w-n1").IPv4.Addr())
	w.churn(w.Hosts()[:4])

	w.upgrade(worker)
	w.meet("a new worker of old managers", w.Hosts()[:4])
	w.upgrade(late)
	w.ok(late, "join", w.Host(1).Addr().String(), "--token", w.ok(w.Host(1), "token", "create", "worker", "-q"))
	w.ok(late, "attach", "w-n5", "--network", "blue")
	w.meet("a node that has joined old managers", w.Hosts()[:5])

	leader, followers := w.split()
	w.upgrade(followers[0])
	w.meet("one new manager of three", w.Hosts()[:5])
	w.waits(late, leader.Name(), followers[1].Name())
	w.upgrade(followers[1])
	w.meet("two new managers, led by an old one", w.Hosts()[:5])
	w.waits(followers[0], leader.Name())
	w.restart(leader) // as it is
	if now, _ := w.split(); now == leader {
		t.Error("the old manager leads again")
	}
	w.meet("an old manager, led by a new one", w.Hosts()[:5])
	w.waits(followers[1], leader.Name())

	w.upgrade(leader)
	w.soon(10*time.Second, "the new feature level comes by itself", func(ctx context.Context) error {
		_, err := w.Do(ctx, worker, "network", "create", "sealed", "--encrypted")
		return err
	})
	for _, h := range w.Hosts()[:5] {
		w.soon(3*time.Second, h.Name()+" waits for nobody", func(ctx context.Context) error {
			var s cluster.Status
			if err := w.JSON(ctx, h, &s, "status", "--format", "json"); err != nil || len(s.Problems) == 0 {
				return err
			}
			return errors.New(strings.Join(s.Problems, "; "))
		})
	}
	w.meet("all new", w.Hosts()[:5])

	via := w.Host(1).Addr().String()
	behind := []string{fmt.Sprintf("n6 .*reads level %d", previousLevel), "upgrade heddle there"}
	if previousLevel < level {
		w.refused(last, 1, behind, "join", via, "--token", w.ok(w.Host(1), "token", "create", "manager", "-q"))
	}
	w.ok(last, "join", via, "--token", w.ok(w.Host(1), "token", "create", "worker", "-q"))
	w.ok(last, "attach", "w-n6", "--network", "blue")
	w.meet("an old worker of new managers", w.Hosts())
	w.soon(5*time.Second, "the managers know what n6 runs", func(ctx context.Context) error {
		version, err := w.Do(ctx, worker, "node", "ls", "--filter", "name=n6", "--format", "{{.Version}}")
		if err == nil && version != previous[:7] {
			err = fmt.Errorf("n6 runs %q", version)
		}
		return err
	})
	if previousLevel < level {
		w.refused(w.Host(1), 1, behind, "node", "promote", "n6")
	}
	w.upgrade(last)
	w.meet("an old worker of new managers goes over", w.Hosts())
	w.end()
	quiet()
}

// churn makes networks and attaches to them on each of the hosts, over and over.
func (w *upgrading) churn(hosts []*lab.Host) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var all sync.WaitGroup
	var mu sync.Mutex
	for _, h := range hosts {
		busy := &sync.Mutex{}
		w.busy[h] = busy
		all.Go(func() {
			tick := time.NewTicker(500 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				busy.Lock()
				err := w.round(h, fmt.Sprintf("%s-%d", h.Name(), i))
				busy.Unlock()
				if err != nil {
					if w.t.Context().Err() == nil {
						w.t.Errorf("round %d: %v", i, err)
					}
					return
				}
				mu.Lock()
				w.done[h]++
				mu.Unlock()
				<-tick.C
			}
		})
	}
	w.end = sync.OnceFunc(func() {
		cancel()
		all.Wait()
		w.t.Logf("rounds of churn: %v", slices.Sorted(maps.Values(w.done)))
	})
	w.t.Cleanup(w.end)
}

// round is one network with one workload, and another workload in the network of all.
func (w *upgrading) round(h *lab.Host, name string) error {
	ctx := w.t.Context()
	for _, args := range [][]string{
		{"network", "create", name}, {"attach", name, "--network", name}, {"attach", name + "b", "--network", "blue"}, {"detach", name}, {"detach", name + "b"},
	} {
		if _, err := w.Do(ctx, h, args...); err != nil {
			return err
		}
	}
	return cluster.Eventually(ctx, 5*time.Second, func(ctx context.Context) error { // the managers may not know yet that it is empty
		_, err := w.Do(ctx, h, "network", "rm", name)
		return err
	})
}

// restart stops a host's daemon and starts it again; before is called in between.
func (w *upgrading) restart(h *lab.Host, before ...func()) {
	w.t.Helper()
	if busy := w.busy[h]; busy != nil {
		busy.Lock()
		defer busy.Unlock()
	}
	if err := h.StopDaemon(); err != nil {
		w.t.Fatal(err)
	}
	for _, f := range before {
		f()
	}
	if err := h.StartDaemon(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *upgrading) upgrade(h *lab.Host) {
	w.t.Helper()
	w.restart(h, func() { h.Install(w.program) })
}

// split is the leader and the other managers.
func (w *upgrading) split() (leader *lab.Host, followers []*lab.Host) {
	w.t.Helper()
	w.soon(5*time.Second, "a leader", func(ctx context.Context) (err error) {
		leader, err = w.Leader(ctx, w.Host(4))
		return err
	})
	return leader, slices.DeleteFunc(slices.Clone(w.Managers()), func(h *lab.Host) bool { return h == leader })
}

// meet fails the test unless a new workload on each host reaches, and is reached by, those that
// stand on all hosts from the start. It stays: nobody who has met its address is told when, a while
// after it went, another takes it.
func (w *upgrading) meet(stage string, hosts []*lab.Host) {
	w.t.Helper()
	begin := time.Now()
	w.stage++
	stands := map[*lab.Host]cluster.Endpoint{}
	var all []netip.Addr
	for _, h := range hosts {
		stands[h] = w.endpoint(h, "w-"+h.Name())
		all = append(all, stands[h].IPv4.Addr())
	}
	for _, h := range hosts {
		name := fmt.Sprintf("s%d-%s", w.stage, h.Name())
		w.ok(h, "attach", name, "--network", "blue")
		e := w.endpoint(h, name)
		w.soon(5*time.Second, stage, func(context.Context) error { // who was too busy to acknowledge is named, and follows
			err := w.ping(h, e.Name, all...)
			for _, other := range hosts {
				err = errors.Join(err, w.ping(other, stands[other].Name, e.IPv4.Addr()))
			}
			return err
		})
	}
	var rows []cluster.Node
	w.decode(hosts[0], &rows, "node", "ls", "--format", "json")
	var who []string
	for _, r := range rows {
		who = append(who, r.Name+" "+r.Version+" "+r.ManagerStatus)
	}
	w.t.Logf("%s: %s (%s)", stage, strings.Join(who, ", "), time.Since(begin).Round(time.Millisecond))
}

// waits fails the test unless a host says that the new feature level waits for these managers.
func (w *upgrading) waits(h *lab.Host, managers ...string) {
	w.t.Helper()
	if previousLevel == level {
		return
	}
	words := []string{"upgrade heddle there"}
	for _, name := range managers {
		words = append(words, fmt.Sprintf(`%s \(heddle %s, reads level %d\)`, name, previous[:7], previousLevel))
	}
	if previousLevel < sealedLevel {
		w.refused(h, 1, append([]string{fmt.Sprint("feature level ", sealedLevel)}, words...), "network", "create", "sealed", "--encrypted")
	}
	var s cluster.Status
	w.decode(h, &s, "status", "--format", "json")
	for _, word := range append(words, fmt.Sprint("feature level ", level)) {
		if said := strings.Join(s.Problems, "\n"); !regexp.MustCompile(word).MatchString(said) {
			w.t.Errorf("the status of %s does not say %q: %s", h.Name(), word, said)
		}
	}
}
