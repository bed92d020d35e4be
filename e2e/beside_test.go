//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// What Swarm and flannel have on the same port, with VNIs of their own, works on through init,
// join, attach, detach and leave: no packet of theirs is lost.
func TestOthersVXLANOnTheSamePort(t *testing.T) {
	t.Parallel()
	w := startHosts(t, cluster.Config{Managers: 1, Workers: 1})
	a, b := w.Host(1), w.Host(2)
	for i, h := range []*lab.Host{a, b} {
		peer := []*lab.Host{b, a}[i]
		// Swarm: made in the host's namespace, moved to one of its own; it learns and asks.
		w.sh(h, fmt.Sprintf("ip netns add swarm && ip link add vx-001001 type vxlan id 4097 dstport 4789 local %s remote %s proxy l2miss l3miss && "+
			"ip link set vx-001001 netns swarm && ip -n swarm addr add 10.250.0.%d/24 dev vx-001001 && ip -n swarm link set vx-001001 address 02:42:0a:fa:00:0%d && "+
			"ip -n swarm link set vx-001001 up && ip -n swarm neigh add 10.250.0.%d lladdr 02:42:0a:fa:00:0%d dev vx-001001 nud permanent",
			h.Addr(), peer.Addr(), i+1, i+1, 2-i, 2-i))
		// flannel: in the host's namespace, with static entries and routes.
		w.sh(h, fmt.Sprintf("ip link add flannel.1 address 02:f1:00:00:00:0%d type vxlan id 1 dstport 4789 local %s nolearning && ip addr add 10.244.%d.0/32 dev flannel.1 && "+
			"ip link set flannel.1 up && bridge fdb append 02:f1:00:00:00:0%d dev flannel.1 dst %s && ip neigh add 10.244.%d.0 lladdr 02:f1:00:00:00:0%d dev flannel.1 nud permanent && "+
			"ip route add 10.244.%d.0/24 via 10.244.%d.0 dev flannel.1 onlink",
			i+1, h.Addr(), i+1, 2-i, peer.Addr(), 2-i, 2-i, 2-i, 2-i))
	}
	swarm := w.streamBy(a, 10*time.Millisecond, []netip.Addr{netip.MustParseAddr("10.250.0.2")}, func(args []string) []string { return in("swarm", args) })
	flannel := w.streamBy(b, 10*time.Millisecond, []netip.Addr{netip.MustParseAddr("10.244.1.0")}, func(args []string) []string { return args })
	w.ok(a, "init", "--advertise-addr", a.Addr().String())
	w.ok(b, "join", a.Addr().String(), "--token", w.ok(a, "token", "create", "worker", "-q"))
	w.ok(a, "network", "create", "net", "--ipv6")
	for range 3 {
		w.ok(a, "attach", "one", "--network", "net")
		w.ok(b, "attach", "two", "--network", "net")
		w.reaches(a, "one", w.endpoint(b, "two"))
		w.reaches(b, "two", w.endpoint(a, "one"))
		w.ok(a, "detach", "one")
		w.ok(b, "detach", "two")
	}
	w.ok(a, "network", "rm", "net")
	w.ok(b, "leave")
	w.ok(a, "leave", "--force")
	swarm()
	flannel()
}

// A port that a program holds is an error that names it.
func TestAPortIsHeldByAProgram(t *testing.T) {
	t.Parallel()
	w := startHosts(t, cluster.Config{Managers: 1, Workers: 1})
	a, b := w.Host(1), w.Host(2)
	for _, port := range []string{"5377/tcp", "5378/tcp", "5378/udp", "4789/udp"} {
		free := w.hold(a, port)
		w.refused(a, 1, []string{"port " + port + ` is taken by \S+ \(PID \d+\)`}, "init")
		free()
	}
	w.ok(a, "init", "--advertise-addr", a.Addr().String())
	token := w.ok(a, "token", "create", "worker", "-q")
	free := w.hold(b, "4789/udp")
	w.refused(b, 1, []string{`4789/udp is taken by \S+ \(PID \d+\)`}, "join", a.Addr().String(), "--token", token)
	free()
	w.ok(b, "join", a.Addr().String(), "--token", token)
	w.ok(a, "network", "create", "net")
	free = w.hold(b, "4789/udp") // after the join, before the first device
	w.refused(b, 1, []string{`UDP port 4789 for VXLAN is taken by \S+ \(PID \d+\)`}, "attach", "x", "--network", "net")
	free()
	w.ok(b, "attach", "x", "--network", "net")
	if out := w.ok(b, "status"); strings.Contains(out, "is taken") {
		t.Errorf("status goes on about it: %s", out)
	}
}

// hold starts a process that has ports of the host open, such as 53/udp, until free is called.
func (w world) hold(h *lab.Host, ports ...string) (free func()) {
	w.t.Helper()
	r, out, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	p, err := h.Start(lab.Command{Args: probe.Args("hold", ports...), Stdout: out})
	out.Close()
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 20)); err != nil {
		w.t.Fatal("hold did not start:", err)
	}
	return func() {
		if err := p.Kill(); err != nil {
			w.t.Fatal(err)
		}
		_ = p.Wait(w.t.Context())
	}
}
