//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// vip makes a service of a network, which goes away with the test, and answers its addresses. It
// answers on port 80 by TCP and UDP; behind it is port 8080.
func (w world) vip(h *lab.Host, network string, flags ...string) (vips []netip.Addr) {
	w.t.Helper()
	w.ok(h, append([]string{"service", "create", "shop", "--network", network, "--port", "80:8080", "--port", "80:8080/udp"}, flags...)...)
	w.t.Cleanup(func() { _, _ = w.Do(context.Background(), h, "service", "rm", network+"/shop") })
	return w.service(h, network+"/shop").VIPs
}

// backend attaches a workload behind the service, which answers with its name.
func (w world) backend(h *lab.Host, name, network string) (cluster.Endpoint, *lab.Process) {
	w.t.Helper()
	e := w.attach(h, name, network, "--service", "shop")
	return e, w.run(h, name, probe.Args("answer", "-name", name)...)
}

// greets is what a command line of greet has come to.
func (w world) greets(h *lab.Host, in func([]string) []string, to netip.Addr, flags ...string) (got probe.Greeted) {
	w.t.Helper()
	out, err := h.Output(w.t.Context(), in(probe.Args("greet", append(flags, netip.AddrPortFrom(to, 80).String())...))...)
	if err == nil {
		err = json.Unmarshal([]byte(out), &got)
	}
	if err != nil {
		w.t.Fatalf("greet %s on %s: %v: %s", to, h.Name(), err, out)
	}
	return got
}

// greeting greets from now on. The function that it returns ends that, if it has not ended by itself after
// a while, and answers what it has come to.
func (w world) greeting(h *lab.Host, workload string, to netip.Addr, flags ...string) func(patience time.Duration) probe.Greeted {
	w.t.Helper()
	done := make(chan error, 1)
	args := append([]string{"-n", "0", "-every", "2ms"}, flags...)
	out, err := os.Create(filepath.Join(w.t.TempDir(), "asked"))
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := h.Start(lab.Command{Args: in(workload, probe.Args("greet", append(args, netip.AddrPortFrom(to, 80).String())...)), Stdout: out})
	if err != nil {
		w.t.Fatal(err)
	}
	go func() { done <- p.Wait(context.Background()) }()
	return func(patience time.Duration) (got probe.Greeted) {
		w.t.Helper()
		var err error
		select {
		case err = <-done:
		case <-time.After(patience):
			_ = p.Signal(2)
			err = <-done
		}
		b, rerr := os.ReadFile(out.Name())
		if err := errors.Join(err, rerr, json.Unmarshal(b, &got)); err != nil {
			w.t.Fatalf("%v: %s", err, b)
		}
		return got
	}
}

// onHost runs on the host itself.
func onHost(args []string) []string { return args }

func inside(workload string) func([]string) []string {
	return func(args []string) []string { return in(workload, args) }
}

// leads waits until a service leads to these workloads alone from there, and answers how long that
// took from a moment on.
func (w world) leads(h *lab.Host, workload string, to netip.Addr, from time.Time, want ...string) time.Duration {
	w.t.Helper()
	slices.Sort(want)
	for {
		begin := time.Since(from)
		got := w.greets(h, inside(workload), to, "-n", "20")
		if by := slices.Sorted(maps.Keys(got.By)); len(got.Errors) == 0 && slices.Equal(by, want) {
			return begin
		}
		if time.Since(from) > 5*time.Second {
			w.t.Fatalf("%s leads %s of %s to %v, want %v: %v", to, workload, h.Name(), got.By, want, got.Errors)
		}
	}
}

// A service's addresses lead to its backends on all hosts, in both families, by TCP and UDP, evenly and
// with the client's own address; from the host itself, and from a backend to itself too.
func TestServiceAddresses(t *testing.T) {
	w := common(t)
	a, b, c := w.Host(3), w.Host(4), w.Host(5)
	net := w.network(a, "--ipv6")
	client := w.attach(a, "client", net)
	vips := w.vip(a, net)
	if len(vips) != 2 {
		t.Fatalf("it has %v", vips)
	}
	for _, vip := range vips { // nobody is behind it, as soon as the client's node has heard of it
		err := cluster.Eventually(t.Context(), 5*time.Second, func(context.Context) error {
			got := w.greets(a, inside("client"), vip, "-n", "1")
			if len(got.Errors) != 1 || !strings.Contains(got.Errors[0], "refused") || got.Longest > 500*time.Millisecond {
				return fmt.Errorf("nobody is behind %s: %+v", vip, got)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	w.backend(a, "web1", net)
	w.backend(b, "web2", net)
	w.attach(c, "outside", net, "--host")
	w.leads(a, "client", vips[0], time.Now(), "web1", "web2")
	for i, vip := range vips {
		for _, proto := range []string{"tcp", "udp"} {
			got := w.greets(a, inside("client"), vip, "-n", "200", "-proto", proto)
			if got.By["web1"] < 60 || got.By["web2"] < 60 || len(got.Errors) > 0 || got.From[addrs(client)[i].String()] != 200 {
				t.Errorf("%s by %s: %+v", vip, proto, got)
			}
			for _, from := range []struct {
				h  *lab.Host
				in func([]string) []string
			}{{b, inside("web2")}, {c, onHost}} {
				if got := w.greets(from.h, from.in, vip, "-n", "40", "-proto", proto); len(got.By) != 2 || len(got.Errors) > 0 {
					t.Errorf("%s by %s, asked on %s: %+v", vip, proto, from.h.Name(), got)
				}
			}
		}
	}
	for _, b := range w.service(b, net+"/shop").Backends { // as web2 has asked, which is the one that asks there
		if b.Connections < 40 || b.Connections > 120 {
			t.Errorf("%s had %d of 160 connections", b.Workload, b.Connections)
		}
	}
}

// A backend that is detached or killed gets nothing new; who is asking loses nothing while all backends
// are replaced one by one.
func TestBackendsComeAndGo(t *testing.T) {
	w := common(t)
	a, b, c := w.Host(3), w.Host(4), w.Host(5)
	net := w.network(a, "--ipv6")
	w.attach(a, "client", net)
	w.attach(c, "first", net)
	vips := w.vip(a, net, "--health", "tcp", "--health-interval", "100ms")
	w.backend(a, "web1", net)
	w.backend(b, "web2", net)
	w.leads(a, "client", vips[0], time.Now(), "web1", "web2")

	var running []func(time.Duration) probe.Greeted
	for i, flags := range [][]string{nil, nil, {"-proto", "udp"}} {
		running = append(running, w.greeting(a, "client", vips[i%2], flags...))
	}
	for i, h := range []*lab.Host{c, b} { // start the new one, then end the old
		name := fmt.Sprint("new", i)
		w.backend(h, name, net)
		w.soon(5*time.Second, name+" is used", func(ctx context.Context) error {
			got := w.greets(a, inside("client"), vips[0], "-n", "20")
			if got.By[name] == 0 {
				return fmt.Errorf("%+v", got)
			}
			return nil
		})
		old := fmt.Sprint("web", i+1)
		at := map[string]*lab.Host{"web1": a, "web2": b}[old]
		w.ok(at, "detach", old)
	}
	for i, stop := range running {
		got := stop(0)
		if len(got.By) != 4 || len(got.Errors) > 0 {
			t.Errorf("client %d, while all were replaced: %+v", i, got)
		}
	}
	w.leads(a, "client", vips[1], time.Now(), "new0", "new1")

	third, p := w.backend(b, "third", net)
	w.leads(a, "client", vips[0], time.Now(), "new0", "new1", "third")
	killed := time.Now()
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if took := w.leads(a, "client", vips[0], killed, "new0", "new1"); took > 2*time.Second {
		t.Errorf("%s after it was killed, something still went to it", took)
	} else {
		t.Logf("out of rotation %s after it was killed (%s)", took.Round(time.Millisecond), third.Name)
	}
	flow := w.greeting(a, "client", vips[0], "-proto", "udp", "-keep", "-timeout", "50ms", "-until", "new1")
	w.ok(c, "detach", "new0")
	w.leads(a, "client", vips[0], time.Now(), "new1")
	if got := flow(time.Second); got.By["new1"] == 0 {
		t.Errorf("a UDP flow goes to %+v", got)
	}
}
