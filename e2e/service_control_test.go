//go:build linux

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// service is a service as the managers list it, asked on a host.
func (w world) service(h *lab.Host, ref string) cluster.Service {
	w.t.Helper()
	var rows []cluster.Service
	w.decode(h, &rows, "service", "inspect", ref)
	return rows[0]
}

// behind waits until service ps says so of a workload: its state, and the beginning of the detail.
func (w world) behind(h *lab.Host, ref, node, workload, state, detail string) {
	w.t.Helper()
	line := "{{.Node}}/{{.Workload}} {{if .Used}}used{{end}}{{.Out}} {{.Detail}}"
	w.soon(3*time.Second, fmt.Sprintf("%s of %s is %s", workload, ref, state), func(ctx context.Context) error {
		out, err := w.Do(ctx, h, "service", "ps", ref, "--format", line)
		want := strings.TrimSpace(fmt.Sprintf("%s/%s %s %s", node, workload, state, detail))
		if err == nil && !slices.ContainsFunc(strings.Split(out, "\n"), func(l string) bool { return strings.HasPrefix(l, want) }) {
			err = fmt.Errorf("there is no %q in:\n%s", want, out)
		}
		return err
	})
}

// shopping is a world with a service shop in one of two networks.
type shopping struct {
	world
	blue, red string
}

// Services are made, shown with what is behind them and why, changed and removed from any node.
func TestServicesAreManaged(t *testing.T) {
	w := common(t)
	m, a := w.Host(2), w.Host(4)
	s := shopping{w, w.network(m, "--ipv6", "--subnet", "10.70.0.0/24"), w.network(m)}
	w.attach(a, "web1", s.blue, "--service", "shop") // before there is one
	w.attach(m, "web2", s.blue, "--label", "tier=front")
	client := w.attach(m, "client", s.blue)
	t.Cleanup(func() {
		_, _ = w.Do(context.Background(), m, "node", "update", "--availability", "active", "n2")
		_, _ = w.Do(context.Background(), m, "service", "rm", s.blue+"/shop", s.red+"/shop")
	})
	s.isMade(a)
	s.clashesAreRefused(a, client)
	s.backendsAreJudged(m, a)
	s.isChanged(a)
	if out := w.ok(a, "service", "rm", "shop"); out != "shop" {
		t.Errorf("rm prints %q", out)
	}
}

func (w shopping) isMade(h *lab.Host) {
	w.t.Helper()
	id := w.ok(h, "service", "create", "-q", "shop", "--network", w.blue, "--port", "web:80:8080", "--port", "53/udp", "--vip", "10.70.0.77",
		"--selector", "tier=front", "--health", "tcp", "--health-interval", "100ms", "--label", "team=a",
		"--publish", "8080:80", "--publish", "published=8443,target=443,mode=host", "--publish", "9000")
	s := w.service(h, w.blue+"/shop")
	if s.ID != id || s.Mode != "vip" || len(s.VIPs) != 2 || s.VIPs[0].String() != "10.70.0.77" || !s.VIPs[1].Is6() ||
		len(s.Ports) != 2 || s.Ports[0].Name != "web" || s.Ports[0].Target != 8080 || s.Selector["tier"] != "front" || s.Labels["team"] != "a" ||
		s.Health.Kind != "tcp" || s.Health.Interval != "100ms" || len(s.Publish) != 3 || s.Publish[1].Mode != "local" {
		w.t.Errorf("it is %+v", s)
	}
	if p := s.Publish[2]; p.Port < 30000 || p.Port > 32767 || p.Target != 9000 || p.Mode != "ingress" {
		w.t.Errorf("the port that was left open is %+v", p)
	}
	if out := w.ok(h, "service", "ls", "--filter", "label=team=a"); !strings.Contains(out, "10.70.0.77, ") || !strings.Contains(out, "/2 ") || !strings.Contains(out, "8080->80/tcp, 8443->443/tcp local") {
		w.t.Errorf("it is listed as\n%s", out)
	}
}

// clashesAreRefused asks for what another has, who is named.
func (w shopping) clashesAreRefused(h *lab.Host, taken cluster.Endpoint) {
	w.t.Helper()
	create := func(words []string, args ...string) {
		w.t.Helper()
		w.refused(h, 1, words, append([]string{"service", "create"}, args...)...)
	}
	create([]string{`"shop" exists`, w.blue + "/shop"}, "shop", "--network", w.blue)
	create([]string{`no network "green"`, "heddle network ls"}, "other", "--network", "green")
	create([]string{"10.71.0.1 is in no subnet of network " + w.blue}, "other", "--network", w.blue, "--vip", "10.71.0.1")
	create([]string{taken.IPv4.Addr().String(), "node " + taken.Node}, "other", "--network", w.blue, "--vip", taken.IPv4.Addr().String())
	create([]string{"10.70.0.77", "service shop"}, "other", "--network", w.blue, "--vip", "10.70.0.77")
	create([]string{"8080/tcp", w.blue + "/shop"}, "other", "--network", w.red, "--publish", "8080:80")
	create([]string{"8443/tcp", w.blue + "/shop"}, "other", "--network", w.red, "--publish", "8443:80")
	create([]string{"5377/tcp"}, "other", "--network", w.red, "--publish", "5377:80")
	w.refused(h, 1, []string{"10.70.0.77", "service shop"}, "attach", "other", "--network", w.blue, "--ip", "10.70.0.77")

	w.ok(h, "service", "create", "shop", "--network", w.red, "--endpoint-mode", "dnsrr", "-q") // a name is a network's
	w.refused(h, 1, []string{w.blue + "/shop", w.red + "/shop"}, "service", "inspect", "shop")
	if s := w.service(h, w.red+"/shop"); s.Mode != "dnsrr" || len(s.VIPs) != 0 || len(s.Backends) != 0 {
		w.t.Errorf("red/shop is %+v", s)
	}
	w.refused(h, 1, []string{w.red, "shop", "service rm"}, "network", "rm", w.red)
	if out := w.ok(h, "service", "rm", w.red+"/shop"); out != w.red+"/shop" {
		w.t.Errorf("rm prints %q", out)
	}
	w.refused(h, 1, []string{`no service "shop" in network "` + w.red}, "service", "rm", w.red+"/shop")
}

// backendsAreJudged takes what is behind the service through all that can be with it.
func (w shopping) backendsAreJudged(m, a *lab.Host) {
	w.t.Helper()
	w.behind(m, "shop", "n4", "web1", "unhealthy", "connect to ") // it was attached before anybody asked for probes
	web := w.run(a, "web1", probe.Args("serve", "-port", "8080")...)
	w.run(m, "web2", probe.Args("serve", "-port", "8080")...)
	w.behind(m, "shop", "n4", "web1", "used", "")
	w.behind(a, "shop", "n2", "web2", "used", "")
	if out := w.ok(a, "service", "ls"); !strings.Contains(out, "2/2") {
		w.t.Errorf("it is listed as\n%s", out)
	}
	w.attach(a, "web3", w.blue, "--service", "shop", "--health-cmd", "echo it is cold; exit 3")
	w.behind(m, "shop", "n4", "web3", "starting", "exit status 3: it is cold")
	w.ok(a, "detach", "web3", "--grace", "0")
	if err := web.Kill(); err != nil {
		w.t.Fatal(err)
	}
	w.behind(m, "shop", "n4", "web1", "unhealthy", "connect to ")
	if s := w.service(a, "shop"); len(s.Backends) != 2 || !strings.Contains(s.Backends[1].Detail, "refused") || time.Since(s.Backends[1].Since).Abs() > time.Minute {
		w.t.Errorf("behind it is %+v", s.Backends)
	}
	w.ok(m, "node", "update", "--availability", "drain", "n2")
	w.behind(a, "shop", "n2", "web2", "draining", "")
	w.ok(m, "node", "update", "--availability", "active", "n2")
	w.behind(a, "shop", "n2", "web2", "used", "")

	held := w.run(a, "web1", "bash", "-c", "exec 3<>/dev/tcp/"+w.endpoint(m, "web2").IPv4.Addr().String()+"/8080; sleep 60")
	w.soon(3*time.Second, "web2 has a connection", func(ctx context.Context) error {
		return m.Run(ctx, in("web2", []string{"sh", "-c", "ss -Htn state established | grep -q :8080"})...)
	})
	gone := make(chan error, 1)
	go func() {
		_, err := w.Do(w.t.Context(), m, "detach", "web2", "--grace", "30s")
		gone <- err
	}()
	w.behind(a, "shop", "n2", "web2", "leaving", "")
	if err := held.Kill(); err != nil {
		w.t.Fatal(err)
	}
	if err := <-gone; err != nil {
		w.t.Error(err)
	}
	w.soon(time.Second, "web2 is behind it no longer", func(context.Context) error {
		if s := w.service(a, "shop"); len(s.Backends) != 1 {
			return fmt.Errorf("behind it is %+v", s.Backends)
		}
		return nil
	})
}

func (w shopping) isChanged(h *lab.Host) {
	w.t.Helper()
	w.refused(h, 1, []string{"no port 81/tcp"}, "service", "update", "shop", "--port-rm", "81")
	w.refused(h, 1, []string{"6379/tcp"}, "service", "update", "shop", "--publish-rm", "6379")
	w.refused(h, 1, []string{"5377/tcp"}, "service", "update", "shop", "--publish-add", "5377:80")
	w.ok(h, "service", "update", "shop", "--port-rm", "80", "--port-add", "80:8081", "--publish-rm", "8443", "--publish-add", "8444:443", "--label", "team=b", "--health", "none", "--no-selector")
	s := w.service(h, "shop")
	if len(s.Ports) != 2 || s.Ports[1].Target != 8081 || len(s.Publish) != 3 || s.Publish[2].Port != 8444 || s.Labels["team"] != "b" || s.Health.Kind != "" || len(s.Selector) != 0 || s.VIPs[0].String() != "10.70.0.77" {
		w.t.Errorf("it is %+v", s)
	}
	w.behind(h, "shop", "n4", "web1", "used", "") // nobody probes it
}

// The first attach of a node in a network knows the services there: what it attaches is not said to
// be healthy before it was asked.
func TestAFirstAttachKnowsTheServices(t *testing.T) {
	w := common(t)
	m, a := w.Host(1), w.Host(4)
	for range 5 {
		net := w.network(m)
		w.ok(m, "service", "create", "shop", "--network", net, "--port", "80", "--health", "tcp")
		w.attach(a, "web", net, "--service", "shop")
		if out := w.ok(a, "endpoint", "ls", "--local", "--filter", "network="+net, "--format", "{{.Health}}"); !strings.HasPrefix(out, "starting") {
			t.Errorf("what was just attached is %q, and nobody serves there", out)
		}
		w.ok(a, "detach", "web")
		w.ok(m, "service", "rm", net+"/shop")
	}
}
