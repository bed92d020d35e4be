//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// daemonOf asks a host's daemon by its socket, as plugins do, without the time that starting a
// program takes.
func daemonOf(h *lab.Host) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", h.Path("/run/heddle/heddle.sock"))
	}}}
}

// health is what a host has heard of the health of a network's workload.
func health(h *lab.Host, network, workload string) (string, error) {
	resp, err := daemonOf(h).Get("http://heddle/v1/copy")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var held struct{ Endpoints []cluster.Endpoint }
	if err := json.NewDecoder(resp.Body).Decode(&held); err != nil {
		return "", err
	}
	for _, e := range held.Endpoints {
		if e.Network == network && e.Name == workload {
			return e.Health, nil
		}
	}
	return "", fmt.Errorf("%s has not heard of %s", h.Name(), workload)
}

// hear waits until all hosts have heard that a workload's health begins so, and answers how long
// that took from a moment on.
func (w world) hear(d time.Duration, from time.Time, network, workload, state string) time.Duration {
	w.t.Helper()
	var last time.Duration
	for _, h := range w.Hosts() {
		for {
			got, err := health(h, network, workload)
			if err == nil && strings.HasPrefix(got, state) {
				break
			}
			if time.Since(from) > d+5*time.Second {
				w.t.Fatalf("%s hears that %s is %q, not %q: %v", h.Name(), workload, got, state, err)
			}
			time.Sleep(time.Millisecond)
		}
		last = max(last, time.Since(from))
	}
	if last > d {
		w.t.Errorf("it took %s until all had heard that %s is %s, want %s", last, workload, state, d)
	}
	return last
}

// probed attaches a workload with a health check.
func (w world) probed(h *lab.Host, name, network string, check map[string]any) {
	w.t.Helper()
	b, err := json.Marshal(map[string]any{"name": name, "network": network, "health": check})
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := daemonOf(h).Post("http://heddle/v1/attach", "application/json", bytes.NewReader(b))
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	w.t.Cleanup(func() { _, _ = w.Do(context.Background(), h, "detach", name) })
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		if strings.Contains(s.Text(), `"error"`) {
			w.t.Fatal(s.Text())
		}
	}
}

// run runs a program in a workload until the test ends.
func (w world) run(h *lab.Host, workload string, args ...string) *lab.Process {
	w.t.Helper()
	p, err := h.Start(lab.Command{Args: in(workload, args)})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = p.Kill() })
	return p
}

// everywhere makes a network in which all hosts take part.
func (w world) everywhere() string {
	w.t.Helper()
	net := w.network(w.Host(1), "--ipv6")
	for _, h := range w.Hosts() {
		w.attach(h, "at-"+h.Name(), net)
	}
	return net
}

// All hosts hear soon whether a workload works: at what it listens, or by a command.
func TestHealthIsTold(t *testing.T) {
	w := common(t)
	net, h := w.everywhere(), w.Host(4)
	file := filepath.Join(t.TempDir(), "well")
	w.probed(h, "web", net, map[string]any{"kind": "http", "port": 80, "path": "/"})
	w.probed(h, "job", net, map[string]any{"kind": "cmd", "command": "test -e " + file + " && ip -4 addr | grep -q eth0 || { echo it is away; exit 7; }"})
	begin := time.Now()
	w.hear(2*time.Second, begin, net, "web", "starting: connect to 10.")
	w.hear(2*time.Second, begin, net, "job", "starting: exit status 7: it is away")
	web := w.run(h, "web", probe.Args("serve")...)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	w.hear(2*time.Second, begin, net, "web", "healthy")
	w.hear(2*time.Second, begin, net, "job", "healthy")
	if err := errors.Join(h.KillDaemon(), h.StartDaemon()); err != nil {
		t.Fatal(err)
	}
	if got, err := health(h, net, "web"); err != nil || got != "healthy" {
		t.Errorf("restarted, it says that web is %q: %v", got, err)
	}
	for range 2 {
		killed := time.Now()
		if err := web.Kill(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s after it was killed all had heard it", w.hear(2*time.Second, killed, net, "web", "unhealthy: "))
		var rows []cluster.Endpoint
		w.decode(w.Host(1), &rows, "endpoint", "inspect", "n4/web")
		if len(rows) != 1 || !strings.Contains(rows[0].Health, "connection refused") {
			t.Errorf("endpoint inspect says %+v", rows)
		}
		web = w.run(h, "web", probe.Args("serve")...)
		w.hear(2*time.Second, time.Now(), net, "web", "healthy")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	w.hear(2*time.Second, time.Now(), net, "job", "unhealthy: exit status 7: it is away")
}

// What is in a service leaves: all hear it at once, its connections go on, and with the last of them
// it goes, also when the daemon is killed meanwhile.
func TestConnectionsHaveAGrace(t *testing.T) {
	w := common(t)
	net, on, from := w.everywhere(), w.Host(4), w.Host(5)
	best := time.Hour
	for i, tc := range []struct {
		name   string
		flags  []string
		killed bool
		cut    bool // the connection ends with the workload
	}{
		{"by itself", nil, false, false},
		{"the daemon is killed", nil, true, false},
		{"without grace", []string{"--grace", "0"}, false, true},
	} {
		name := fmt.Sprint("web", i)
		e := w.attach(on, name, net, "--service", "shop")
		w.run(on, name, "iperf3", "-s", "-1")
		w.soon(5*time.Second, "iperf3 listens", func(ctx context.Context) error {
			return on.Run(ctx, in(name, []string{"sh", "-c", "ss -Hltn | grep -q :5201"})...)
		})
		flow := w.run(from, "at-n5", "iperf3", "-c", e.IPv4.Addr().String(), "-t", "2", "-b", "1M")
		w.soon(5*time.Second, "iperf3 is connected", func(ctx context.Context) error {
			return on.Run(ctx, in(name, []string{"sh", "-c", "ss -Htn state established | grep -q :5201"})...)
		})
		begin := time.Now()
		detached := make(chan error, 1)
		go func() {
			_, err := w.Do(t.Context(), on, append([]string{"detach", name}, tc.flags...)...)
			detached <- err
		}()
		if tc.cut {
			if err := <-detached; err != nil || time.Since(begin) > time.Second {
				t.Errorf("%s: after %s: %v", tc.name, time.Since(begin), err)
			}
			_ = flow.Kill()
			continue
		}
		best = min(best, w.hear(time.Second, begin, net, name, "leaving"))
		if tc.killed {
			if err := on.KillDaemon(); err != nil {
				t.Fatal(err)
			}
			<-detached
			if err := on.StartDaemon(); err != nil {
				t.Fatal(err)
			}
		}
		if err := flow.Wait(t.Context()); err != nil {
			t.Errorf("%s: the connection was cut after %s: %v", tc.name, time.Since(begin), err)
		}
		ended := time.Now()
		w.soon(5*time.Second, tc.name+": it goes", func(context.Context) error {
			if e := w.endpoint(on, name); e.Name != "" {
				return fmt.Errorf("%+v", e)
			}
			return nil
		})
		t.Logf("%s: it was gone %s after its last connection", tc.name, time.Since(ended).Round(time.Millisecond))
		if !tc.killed {
			if err := <-detached; err != nil {
				t.Error(err)
			}
		}
	}
	t.Logf("%s after the command was typed all had heard it", best)
	if best > 100*time.Millisecond {
		t.Errorf("it took %s until all had heard that a workload leaves", best)
	}
}

// A drained node keeps what it has, and takes nothing new, also within its leases.
func TestADrainedNodeTakesNothingNew(t *testing.T) {
	w := common(t)
	net, h := w.everywhere(), w.Host(5)
	w.ok(w.Host(1), "node", "update", "--availability", "drain", "n5")
	w.t.Cleanup(func() {
		_, _ = w.Do(context.Background(), w.Host(1), "node", "update", "--availability", "active", "n5")
	})
	w.soon(2*time.Second, "it has heard that", func(ctx context.Context) error {
		if _, err := w.Do(ctx, h, "attach", "new", "--network", net); err == nil {
			_, _ = w.Do(ctx, h, "detach", "new")
			return fmt.Errorf("it attaches")
		}
		return nil
	})
	w.refused(h, 1, []string{"n5", "drain", "--availability active"}, "attach", "new", "--network", net)
	w.reaches(w.Host(4), "at-n4", w.endpoint(h, "at-n5"))
	w.ok(w.Host(1), "node", "update", "--availability", "active", "n5")
	w.soon(2*time.Second, "it attaches again", func(ctx context.Context) error {
		_, err := w.Do(ctx, h, "attach", "new", "--network", net)
		return err
	})
	w.ok(h, "detach", "new")
}
