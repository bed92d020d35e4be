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
)

// A host in no cluster has networks of its own. What passes in them, between them and out of them is
// as with overlays, so is what a restart keeps and what is repaired.
func TestANodeAloneHasBridgeNetworks(t *testing.T) {
	t.Parallel()
	w := startHosts(t, cluster.Config{Managers: 1, Workers: 1, Lab: lab.Config{IPv6: true}})
	h, outside := w.Host(1), w.Host(2)
	w.serve(outside)
	w.refused(h, 1, []string{"no cluster", "heddle init"}, "attach", "web", "--network", "here")
	w.ok(h, "network", "create", "here", "-d", "bridge", "--ipv6")
	w.ok(h, "network", "create", "there", "-d", "bridge", "--ipv6")
	w.ok(h, "network", "create", "closed", "-d", "bridge", "--internal")
	w.refused(h, 1, []string{"needs a cluster", "-d bridge"}, "network", "create", "blue")
	w.refused(h, 1, []string{"there already"}, "network", "create", "here", "-d", "bridge")
	w.refused(h, 1, []string{"networks of its own", "closed, here, there"}, "init", "--advertise-addr", h.Addr().String())

	web := w.attach(h, "web", "here", "-p", "8080:80")
	db := w.attach(h, "db", "here", "--ip", "10.96.0.77")
	far, shut := w.attach(h, "far", "there"), w.attach(h, "shut", "closed")
	w.serveIn(h, "web")
	works := func(when string) {
		t.Helper()
		w.reaches(h, "web", db)
		w.reaches(h, "db", web)
		for _, e := range []cluster.Endpoint{far, shut} {
			for _, at := range addrs(e) {
				if err := w.ping(h, "web", at); err == nil {
					t.Errorf("%s: web reaches %s at %s, which is in another network", when, e.Name, at)
				}
			}
		}
		w.names(h, "db", "web", web)
		for _, to := range []string{outside.Addr().String(), "[" + outside.Addr6().String() + "]"} {
			if said, err := w.fetches(h, "web", to); err != nil {
				t.Errorf("%s: web does not get out to %s: %q, %v", when, to, said, err)
			}
		}
		if said, err := w.fetches(h, "shut", outside.Addr().String()); err == nil {
			t.Errorf("%s: shut gets out of its internal network: %q", when, said)
		}
		w.answered(outside, "", h.Addr().String()+":8080", "web", outside.Addr().String())
		w.answered(outside, "", "["+h.Addr6().String()+"]:8080", "web", outside.Addr6().String())
		w.answered(h, "web", h.Addr().String()+":8080", "web", "") // hairpin
	}
	works("at first")

	before := w.ok(h, "endpoint", "ls", "--format", "json")
	if err := h.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	w.reaches(h, "web", db) // without a daemon
	if err := h.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	w.soon(5*time.Second, "the endpoints are as before", func(ctx context.Context) error {
		if after, err := w.Do(ctx, h, "endpoint", "ls", "--format", "json"); err != nil || after != before {
			return fmt.Errorf("they were %s and are %s, %w", before, after, err)
		}
		return nil
	})
	works("after a restart")

	w.inNetwork(h, "here", "ip link del br0")
	w.soon(5*time.Second, "a bridge that was deleted is back", func(context.Context) error {
		return errors.Join(w.ping(h, "web", addrs(db)...), w.ping(h, "db", addrs(web)...))
	})
	if said, err := w.fetches(h, "web", outside.Addr().String()); err != nil {
		t.Errorf("after a repair web does not get out: %q, %v", said, err)
	}
	w.answered(outside, "", h.Addr().String()+":8080", "web", outside.Addr().String())

	w.bare(h)
	w.apart(h, outside)

	w.refused(h, 1, []string{"2 workloads", "detach"}, "network", "rm", "here")
	for _, name := range []string{"web", "db", "far", "shut"} {
		w.ok(h, "detach", name)
	}
	w.ok(h, "network", "rm", "here", "there", "closed", "host", "none", "apart")
	if all := strings.TrimSpace(w.ok(h, "network", "ls", "-q")); all != "" {
		t.Errorf("networks are left: %s", all)
	}
	w.ok(h, "init", "--advertise-addr", h.Addr().String()) // nothing is in the way now
}

// bare looks at the networks host and none of a node in no cluster: the one changes nothing, the other
// leaves a loopback alone, and neither takes ports or stands behind a service.
func (w world) bare(h *lab.Host) {
	w.t.Helper()
	has := func(in ...string) string {
		w.t.Helper()
		out, err := h.Output(w.t.Context(), append(in, "sh", "-c", "ip -o addr; ip route; nft -s list ruleset")...)
		if err != nil {
			w.t.Fatal(err)
		}
		return out
	}
	before := has()
	if said := w.ok(h, "attach", "agent", "--network", "host"); strings.TrimSpace(said) != "agent on this host" {
		w.t.Errorf("attach to host says %q", said)
	}
	if after := has(); after != before {
		w.t.Errorf("network host has changed the host:\n%s\nwas:\n%s", after, before)
	}
	w.ok(h, "attach", "job", "--network", "none")
	if said := w.ok(h, "status"); !strings.Contains(said, "agent") || strings.Contains(said, "00:00:00") {
		w.t.Errorf("status says %s", said)
	}
	links, err := h.Output(w.t.Context(), in("job", []string{"ip", "-o", "link"})...)
	if err != nil || strings.Count(links, "\n") > 1 || !strings.Contains(links, "lo: <LOOPBACK,UP") {
		w.t.Errorf("in none there is %q, %v", links, err)
	}
	for _, network := range []string{"host", "none"} {
		w.refused(h, 1, []string{"published"}, "attach", "other", "--network", network, "-p", "80:80")
		w.refused(h, 1, []string{"--service"}, "attach", "other", "--network", network, "--service", "shop")
		w.refused(h, 1, []string{"makes no interface"}, "attach", "other", "--network", network, "--ip", "10.0.0.1")
	}
	w.refused(h, 1, []string{"beside it"}, "attach", "job", "--network", "here")
	w.refused(h, 1, []string{"beside it"}, "attach", "web", "--network", "host")
	for _, e := range []string{"agent", "job"} {
		if w.endpoint(h, e).State != "ready" {
			w.t.Errorf("%s is not listed as ready: %+v", e, w.endpoint(h, e))
		}
		w.ok(h, "detach", e)
	}
	if after := has(); after != before {
		w.t.Errorf("a detach from host has changed the host:\n%s\nwas:\n%s", after, before)
	}
}

// apart looks at a network whose workloads do not reach each other, also not by the gateway, and get
// out all the same.
func (w world) apart(h, outside *lab.Host) {
	w.t.Helper()
	w.refused(h, 2, []string{"mtu and icc"}, "network", "create", "apart", "-d", "bridge", "-o", "icy=false")
	w.ok(h, "network", "create", "apart", "-d", "bridge", "-o", "com.docker.network.bridge.enable_icc=false")
	w.ok(h, "attach", "one", "--network", "apart")
	w.ok(h, "attach", "two", "--network", "apart")
	two := w.endpoint(h, "two").IPv4.Addr()
	if err := w.ping(h, "one", two); err == nil {
		w.t.Error("one reaches two with icc=false")
	}
	w.ok(h, "resolve", "two", "--network", "apart")
	gateway := two.As4()
	gateway[3] = 1
	via := netip.AddrFrom4(gateway).String()
	if err := h.Run(w.t.Context(), in("one", []string{"ip", "route", "add", two.String() + "/32", "via", via})...); err != nil {
		w.t.Fatal(err)
	}
	if err := w.ping(h, "one", two); err == nil {
		w.t.Error("one reaches two by the gateway with icc=false")
	}
	if said, err := w.fetches(h, "one", outside.Addr().String()); err != nil {
		w.t.Errorf("one does not get out: %q, %v", said, err)
	}
	w.ok(h, "detach", "one")
	w.ok(h, "detach", "two")
}
