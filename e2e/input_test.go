//go:build linux

package e2e

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// Each bad request is refused with one line that says what and what to do, and makes nothing.
func TestBadInput(t *testing.T) {
	w := common(t)
	h := w.Host(4)
	net := w.network(h, "--subnet", "10.30.0.0/24")
	w.attach(h, "taken", net)
	far := w.attach(w.Host(5), "far", net)
	if err := h.Run(t.Context(), "ip", "netns", "add", "occupied"); err != nil {
		t.Fatal(err)
	}
	defer h.Run(context.Background(), "ip", "netns", "del", "occupied")
	if err := h.Run(t.Context(), in("occupied", []string{"ip", "link", "add", "eth0", "type", "bridge"})...); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("n", 64)
	before := w.everything(h)
	for _, c := range []struct {
		name string
		code int
		args string
		says []string
	}{
		{"attach to an unknown network", 1, "attach a --network nowhere", []string{"nowhere", "network (ls|create)"}},
		{"attach to no network", 2, "attach a", []string{"--network"}},
		{"inspect an unknown network", 1, "network inspect nowhere", []string{"nowhere"}},
		{"remove an unknown network", 1, "network rm nowhere", []string{"nowhere"}},
		{"detach an unknown workload", 1, "detach nobody", []string{"nobody"}},
		{"a network name that is taken", 1, "network create " + net, []string{net, "another name|taken|exists"}},
		{"a malformed CIDR", 2, "network create n --subnet 10.1.0.0/33", []string{"10.1.0.0/33"}},
		{"a subnet with host bits", 2, "network create n --subnet 10.1.0.1/24", []string{"10.1.0.0/24"}},
		{"subnets that overlap", 2, "network create n --subnet 10.1.0.0/16 --subnet 10.1.2.0/24", []string{"overlap"}},
		{"an unknown driver", 2, "network create n -d swarm", []string{"swarm", "overlay"}},
		{"an unknown option", 2, "network create n -o speed=9", []string{"speed"}},
		{"an MTU that is none", 2, "network create n -o mtu=big", []string{"mtu"}},
		{"no family at all", 2, "network create n --ipv4=false", []string{"--ipv6"}},
		{"a network name of 64 characters", 2, "network create " + long, []string{"63"}},
		{"a network name with a slash", 2, "network create a/b", []string{"a/b"}},
		{"a workload name of 64 characters", 2, "attach " + long + " --network " + net, []string{"63"}},
		{"a workload name with a space", 2, "attach a!b --network " + net, []string{"a!b"}},
		{"an address outside the subnet", 1, "attach a --network " + net + " --ip 203.0.113.9", []string{"203.0.113.9"}},
		{"an address in another node's lease", 1, "attach a --network " + net + " --ip " + far.IPv4.Addr().String(), []string{far.IPv4.Addr().String(), "n5"}},
		{"an address that is none", 2, "attach a --network " + net + " --ip 10.1", []string{"10.1"}},
		{"an IPv6 address in an IPv4 network", 1, "attach a --network " + net + " --ip6 fd00::7", []string{"fd00::7|IPv6"}},
		{"a group MAC", 2, "attach a --network " + net + " --mac 01:00:5e:00:00:01", []string{"01:00:5e:00:00:01"}},
		{"the gateway's MAC", 1, "attach a --network " + net + " --mac 02:68:65:64:00:01", []string{"gateway"}},
		{"a namespace that does not exist", 1, "attach a --network " + net + " --netns /run/netns/none", []string{"/run/netns/none"}},
		{"a file that is no namespace", 1, "attach a --network " + net + " --netns /etc/hostname", []string{"/etc/hostname"}},
		{"a process that does not exist", 1, "attach a --network " + net + " --pid 999999", []string{"999999"}},
		{"a foreign link with our name", 1, "attach a --network " + net + " --netns /run/netns/occupied --ifname eth0", []string{"eth0"}},
		{"two targets", 2, "attach a --network " + net + " --netns occupied --pid 1", []string{"--netns", "--pid"}},
		{"a second init", 1, "init", []string{"cluster", "leave"}},
		{"a second join", 1, "join 192.168.77.1 --token HDL1-x", []string{""}},
		{"an unknown verb", 2, "netwrok ls", []string{"netwrok"}},
		{"an unknown flag", 2, "network ls --frmat json", []string{"frmat"}},
		{"a node that does not exist", 1, "node inspect nobody", []string{"nobody"}},
		{"a token role that is none", 2, "token create king", []string{"king"}},
		{"run without a command", 2, "run --network " + net, []string{"--"}},
		{"run of a program that does not exist", 127, "run --network " + net + " -- no-such-program", []string{"no-such-program"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w
			w.t = t
			w.refused(h, c.code, c.says, strings.Fields(c.args)...)
			if after := w.everything(h); after != before {
				t.Errorf("something was made:\nbefore\n%s\nafter\n%s", before, after)
			}
		})
	}
}

// everything is what a host has and lists, as text.
func (w world) everything(h *lab.Host) string {
	w.t.Helper()
	var b strings.Builder
	for _, args := range [][]string{{"network", "ls", "-q"}, {"endpoint", "ls", "-q"}, {"node", "ls", "-q"}} {
		b.WriteString(w.ok(h, args...) + "\n")
	}
	names, err := os.ReadDir(h.Path("/run/netns"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, n := range names {
		links, _ := h.Output(w.t.Context(), "ip", "-n", n.Name(), "-br", "link")
		b.WriteString(n.Name() + "\n" + links)
	}
	return b.String()
}

func TestANetworkWithEndpointsIsNotRemoved(t *testing.T) {
	w := common(t)
	net := w.network(w.Host(1))
	w.attach(w.Host(4), "holder-a", net)
	w.attach(w.Host(5), "holder-b", net)
	w.refused(w.Host(2), 1, []string{"n4/holder-a", "n5/holder-b"}, "network", "rm", net)
}

func TestOthersThanRootAreTold(t *testing.T) {
	w := common(t)
	h := w.Host(4)
	for _, args := range [][]string{{"heddle", "status"}, {"heddle", "network", "ls"}} {
		_, err := h.Output(t.Context(), probe.Args("as", append([]string{"65534"}, args...)...)...)
		w.isRefusal(err, 1, []string{"root", "permission"})
	}
	_, err := h.Output(t.Context(), probe.Args("as", "65534", "heddle", "daemon")...)
	w.isRefusal(err, 1, []string{"root"})
}

func TestWithoutADaemonTheCommandLineSaysSo(t *testing.T) {
	w := startHosts(t, cluster.Config{Managers: 1})
	h := w.Host(1)
	w.refused(h, 1, []string{"no cluster", "heddle init"}, "network", "ls")
	if err := h.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"status"}, {"init"}, {"network", "ls"}, {"attach", "a", "--network", "b"}} {
		w.refused(h, 1, []string{"no heddle daemon", "systemctl start heddle"}, args...)
	}
}
