//go:build linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

func TestFiveHostsJoinWithinFiveSeconds(t *testing.T) {
	begin := time.Now()
	w := start(t, cluster.Config{Managers: 3, Workers: 2})
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("five hosts were up and joined after %s", d)
	} else {
		t.Logf("five hosts were up and joined after %s", d)
	}
	for _, h := range w.Hosts() {
		var nodes []cluster.Node
		w.soon(3*time.Second, h.Name()+" sees all nodes ready", func(ctx context.Context) error {
			if err := w.JSON(ctx, h, &nodes, "node", "ls", "--format", "json"); err != nil {
				return err
			}
			ready := 0
			for _, n := range nodes {
				if n.Status == "ready" {
					ready++
				}
			}
			if ready != 5 {
				return fmt.Errorf("%d nodes are ready", ready)
			}
			return nil
		})
	}
}

func TestAWebServerIsReachedFromAnyHostOverBothFamilies(t *testing.T) {
	w := common(t)
	net := w.network(w.Host(1), "--ipv6")
	web := w.attach(w.Host(4), "web", net)
	r, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := w.Host(4).Start(lab.Command{Args: in("web", probe.Args("serve", "-text", "it works")), Stdout: out})
	out.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	if _, err := r.Read(make([]byte, 80)); err != nil {
		t.Fatal("the server did not start:", err)
	}
	for _, h := range w.Hosts() {
		for _, url := range []string{"http://" + web.IPv4.Addr().String(), "http://[" + web.IPv6.Addr().String() + "]"} {
			got, err := h.Output(t.Context(), append([]string{"heddle", "run", "--network", net, "--"}, probe.Args("fetch", url)...)...)
			if err != nil || !strings.Contains(got, "it works") {
				t.Errorf("%s fetches %q from %s: %v", h.Name(), got, url, err)
			}
		}
	}
}

// An attach that has returned is reachable: the first packet from other hosts to the
// workload, and from it to others, passes.
func TestFirstPacketsPass(t *testing.T) {
	w := common(t)
	net := w.network(w.Host(1), "--ipv6")
	observers := []*lab.Host{w.Host(2), w.Host(5)}
	seen := map[*lab.Host]cluster.Endpoint{}
	for _, h := range observers {
		seen[h] = w.attach(h, "observer", net)
	}
	lost, sent := 0, 0
	try := func(h *lab.Host, workload string, to cluster.Endpoint) {
		for _, a := range addrs(to) {
			sent++
			if err := w.ping(h, workload, a); err != nil {
				lost++
				t.Log(err)
			}
		}
	}
	for i := range 15 {
		h := w.Hosts()[i%5]
		name := fmt.Sprintf("w%d", i)
		e := w.attach(h, name, net)
		for _, o := range observers {
			if o != h {
				try(o, "observer", e)
				try(h, name, seen[o])
			}
		}
	}
	if sent < 90 || lost > 0 {
		t.Errorf("%d of %d first packets were lost", lost, sent)
	}
}

func TestNothingIsLearnedOrFlooded(t *testing.T) {
	w := common(t)
	net := w.network(w.Host(1), "--ipv6")
	a := w.attach(w.Host(1), "a", net)
	w.attach(w.Host(2), "b", net)
	var rows []cluster.Network
	w.decode(w.Host(2), &rows, "network", "inspect", net)
	if len(rows) != 1 || rows[0].Namespace == "" || rows[0].Device == "" || rows[0].Bridge == "" {
		t.Fatalf("network inspect on a participant says %+v", rows)
	}
	n := rows[0]
	show := func(args ...string) string {
		t.Helper()
		out, err := w.Host(2).Output(t.Context(), in(n.Namespace, args)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	fdb := show("bridge", "fdb", "show", "dev", n.Device)
	self := fmt.Sprintf("%s dst %s", a.MAC, w.Host(1).Addr())
	if !strings.Contains(fdb, self) || !strings.Contains(fdb, "permanent") || strings.Count(fdb, a.MAC) != 2 {
		t.Errorf("the forwarding entries are not %q with self and master:\n%s", self, fdb)
	}
	if strings.Contains(fdb, "00:00:00:00:00:00") {
		t.Errorf("there is a flood list:\n%s", fdb)
	}
	link := show("ip", "-d", "link", "show", n.Device)
	for _, want := range []string{"nolearning", "learning off", "flood off", "neigh_suppress on", fmt.Sprintf("local %s", w.Host(2).Addr())} {
		if !strings.Contains(link, want) {
			t.Errorf("the VXLAN device does not have %q:\n%s", want, link)
		}
	}
	neigh := show("ip", "neigh", "show", "nud", "permanent")
	for _, addr := range addrs(a) {
		if !strings.Contains(neigh, fmt.Sprintf("%s dev %s lladdr %s", addr, n.Bridge, a.MAC)) {
			t.Errorf("no permanent neighbour %s:\n%s", addr, neigh)
		}
	}
	w.ok(w.Host(1), "detach", "a")
	w.soon(time.Second, "the entries go with the workload", func(ctx context.Context) error {
		if fdb := show("bridge", "fdb", "show", "dev", n.Device); strings.Contains(fdb, a.MAC) {
			return fmt.Errorf("%s", fdb)
		}
		return nil
	})
}

func TestAttachTakesNamespacesOfOthers(t *testing.T) {
	w := common(t)
	h := w.Host(3)
	net := w.network(h, "--ipv6")
	peer := w.attach(w.Host(4), "peer", net)
	if err := h.Run(t.Context(), "ip", "netns", "add", "theirs"); err != nil {
		t.Fatal(err)
	}
	defer h.Run(context.Background(), "ip", "netns", "del", "theirs")
	w.attach(h, "by-path", net, "--netns", "/run/netns/theirs")
	w.reaches(h, "theirs", peer)

	p, err := h.Start(lab.Command{Args: in("theirs", []string{"sleep", "100"})})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	net2 := w.network(h)
	e := w.attach(h, "by-pid", net2, "--pid", fmt.Sprint(p.PID()))
	if e.Interface != "eth1" {
		t.Errorf("the second interface in the namespace is %q, want eth1", e.Interface)
	}
	w.ok(h, "detach", "by-path")
	w.ok(h, "detach", "by-pid")
	if err := h.Run(t.Context(), "ip", "netns", "exec", "theirs", "true"); err != nil {
		t.Error("detach removed a namespace that heddle did not make:", err)
	}
	if out, _ := h.Output(t.Context(), in("theirs", []string{"ls", "/sys/class/net"})...); strings.TrimSpace(out) != "lo" {
		t.Errorf("after detach the namespace holds %q", out)
	}
}

func TestAttachIsRepeatable(t *testing.T) {
	w := common(t)
	net := w.network(w.Host(1))
	first := w.attach(w.Host(4), "web", net)
	if again := w.attach(w.Host(4), "web", net); again != first {
		t.Errorf("the second attach gave %+v, the first %+v", again, first)
	}
}

func TestRunCleansUp(t *testing.T) {
	w := common(t)
	h := w.Host(5)
	net := w.network(h)
	if out, err := h.Output(t.Context(), "heddle", "run", "--network", net, "--name", "short", "--", "ip", "-o", "-4", "addr", "show", "dev", "eth0"); err != nil || !strings.Contains(out, "inet ") {
		t.Errorf("the command sees %q, %v", out, err)
	}
	w.isGone(h, "short")
	err := h.Run(t.Context(), "heddle", "run", "--network", net, "--", "sh", "-c", "exit 7")
	if e, ok := err.(*lab.ExitError); !ok || e.Code != 7 {
		t.Errorf("the exit code of the command became %v", err)
	}
	for _, c := range []struct {
		name string
		kill func(*lab.Process) error
	}{
		{"terminated", func(p *lab.Process) error { return p.Signal(15) }},
		{"killed", func(p *lab.Process) error { return p.Signal(9) }},
	} {
		p, err := h.Start(lab.Command{Args: []string{"heddle", "run", "--network", net, "--name", c.name, "--", "sleep", "100"}})
		if err != nil {
			t.Fatal(err)
		}
		w.soon(5*time.Second, c.name+" is attached", func(context.Context) error {
			if w.endpoint(h, c.name).State != "ready" {
				return fmt.Errorf("not ready")
			}
			return nil
		})
		if err := c.kill(p); err != nil {
			t.Fatal(err)
		}
		_ = p.Wait(t.Context())
		w.isGone(h, c.name)
	}
}

// isGone fails the test unless the workload and its namespace go away soon.
func (w world) isGone(h *lab.Host, name string) {
	w.t.Helper()
	w.soon(3*time.Second, name+" is gone", func(context.Context) error {
		if e := w.endpoint(h, name); e.Name != "" {
			return fmt.Errorf("the endpoint is there: %+v", e)
		}
		if _, err := os.Stat(h.Path("/run/netns/" + name)); err == nil {
			return fmt.Errorf("its namespace is there")
		}
		return nil
	})
}

func TestAddressesCanBeAskedFor(t *testing.T) {
	w := common(t)
	h := w.Host(4)
	net := w.network(h, "--ipv6", "--subnet", "10.20.0.0/24")
	first := w.attach(h, "first", net)
	if !strings.HasPrefix(first.IPv4.String(), "10.20.0.") {
		t.Errorf("the address %s is not of the subnet asked for", first.IPv4)
	}
	w.ok(h, "detach", "first")
	again := w.attach(h, "asked", net, "--ip", first.IPv4.Addr().String(), "--mac", "02:00:00:00:be:ef", "--ifname", "net7")
	if again.IPv4 != first.IPv4 || again.MAC != "02:00:00:00:be:ef" || again.Interface != "net7" {
		t.Errorf("asked for %s 02:00:00:00:be:ef net7, got %+v", first.IPv4, again)
	}
	w.refused(h, 1, []string{first.IPv4.Addr().String()}, "attach", "late", "--network", net, "--ip", first.IPv4.Addr().String())
}

func TestTheSocketIsRootsAlone(t *testing.T) {
	w := common(t)
	st, err := os.Stat(w.Host(1).Path("/run/heddle/heddle.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %o", st.Mode().Perm())
	}
	st, err = os.Stat(filepath.Dir(w.Host(1).Path("/var/lib/heddle/x")))
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the data directory: %v, %v", st.Mode(), err)
	}
}

func TestStatusShowsPeersPortsAndProbes(t *testing.T) {
	w := common(t)
	var s cluster.Status
	w.decode(w.Host(5), &s, "status", "--format", "json")
	if !s.Member || s.Role != "worker" || len(s.Peers) != 4 || len(s.Managers) != 3 {
		t.Fatalf("status says %+v", s)
	}
	ports := fmt.Sprint(s.Ports)
	for _, p := range []string{"5377", "5378", "4789"} {
		if !strings.Contains(ports, p) {
			t.Errorf("status does not name port %s: %s", p, ports)
		}
	}
	w.soon(10*time.Second, "each peer has been probed", func(ctx context.Context) error {
		if err := w.JSON(ctx, w.Host(5), &s, "status", "--format", "json"); err != nil {
			return err
		}
		for _, p := range s.Peers {
			if p.State != "alive" || p.LastProbe == "" {
				return fmt.Errorf("%+v", p)
			}
		}
		return nil
	})
}
