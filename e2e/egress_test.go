//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// serve runs a web server on a host itself, outside of all overlays.
func (w world) serve(h *lab.Host) {
	w.t.Helper()
	w.serveBy(h, probe.Args("serve", "-text", "from outside"))
}

// serveIn runs a web server in a workload.
func (w world) serveIn(h *lab.Host, workload string) {
	w.t.Helper()
	w.serveBy(h, in(workload, probe.Args("serve", "-text", "from "+workload)))
}

func (w world) serveBy(h *lab.Host, args []string) {
	w.t.Helper()
	r, out, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	p, err := h.Start(lab.Command{Args: args, Stdout: out})
	out.Close()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { p.Kill() })
	if _, err := r.Read(make([]byte, 80)); err != nil {
		w.t.Fatal("the server did not start:", err)
	}
}

// fetches gets a page of a host from inside a workload, and returns what the server said.
func (w world) fetches(h *lab.Host, workload, host string) (string, error) {
	w.t.Helper()
	return h.Output(w.t.Context(), in(workload, probe.Args("fetch", "-timeout", "1s", "http://"+host+"/"))...)
}

// sh runs a line of shell on a host, which is not as before then.
func (w world) sh(h *lab.Host, line string) {
	w.t.Helper()
	w.touch(h)
	if err := h.Run(w.t.Context(), "sh", "-c", line); err != nil {
		w.t.Fatal(err)
	}
}

// outside is a cluster of two, on an underlay of both families, whose first host serves pages.
func outside(t *testing.T) (w world, a, server *lab.Host) {
	t.Helper()
	w = startHosts(t, cluster.Config{Managers: 1, Workers: 1, Lab: lab.Config{IPv6: true}})
	server, a = w.Host(1), w.Host(2)
	w.ok(server, "init", "--advertise-addr", server.Addr().String())
	w.ok(a, "join", server.Addr().String(), "--token", w.ok(server, "token", "create", "worker", "-q"))
	w.serve(server)
	return w, a, server
}

func TestWorkloadsReachTheOutside(t *testing.T) {
	w, a, server := outside(t)
	w.ok(a, "network", "create", "net", "--ipv6")
	w.ok(a, "network", "create", "closed", "--ipv6", "--internal")
	w.attach(a, "web", "net")
	w.attach(a, "alone", "closed")
	for _, at := range []struct{ server, source string }{
		{server.Addr().String(), a.Addr().String()},
		{"[" + server.Addr6().String() + "]", a.Addr6().String()},
	} {
		said, err := w.fetches(a, "web", at.server)
		if err != nil || !strings.Contains(said, "asked by "+at.source) {
			t.Errorf("from %s: %q, %v; want it from the host's own address %s", at.server, said, err, at.source)
		}
		if said, err := w.fetches(a, "alone", at.server); err == nil {
			t.Errorf("a workload of an internal network has fetched %q", said)
		}
	}
	if err := a.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.fetches(a, "web", server.Addr().String()); err != nil {
		t.Errorf("without the daemon: %v", err)
	}
	before := w.links(a)
	if err := a.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	w.attach(a, "web2", "net")
	w.ok(a, "detach", "web2")
	if after := w.links(a); after != before {
		t.Errorf("a restart changed\n%s\nto\n%s", before, after)
	}
	w.ok(a, "detach", "web")
	w.ok(a, "detach", "alone")
	w.ok(a, "network", "rm", "net")
	w.ok(a, "network", "rm", "closed")
	w.soon(3*time.Second, "nothing left of the networks", func(ctx context.Context) error {
		left, err := a.Output(ctx, "sh", "-c", "ip -br link | grep hd- ; nft list tables; cat /proc/sys/net/ipv4/conf/eth0/forwarding /proc/sys/net/ipv6/conf/all/forwarding")
		if err == nil && left != "0\n0\n" {
			err = fmt.Errorf("there is %q", left)
		}
		return err
	})
}

// Forwarding that heddle turned on is for its uplinks alone.
func TestForwardingOpensNothingElse(t *testing.T) {
	w, a, server := outside(t)
	w.sh(a, "ip netns add behind && ip link add inner type veth peer name eth0 netns behind && ip addr add 10.99.0.1/24 dev inner && ip link set inner up && "+
		"ip -n behind addr add 10.99.0.2/24 dev eth0 && ip -n behind link set eth0 up && ip -n behind route add default via 10.99.0.1")
	w.sh(server, "ip route add 10.99.0.0/24 via "+a.Addr().String())
	ping := func(want bool, when string) {
		t.Helper()
		if err := server.Run(t.Context(), probe.Args("ping", "-c", "2", "10.99.0.2")...); (err == nil) != want {
			t.Errorf("%s, what is behind the host is reached: %v", when, err == nil)
		}
	}
	ping(false, "before heddle")
	w.ok(a, "network", "create", "net")
	w.attach(a, "web", "net")
	ping(false, "with a workload")
	if _, err := w.fetches(a, "web", server.Addr().String()); err != nil {
		t.Error(err)
	}
	w.sh(a, "ip netns exec behind true && sysctl -qw net.ipv4.ip_forward=1") // the administrator forwards, too
	if err := a.KillDaemon(); err != nil {                                   // at its start it looks again
		t.Fatal(err)
	}
	if err := a.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	w.attach(a, "web2", "net")
	ping(true, "when the administrator forwards")
	w.ok(a, "detach", "web")
	w.ok(a, "detach", "web2")
	ping(true, "after the last detach")
}

// A real dockerd on the host, started before or after: egress works all the same, and so does
// Docker's own.
func TestBesideDocker(t *testing.T) {
	for _, first := range []string{"docker", "heddle"} {
		t.Run(first+" first", func(t *testing.T) {
			w, a, server := outside(t)
			w.ok(a, "network", "create", "net", "--ipv6")
			if first == "docker" {
				w.docker(a)
				w.attach(a, "web", "net")
			} else {
				w.attach(a, "web", "net")
				w.docker(a)
			}
			w.soon(5*time.Second, "egress", func(context.Context) error {
				_, err := w.fetches(a, "web", server.Addr().String())
				return err
			})
			w.sh(a, "ip netns add box && ip link add box0 type veth peer name eth0 netns box && ip link set box0 master docker0 up && "+
				"ip -n box addr add 172.17.0.2/16 dev eth0 && ip -n box link set eth0 up && ip -n box route add default via 172.17.0.1")
			if said, err := w.fetches(a, "box", server.Addr().String()); err != nil || !strings.Contains(said, a.Addr().String()) {
				t.Errorf("what is on Docker's bridge gets %q, %v", said, err)
			}
			if said, err := a.Output(t.Context(), "sh", "-c", "heddle attach second --network net 2>&1 >/dev/null; heddle status --format '{{.Problems}}'"); err != nil || strings.Contains(said, "drops") {
				t.Errorf("it is said that something is in the way: %q, %v", said, err)
			}
			w.ok(a, "detach", "second")
			w.ok(a, "detach", "web")
			w.ok(a, "network", "rm", "net")
			w.soon(5*time.Second, "nothing of heddle's in Docker's chain", func(ctx context.Context) error {
				out, err := a.Output(ctx, "iptables-nft", "-S", "DOCKER-USER")
				if err == nil && strings.Contains(out, "hd-") {
					err = errors.New(out)
				}
				return err
			})
		})
	}
}

// docker runs a dockerd on a host and waits for it.
func (w world) docker(h *lab.Host) {
	w.t.Helper()
	w.touch(h)
	p, err := h.Start(lab.Command{Args: []string{"sh", "-c", "mount -t tmpfs none /sys/fs/cgroup; exec dockerd --storage-driver vfs >/run/docker.log 2>&1"}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = p.Signal(unix.SIGTERM)
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		_ = p.Wait(ctx)
	})
	w.soon(15*time.Second, "dockerd", func(ctx context.Context) error { return h.Run(ctx, "docker", "version") })
}

// Other people's firewalls: attach names the chain that forbids egress or reach, and what to
// type; typed, it works.
func TestOtherFirewalls(t *testing.T) {
	t.Parallel() // most of it is waiting
	w, a, server := outside(t)
	w.ok(a, "network", "create", "net")
	w.attach(server, "peer", "net")
	for _, tc := range []struct {
		name, put, remove, chain string
		reach                    bool // else egress
	}{
		{
			"nftables, forward", "nft 'add table inet other; add chain inet other wall { type filter hook forward priority 0; policy drop; }'",
			"nft delete table inet other", "inet other wall", false,
		},
		{"iptables, FORWARD", "iptables-nft -P FORWARD DROP", "iptables-nft -P FORWARD ACCEPT; iptables-nft -F FORWARD", "ip filter FORWARD", false},
		{
			"nftables, input", "nft 'add table inet other; add chain inet other in { type filter hook input priority 0; policy drop; } ; " +
				"add rule inet other in tcp dport 5377 accept; add rule inet other in th dport 5378 accept; add rule inet other in ct state established,related accept'",
			"nft delete table inet other", "inet other in", true,
		},
		{
			"iptables, INPUT that rejects in the end", "iptables-nft -A INPUT -p tcp --dport 5377:5378 -j ACCEPT; iptables-nft -A INPUT -p udp --dport 5378 -j ACCEPT; " +
				"iptables-nft -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; iptables-nft -A INPUT -j REJECT",
			"iptables-nft -F INPUT", "ip filter INPUT", true,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := w
			w.t = t
			w.sh(a, tc.put)
			defer w.sh(a, tc.remove)
			said, err := a.Output(t.Context(), "sh", "-c", "heddle attach web --network net 2>&1")
			if err != nil {
				t.Fatal(err)
			}
			defer w.ok(a, "detach", "web")
			works := func() error {
				if tc.reach {
					return w.ping(server, "peer", w.endpoint(a, "web").IPv4.Addr())
				}
				_, err := w.fetches(a, "web", server.Addr().String())
				return err
			}
			if works() == nil {
				t.Error("the firewall of the test forbids nothing")
			}
			_, line, _ := strings.Cut(said, "warning: the chain `"+tc.chain+"` drops")
			_, command, _ := strings.Cut(line, "type `")
			command, _, ok := strings.Cut(command, "`")
			if !ok {
				t.Fatalf("attach said %q, which names no command for %s", said, tc.chain)
			}
			w.sh(a, strings.ReplaceAll(command, "iptables ", "iptables-nft "))
			if err := works(); err != nil {
				t.Errorf("after %s: %v", command, err)
			}
		})
	}
}
