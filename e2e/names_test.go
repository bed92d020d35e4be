//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// hostsOf are the addresses that the C library finds for a name in a workload.
func (w world) hostsOf(ctx context.Context, h *lab.Host, workload, database, name string) (all []string, err error) {
	out, err := h.Output(ctx, in(workload, []string{"getent", database, name})...)
	for line := range strings.Lines(out) {
		if words := strings.Fields(line); len(words) > 1 && !slices.Contains(all, words[0]) {
			all = append(all, words[0])
		}
	}
	slices.Sort(all)
	return all, err
}

// names fails the test unless a workload finds the addresses of another by a name, in both families.
func (w world) names(h *lab.Host, workload, name string, to ...cluster.Endpoint) {
	w.t.Helper()
	for family, database := range map[string]string{"IPv4": "ahostsv4", "IPv6": "ahostsv6"} {
		var want []string
		for _, e := range to {
			for _, a := range addrs(e) {
				if a.Is4() == (family == "IPv4") {
					want = append(want, a.String())
				}
			}
		}
		slices.Sort(want)
		got, err := w.hostsOf(w.t.Context(), h, workload, database, name)
		if len(want) > 0 && err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			w.t.Errorf("%s finds %s by %q (%v), want %s", workload, got, name, err, want)
		}
	}
}

// asks is what a workload is answered: the code, and what belongs to it.
func (w world) asks(h *lab.Host, workload string, args ...string) string {
	w.t.Helper()
	out, err := h.Output(w.t.Context(), in(workload, probe.Args("ask", args...))...)
	if err != nil {
		w.t.Errorf("%s asks %v: %v", workload, args, err)
	}
	return strings.TrimSpace(out)
}

func (w world) answers(h *lab.Host, workload, want string, args ...string) {
	w.t.Helper()
	if got := w.asks(h, workload, args...); got != want {
		w.t.Errorf("%s asks %v and hears %q, want %q", workload, args, got, want)
	}
}

// Workloads find each other by name on one host and on two, from the moment that they are attached
// until they are detached.
func TestWorkloadsAreFoundByName(t *testing.T) {
	w := common(t)
	a, b := w.Host(4), w.Host(5)
	net := w.network(a, "--ipv6")
	near := w.attach(a, "near", net)
	far := w.attach(b, "Far", net, "--alias", "db")
	w.names(a, "near", "far", far)
	w.names(a, "near", "db."+net, far)
	w.names(b, "Far", "near.heddle.internal", near)
	w.names(b, "Far", "near."+net+".heddle.internal", near)
	w.names(a, "near", "nobody.heddle.internal")
	for _, at := range []string{gateway(near.IPv4), gateway(near.IPv6)} {
		w.answers(a, "near", "NOERROR "+far.IPv4.Addr().String(), "-server", at, "far")
		w.answers(a, "near", "NOERROR "+far.IPv6.Addr().String(), "-server", at, "-tcp", "-type", "AAAA", "far")
	}
	w.answers(a, "near", "NOERROR Far."+net+".heddle.internal.", "-type", "PTR", arpa(far.IPv4.Addr()))
	w.answers(a, "near", "NXDOMAIN", "far.other.heddle.internal")
	if out := w.ok(b, "resolve", "NEAR", "--network", net); out != near.IPv4.Addr().String()+"\n"+near.IPv6.Addr().String() {
		t.Errorf("the host finds %q", out)
	}
	w.refused(b, 1, []string{"there is no nobody", "endpoint ls"}, "resolve", "nobody", "--network", net)
	if out := w.ok(a, "run", "--network", net, "--", "getent", "ahostsv4", "far"); !strings.HasPrefix(out, far.IPv4.Addr().String()+" ") {
		t.Errorf("what run starts finds %q", out)
	}
	if out, err := a.Output(t.Context(), "grep", "-c", "heddle", "/etc/resolv.conf"); err == nil {
		t.Errorf("the host's own resolv.conf names heddle %s times", strings.TrimSpace(out))
	}
	if out, err := a.Output(t.Context(), "sh", "-c", "for n in $(ls /run/netns | grep heddle-); do ip netns exec $n grep port=53 /proc/net/nf_conntrack; done; true"); err != nil || out != "" {
		t.Errorf("questions are tracked: %s %v", out, err)
	}
	w.ok(b, "detach", "Far")
	gone := time.Now()
	w.soon(100*time.Millisecond, "the name is gone", func(ctx context.Context) error {
		if got := w.asks(a, "near", "db.heddle.internal"); got != "NXDOMAIN" {
			return fmt.Errorf("%s after %s: %s", "db", time.Since(gone), got)
		}
		return nil
	})
}

// gateway is the first address of an endpoint's subnet.
func gateway(p netip.Prefix) string { return p.Masked().Addr().Next().String() }

// arpa is the name that an IPv4 address is asked for by.
func arpa(a netip.Addr) string {
	b := a.As4()
	return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa", b[3], b[2], b[1], b[0])
}

// A service's name is its address, or with --endpoint-mode dnsrr those of what is in rotation behind
// it; what leaves the rotation leaves the names.
func TestServicesAreFoundByName(t *testing.T) {
	w := common(t)
	a, b := w.Host(4), w.Host(5)
	net := w.network(a)
	w.attach(a, "client", net)
	vip := w.ok(a, "service", "create", "-q", "shop", "--network", net, "--port", "http:80:8080")
	w.ok(a, "service", "create", "-q", "flat", "--network", net, "--port", "http:80:8080", "--endpoint-mode", "dnsrr")
	t.Cleanup(func() {
		for _, s := range []string{"shop", "flat"} {
			_, _ = w.Do(context.Background(), a, "service", "rm", net+"/"+s)
		}
	})
	s := w.service(a, vip)
	one := w.attach(a, "one", net, "--service", "flat").IPv4.Addr().String()
	two := w.attach(b, "two", net, "--service", "flat").IPv4.Addr().String()
	w.soon(3*time.Second, "the services are known", func(context.Context) error {
		for _, name := range []string{"shop", "tasks.shop", "flat"} {
			if got := w.asks(a, "client", name); strings.HasPrefix(got, "NXDOMAIN") {
				return fmt.Errorf("%s is %s", name, got)
			}
		}
		return nil
	})
	both := []string{one, two}
	slices.Sort(both)
	w.answers(a, "client", "NOERROR "+s.VIPs[0].String(), "shop")
	w.answers(a, "client", "NOERROR", "tasks.shop")
	w.answers(a, "client", "NOERROR "+strings.Join(both, " "), "flat")
	w.answers(a, "client", "NOERROR "+strings.Join(both, " "), "tasks.flat."+net+".heddle.internal")
	w.answers(a, "client", fmt.Sprintf("NOERROR 0 0 80 shop.%s.heddle.internal.", net), "-type", "SRV", "_http._tcp.shop")
	w.answers(a, "client", fmt.Sprintf("NOERROR 0 0 8080 one.%[1]s.heddle.internal. 0 0 8080 two.%[1]s.heddle.internal.", net), "-type", "SRV", "_http._tcp.flat")
	w.ok(b, "detach", "two")
	w.answers(a, "client", "NOERROR "+one, "flat")
}

// A workload of two networks finds what is in both, first what its default route leads to. What is
// nobody's name is asked of the host's own servers, wherever they listen, but not for those who
// can't get out.
func TestNamesOfSeveralNetworks(t *testing.T) {
	w := common(t)
	a, b := w.Host(4), w.Host(5)
	w.touch(a)
	for _, n := range []string{"names-blue", "names-red"} {
		w.ok(a, "network", "create", n)
	}
	w.ok(a, "network", "create", "names-shut", "--internal")
	t.Cleanup(func() {
		for _, n := range []string{"names-blue", "names-red", "names-shut"} {
			_, _ = w.Do(context.Background(), a, "network", "rm", n)
		}
	})
	w.attach(a, "client", "names-red")
	w.attach(b, "both", "names-red")
	w.ok(b, "network", "connect", "names-blue", "both")
	inRed, inBlue := w.ok(b, "resolve", "both", "--network", "names-red"), w.ok(b, "resolve", "both", "--network", "names-blue")
	redOnly := w.attach(b, "red-only", "names-red").IPv4.Addr().String()
	w.answers(a, "client", "NOERROR "+inRed, "both")
	w.ok(a, "network", "connect", "names-blue", "client")
	w.answers(a, "client", "NOERROR "+inBlue, "both") // blue is before red
	w.answers(a, "client", "NOERROR "+inRed, "both.names-red")
	w.answers(a, "client", "NOERROR "+redOnly, "red-only")
	w.attach(a, "shut", "names-shut")
	w.answers(a, "shut", "NXDOMAIN", "both.heddle.internal")

	log, err := os.CreateTemp(t.TempDir(), "names")
	if err != nil {
		t.Fatal(err)
	}
	server, err := a.Start(lab.Command{Args: probe.Args("nameserver"), Stdout: log, Stderr: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Kill() })
	w.sh(a, "cp /etc/resolv.conf /run/resolv.conf.before; echo nameserver 127.0.0.53 > /etc/resolv.conf")
	t.Cleanup(func() { _ = a.Run(context.Background(), "cp", "/run/resolv.conf.before", "/etc/resolv.conf") })
	w.soon(3*time.Second, "the host's server is asked", func(context.Context) error {
		if got := w.asks(a, "client", "out.example"); got != "NOERROR 192.0.2.53" {
			return errors.New(got)
		}
		return nil
	})
	w.answers(a, "shut", "NXDOMAIN", "secret.example")
	w.answers(a, "client", "NXDOMAIN", "nobody.names-red.heddle.internal")
	w.answers(a, "client", "NOERROR 192.0.2.53", "last.example")
	asked, err := os.ReadFile(log.Name())
	if err != nil || !strings.Contains(string(asked), "last.example.") || strings.Contains(string(asked), "secret") || strings.Contains(string(asked), "nobody") {
		t.Errorf("the host's server was asked for %s (%v)", asked, err)
	}
}

// What workloads ask while the daemon is killed and started is answered afterwards.
func TestARestartLosesNoQuestion(t *testing.T) {
	w := common(t)
	a, b := w.Host(4), w.Host(5)
	net := w.network(a)
	w.attach(a, "asker", net)
	far := w.attach(b, "far", net)
	said, err := os.CreateTemp(t.TempDir(), "ask")
	if err != nil {
		t.Fatal(err)
	}
	p, err := a.Start(lab.Command{Args: in("asker", probe.Args("ask", "-every", "5ms", "far.heddle.internal")), Stdout: said, Stderr: said})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := a.KillDaemon(); err != nil {
			t.Fatal(err)
		}
		<-time.After(200 * time.Millisecond) // RestartSec, in small
		if err := a.StartDaemon(); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := a.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	_ = p.Signal(2)
	err = p.Wait(t.Context())
	out, _ := os.ReadFile(said.Name())
	if err != nil || !strings.Contains(string(out), "[NOERROR "+far.IPv4.Addr().String()+":") {
		t.Errorf("%s (%v)", out, err)
	}
	t.Logf("%s", out)
}
