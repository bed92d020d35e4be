//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/oracle"
	"github.com/heddle-net/heddle/e2e/probe"
)

// judges are what every scenario's hosts have to pass, whatever the scenario is about.
type judges struct {
	mu     sync.Mutex
	judged map[*testing.T]bool
	before map[*lab.Host]map[string]int // what a host had before it was in a cluster
	own    map[*lab.Host]bool           // hosts to which the scenario has done things of its own
}

func newJudges() *judges {
	return &judges{judged: map[*testing.T]bool{}, before: map[*lab.Host]map[string]int{}, own: map[*lab.Host]bool{}}
}

// judge compares all kernels with what is said of them, and looks for a network's frames in
// another's workloads. It runs once at the end of each test, before what the test has attached goes.
func (w world) judge() {
	w.t.Helper()
	w.mu.Lock()
	done := w.judged[w.t]
	w.judged[w.t] = true
	w.mu.Unlock()
	if done || w.t.Failed() {
		return
	}
	ctx := context.Background() // the test's own has ended
	err := cluster.Eventually(ctx, 10*time.Second, func(ctx context.Context) error { return lines(oracle.Map(ctx, w.Cluster)) })
	if err != nil {
		w.t.Errorf("the kernels do not hold what is said: %v", err)
	}
	if err := lines(oracle.Canaries(ctx, w.Cluster)); err != nil {
		w.t.Errorf("networks are not apart: %v", err)
	}
}

func lines(list []string, err error) error {
	if err == nil && len(list) > 0 {
		slices.Sort(list)
		err = errors.New(strings.Join(list, "\n"))
	}
	return err
}

// takeStock notes what the hosts have before they are in a cluster.
func (w world) takeStock() {
	w.t.Helper()
	var all sync.WaitGroup
	for _, h := range w.Hosts() {
		all.Go(func() {
			have := w.inventory(h)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.before[h] = have
		})
	}
	all.Wait()
}

// leave takes all hosts out of their clusters. Nothing may stay but what the scenario itself has
// made there. Where a daemon is away nothing is said.
func (w world) leave() {
	w.t.Helper()
	away := func(h *lab.Host) bool { return h.Daemon() == nil }
	if w.t.Failed() || slices.ContainsFunc(w.Hosts(), away) {
		return
	}
	leave := func(h *lab.Host) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		_, err := w.Do(ctx, h, "leave", "--force")
		if e, refused := errors.AsType[*lab.ExitError](err); err != nil && !(refused && strings.Contains(e.Stderr, "no cluster")) {
			w.t.Error(err)
		}
	}
	var all sync.WaitGroup
	for _, h := range w.Hosts()[len(w.Managers()):] {
		all.Go(func() { leave(h) })
	}
	all.Wait()
	for _, h := range slices.Backward(w.Managers()) {
		leave(h)
	}
	for _, h := range w.Hosts() {
		all.Go(func() { w.nothingIsLeft(h) })
	}
	all.Wait()
}

// nothingIsLeft fails the test unless a host is soon as it was before it was in a cluster.
func (w world) nothingIsLeft(h *lab.Host) {
	w.t.Helper()
	err := cluster.Eventually(context.Background(), 10*time.Second, func(ctx context.Context) error {
		have, err := oracle.Inventory(ctx, h)
		if err != nil {
			return err
		}
		left := oracle.Leftovers(w.before[h], have)
		return lines(slices.DeleteFunc(left, func(line string) bool { return w.own[h] && !oracle.Marked(line) }), nil)
	})
	if err != nil {
		w.t.Errorf("%s has left its cluster: %v", h.Name(), err)
	}
}

// touch notes that a scenario changes a host itself: of what is left there only heddle's own
// counts.
func (w world) touch(h *lab.Host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.own[h] = true
}

// SetMTU is the lab's.
func (w world) SetMTU(h *lab.Host, mtu int) error {
	w.touch(h)
	return w.Lab.SetMTU(h, mtu)
}

// SetAddr is the lab's.
func (w world) SetAddr(h *lab.Host, a netip.Addr) error {
	w.touch(h)
	return w.Lab.SetAddr(h, a)
}

// tap captures on the underlay of hosts. The function that it returns ends that, and tells how many
// frames there were and how many had the text.
func (w world) tap(text string, hosts ...*lab.Host) func() probe.Captured {
	w.t.Helper()
	u, err := oracle.Tap(w.t.Context(), text, hosts...)
	if err != nil {
		w.t.Fatal(err)
	}
	return func() probe.Captured {
		w.t.Helper()
		c, err := u.End(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		return c
	}
}

// pair is two hosts with a workload each in two networks that have the same addresses.
func pair(t *testing.T) (w world, a, b *lab.Host) {
	w = start(t, cluster.Config{Managers: 1, Workers: 1})
	a, b = w.Host(1), w.Host(2)
	for _, name := range []string{"red", "blue"} {
		w.ok(a, "network", "create", name, "--subnet", "10.70.0.0/24", "--subnet", "fd70::/64")
		w.attach(a, name+"-a", name, "--ip", "10.70.0.10", "--ip6", "fd70::10")
		w.attach(b, name+"-b", name, "--ip", "10.70.0.11", "--ip6", "fd70::11")
	}
	return w, a, b
}

// The oracles see what is wrong: it is done here behind the back of a daemon that is away. One that
// saw nothing would let every scenario pass.
func TestTheOraclesSee(t *testing.T) {
	t.Parallel() // most of it is waiting
	w, a, b := pair(t)
	before := w.inventory(b)
	w.soon(2*time.Second, "nothing is wrong yet", func(ctx context.Context) error { return lines(oracle.Map(ctx, w.Cluster)) })
	truth, _, err := oracle.Ask(t.Context(), w.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	cages, err := oracle.Ready(t.Context(), w.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	far, near := w.endpoint(a, "red-a"), cluster.Endpoint{}
	for _, e := range w.listed(a) {
		if e.Name == "red-b" {
			near = e
		}
	}
	red, port := "heddle-"+far.NetworkID[:12], "ep-"+near.ID[:12]
	for _, tc := range []struct{ do, undo, says string }{
		{"bridge -n RED fdb del FAR dev vxlan0 self", "bridge -n RED fdb add FAR dev vxlan0 dst 192.168.77.1 self static", "lacks: RED: FAR by vxlan0 to 192.168.77.1"},
		{"bridge -n RED fdb del FAR dev vxlan0 master", "bridge -n RED fdb add FAR dev vxlan0 master static", "lacks: RED: FAR by vxlan0"},
		{"bridge -n RED fdb replace FAR dev vxlan0 dst 192.168.77.9 self static", "bridge -n RED fdb replace FAR dev vxlan0 dst 192.168.77.1 self static", "should not have: RED: FAR by vxlan0 to 192.168.77.9"},
		{"bridge -n RED fdb add 02:00:00:00:00:99 dev vxlan0 dst 192.168.77.1 self static", "bridge -n RED fdb del 02:00:00:00:00:99 dev vxlan0 self", "should not have: RED: 02:00:00:00:00:99"},
		{"ip -n RED neigh del fd70::10 dev br0", "ip -n RED neigh add fd70::10 lladdr FAR dev br0 nud permanent", "lacks: RED: neighbour fd70::10 is FAR"},
		{"ip -n RED link set PORT nomaster", "ip -n RED link set PORT master br0 && bridge -n RED fdb add NEAR dev PORT master static", "lacks: RED: link PORT up in br0"},
		{"ip -n red-b link set eth0 down", "ip -n red-b link set eth0 up && ip -n red-b addr add fd70::11/64 dev eth0 nodad", "lacks: /run/netns/red-b: eth0 of red-b is NEAR, up"},
		{"ip -n red-b addr add 10.70.0.99/24 dev eth0", "ip -n red-b addr del 10.70.0.99/24 dev eth0", "should not have: /run/netns/red-b: eth0 has 10.70.0.99/24"},
	} {
		names := strings.NewReplacer("RED", red, "FAR", far.MAC, "NEAR", near.MAC, "PORT", port)
		w.sh(b, names.Replace(tc.do))
		if said := fmt.Sprint(lines(truth.Compare(t.Context()))); !strings.Contains(said, names.Replace(tc.says)) {
			t.Errorf("after %s it is said: %s", names.Replace(tc.do), said)
		}
		w.sh(b, names.Replace(tc.undo))
		if err := lines(truth.Compare(t.Context())); err != nil {
			t.Errorf("after %s: %v", names.Replace(tc.undo), err)
		}
	}
	if err := lines(cages.Sing(t.Context())); err != nil {
		t.Errorf("of networks that are apart it is said: %v", err)
	}
	for i := range cages[b] { // as if it were in another network, in which it hears those of its own
		if c := &cages[b][i]; c.NS == "/run/netns/red-b" {
			c.Network = "green"
		}
	}
	said := fmt.Sprint(lines(cages.Sing(t.Context())))
	for _, word := range []string{"frames of network red at eth0 of /run/netns/red-b, which is in network green", "frames of network green at eth0 of /run/netns/red-a, which is in network red"} {
		if !strings.Contains(said, word) {
			t.Errorf("%q is not heard: %s", word, said)
		}
	}
	if err := b.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	w.sh(b, "ip netns add heddle-odd && nft add table inet heddle-odd && touch /run/heddle/odd && sysctl -qw net.ipv4.conf.eth0.send_redirects=0 && ip route add 198.51.100.0/24 via "+a.Addr().String())
	said = fmt.Sprint(lines(oracle.Leftovers(before, w.inventory(b)), nil))
	for _, line := range []string{"file /run/netns/heddle-odd", "nft table inet heddle-odd {", "file /run/heddle/odd", "setting /proc/sys/net/ipv4/conf/eth0/send_redirects:0", "route 198.51.100.0/24"} {
		if !strings.Contains(said, "left: "+line) {
			t.Errorf("%q is not seen to be left: %s", line, said)
		}
	}
	w.sh(b, "ip netns del heddle-odd && nft delete table inet heddle-odd && rm /run/heddle/odd && sysctl -qw net.ipv4.conf.eth0.send_redirects=1 && ip route del 198.51.100.0/24")
}

// What a plain network carries is there to read on the underlay; of what a sealed one carries, the
// same capture finds nothing.
func TestACaptureFindsWhatIsInTheClear(t *testing.T) {
	w, a, b := pair(t)
	w.ok(a, "network", "create", "sealed", "--encrypted", "--ipv6", "--internal") // what leaves for elsewhere is not sealed
	w.attach(a, "sealed-a", "sealed")
	w.reaches(a, "sealed-a", w.attach(b, "sealed-b", "sealed"))
	for network, clear := range map[string]bool{"red": true, "sealed": false} {
		for _, h := range []*lab.Host{a, b} {
			end := w.tap("heddle-canary<"+network+">", h)
			if err := lines(oracle.Canaries(t.Context(), w.Cluster)); err != nil {
				t.Error(err)
			}
			if c := end(); c.Frames < 20 || clear && c.Found < 10 || !clear && c.Found > 0 {
				t.Errorf("of %s the capture at %s has found %+v", network, h.Name(), c)
			}
		}
	}
}

// inventory is what a host has.
func (w world) inventory(h *lab.Host) map[string]int {
	w.t.Helper()
	have, err := oracle.Inventory(context.Background(), h)
	if err != nil {
		w.t.Error(err)
	}
	return have
}

// listed are the endpoints of the cluster, as a host lists them.
func (w world) listed(h *lab.Host) (rows []cluster.Endpoint) {
	w.t.Helper()
	w.decode(h, &rows, "endpoint", "ls", "--format", "json")
	return rows
}
