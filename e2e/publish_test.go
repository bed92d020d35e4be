//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// get fetches a page on a host itself, or in a workload where one is named.
func (w world) get(h *lab.Host, workload, at string) (string, error) {
	args := probe.Args("fetch", "-timeout", "1s", "http://"+at+"/")
	if workload != "" {
		args = in(workload, args)
	}
	said, err := h.Output(w.t.Context(), args...)
	return strings.TrimSpace(said), err
}

// answered fails the test unless a page is answered by a workload, that is asked by somebody, "" for
// anybody.
func (w world) answered(h *lab.Host, workload, at, by, asker string) {
	w.t.Helper()
	if said, err := w.get(h, workload, at); err != nil || !strings.HasPrefix(said, "from "+by+", ") || asker != "" && !strings.HasSuffix(said, " asked by "+asker) {
		w.t.Errorf("http://%s is answered on %s%s by %q, %v; want %s, asked by %s", at, h.Name(), workload, said, err, by, asker)
	}
}

// A workload's ports are reached from outside, by the host's own programs and by workloads of any
// network. Who has a port already is named to the next that asks for it.
func TestPublishedPorts(t *testing.T) {
	t.Parallel()
	w := startHosts(t, cluster.Config{Managers: 1, Workers: 1, Lab: lab.Config{IPv6: true}})
	m, a := w.Host(1), w.Host(2)
	w.ok(m, "init", "--advertise-addr", m.Addr().String())
	w.ok(a, "join", m.Addr().String(), "--token", w.ok(m, "token", "create", "worker", "-q"))
	w.ok(m, "network", "create", "net", "--ipv6")
	w.ok(m, "network", "create", "other", "--ipv6")
	w.ok(m, "network", "create", "closed", "--internal")

	said := w.ok(a, "attach", "web", "--network", "net", "-p", "8080:80", "-p", "9000-9002:80-82", "-p", a.Addr().String()+":8443:80", "-p", "80")
	if !strings.Contains(said, "30000") {
		t.Errorf("attach says %q of the port that was chosen", said)
	}
	w.serveIn(a, "web")
	w.attach(a, "beside", "net")
	w.attach(a, "stranger", "other")
	w.attach(m, "far", "other")
	v4, v6 := a.Addr().String(), "["+a.Addr6().String()+"]"
	for _, tt := range []struct {
		from     *lab.Host
		workload string
		at       string
		asker    string
	}{
		{m, "", v4 + ":8080", m.Addr().String()},
		{m, "", v6 + ":8080", m.Addr6().String()},
		{m, "", v4 + ":9000", m.Addr().String()},
		{m, "", v4 + ":8443", m.Addr().String()},
		{m, "", v4 + ":30000", m.Addr().String()},
		{a, "", v4 + ":8080", v4},
		{a, "", v6 + ":8080", a.Addr6().String()},
		{a, "", "127.0.0.1:8080", ""},
		{a, "", "[::1]:8080", ""},
		{a, "beside", v4 + ":8080", ""},
		{a, "beside", v6 + ":8080", ""},
		{a, "stranger", v4 + ":8080", ""},
		{a, "stranger", v6 + ":8080", ""},
		{a, "web", v4 + ":8080", ""},
		{m, "far", v4 + ":8080", m.Addr().String()},
	} {
		w.answered(tt.from, tt.workload, tt.at, "web", tt.asker)
	}
	for _, at := range []string{v4 + ":80", v4 + ":9003", v6 + ":8443"} {
		if said, err := w.get(m, "", at); err == nil {
			t.Errorf("http://%s is answered by %q", at, said)
		}
	}

	w.portsBehindOtherFirewalls(a, m)
	w.serve(a) // a program of the host, at port 80
	w.refused(a, 1, []string{"port 8080/tcp", "the workload web"}, "attach", "db", "--network", "net", "-p", "8080:80")
	w.refused(a, 1, []string{"port 80/tcp", "the program", "PID"}, "attach", "db", "--network", "net", "-p", "80:80")
	w.refused(a, 1, []string{"closed", "internal"}, "attach", "db", "--network", "closed", "-p", "8081:80")
	w.ok(a, "detach", "web")
	if said, err := w.get(m, "", v4+":8080"); err == nil {
		t.Errorf("after the detach: %q", said)
	}
}

// portsBehindOtherFirewalls drops what a host forwards: published ports get through where the firewall
// has a place for that, as Docker's has; else the host says what to type.
func (w world) portsBehindOtherFirewalls(h, client *lab.Host) {
	w.t.Helper()
	w.sh(h, "iptables-nft -P FORWARD DROP && ip6tables-nft -P FORWARD DROP")
	at := h.Addr().String() + ":8080"
	if said, err := w.get(client, "", at); err == nil {
		w.t.Errorf("the firewall lets %q through: the test is blind", said)
	}
	if said := w.ok(h, "status", "--format", "{{.Problems}}"); !strings.Contains(said, "iptables -I FORWARD -o hd-+ -j ACCEPT") {
		w.t.Errorf("status says %q", said)
	}
	w.sh(h, "for t in iptables-nft ip6tables-nft; do $t -N DOCKER-USER; $t -I FORWARD -j DOCKER-USER; done")
	w.soon(3*time.Second, "published ports through Docker's chain", func(context.Context) error {
		_, err := w.get(client, "", at)
		return err
	})
	w.answered(client, "", "["+h.Addr6().String()+"]:8080", "web", client.Addr6().String())
}

// A service's port is open on every node, wherever its backends are, and stays so without them there;
// one of mode local only where they are. What others take away is put back, and a start of the daemon
// touches nothing.
func TestIngress(t *testing.T) {
	t.Parallel()
	w := startHosts(t, cluster.Config{Managers: 1, Workers: 2, Lab: lab.Config{IPv6: true}})
	m, a, b := w.Host(1), w.Host(2), w.Host(3)
	w.ok(m, "init", "--advertise-addr", m.Addr().String())
	token := w.ok(m, "token", "create", "worker", "-q")
	w.ok(a, "join", m.Addr().String(), "--token", token)
	w.ok(b, "join", m.Addr().String(), "--token", token)
	w.ok(m, "network", "create", "net", "--ipv6")
	w.ok(m, "service", "create", "-q", "shop", "--network", "net", "--publish", "8080:80", "--publish", "published=8081,target=80,mode=host")
	w.attach(m, "web1", "net", "--service", "shop")
	w.attach(a, "web2", "net", "--service", "shop")
	w.attach(a, "client", "net")
	w.serveIn(m, "web1")
	w.serveIn(a, "web2")
	w.sh(b, "ip netns add box") // what b has of others

	both := func(from *lab.Host, workload, at string) {
		t.Helper()
		w.soon(4*time.Second, "both backends at "+at, func(context.Context) error {
			seen := map[string]bool{}
			for range 30 {
				said, err := w.get(from, workload, at)
				if err != nil {
					return err
				}
				seen[strings.Split(said, ",")[0]] = true
				if seen["from web1"] && seen["from web2"] {
					return nil
				}
			}
			return fmt.Errorf("only %v", seen)
		})
	}
	both(a, "", b.Addr().String()+":8080") // b has no workload in the network
	both(a, "", "["+b.Addr6().String()+"]:8080")
	both(b, "", "127.0.0.1:8080")
	both(b, "", a.Addr().String()+":8080")
	both(a, "client", a.Addr().String()+":8080")
	w.answered(b, "", a.Addr().String()+":8081", "web2", b.Addr().String())
	w.answered(b, "", m.Addr().String()+":8081", "web1", b.Addr().String())
	if said, err := w.get(a, "", b.Addr().String()+":8081"); err == nil {
		t.Errorf("a port of mode local is answered where no backend is: %q", said)
	}

	rules := func() string {
		t.Helper()
		out, err := b.Output(t.Context(), "sh", "-c", "nft -a list ruleset; for n in /run/netns/heddle-*; do nsenter --net=$n nft -a list ruleset; done")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := rules()
	if err := b.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	both(a, "", b.Addr().String()+":8080")
	if err := b.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := w.get(a, "", b.Addr().String()+":8080"); err != nil {
			t.Error("after a start:", err)
		}
	}
	if after := rules(); after != before {
		t.Errorf("a start has changed\n%s\nto\n%s", before, after)
	}

	w.sh(b, "nft flush ruleset; for n in /run/netns/heddle-*; do nsenter --net=$n nft flush ruleset; done")
	w.soon(2*time.Second, "rules that were flushed", func(context.Context) error {
		_, err := w.get(a, "", b.Addr().String()+":8080")
		return err
	})

	w.ok(m, "detach", "web1")
	for range 10 {
		w.answered(b, "", m.Addr().String()+":8080", "web2", "")
	}
	w.ok(m, "service", "update", "shop", "--publish-rm", "8080")
	w.soon(2*time.Second, "the port closed", func(context.Context) error {
		if said, err := w.get(a, "", b.Addr().String()+":8080"); err == nil {
			return errors.New(said)
		}
		return nil
	})
	w.soon(3*time.Second, "nothing of the network on a node that has nothing there", func(ctx context.Context) error {
		out, err := b.Output(ctx, "sh", "-c", "ls /run/netns | grep heddle-; ip -br link | grep hd-; nft list tables")
		if err == nil && strings.TrimSpace(out) != "" {
			err = errors.New(out)
		}
		return err
	})

	w.ok(m, "network", "create", "sealed", "--encrypted", "--ipv6")
	w.asked(m, a, b, "net")
	w.ok(m, "service", "rm", "net/asked")
	w.asked(m, a, b, "sealed")
}

// asked fails the test unless a backend in a network answers at a port of a node that hosts nothing, by TCP
// and UDP, in both families.
func (w world) asked(from, backend, at *lab.Host, network string) {
	w.t.Helper()
	w.ok(from, "service", "create", "-q", "asked", "--network", network, "--publish", "80:8080", "--publish", "80:8080/udp")
	by := "far-" + network
	w.attach(backend, by, network, "--service", "asked")
	w.run(backend, by, probe.Args("answer", "-name", by)...)
	for _, addr := range []netip.Addr{at.Addr(), at.Addr6()} {
		for _, proto := range []string{"tcp", "udp"} {
			w.soon(5*time.Second, fmt.Sprintf("%s of %s by %s", addr, network, proto), func(context.Context) error {
				if got := w.greets(from, onHost, addr, "-n", "20", "-timeout", "500ms", "-proto", proto); got.By[by] != 20 {
					return fmt.Errorf("it is %+v", got)
				}
				return nil
			})
		}
	}
}
