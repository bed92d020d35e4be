//go:build linux

// Package e2e has the scenarios: heddle on the hosts of a lab, driven through its command
// line. They need root and the built program (make build).
package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

func TestMain(m *testing.M) {
	lab.Main()
	probe.Main()
	code := m.Run()
	if c, err := shared.made(); c != nil {
		if err = errors.Join(err, c.Close()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// world is a cluster under test.
type world struct {
	*cluster.Cluster
	t *testing.T
	*judges
}

// start makes a cluster of the test's own.
func start(t *testing.T, cfg cluster.Config) world {
	t.Helper()
	w := startHosts(t, cfg)
	if err := w.Form(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

// startHosts is start without init and joins.
func startHosts(t *testing.T, cfg cluster.Config) world {
	t.Helper()
	needRoot(t)
	c, err := cluster.NewHosts(t.Context(), t.Name(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := world{c, t, newJudges()}
	t.Cleanup(func() {
		w.judge()
		w.leave()
		w.logs()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	w.takeStock()
	return w
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces")
	}
}

// logs prints the end of the daemons' logs when the test has failed.
func (w world) logs() {
	if !w.t.Failed() {
		return
	}
	for _, h := range w.Hosts() {
		lines := strings.Split(strings.TrimSpace(h.DaemonLog()), "\n")
		w.t.Logf("%s: the daemon's log ends:\n%s", h.Name(), strings.Join(lines[max(0, len(lines)-25):], "\n"))
	}
}

// shared is one cluster of three managers and two workers for all tests that leave it as
// they found it.
var shared onceCluster

type onceCluster struct {
	mu  sync.Mutex
	c   *cluster.Cluster
	err error
}

func (o *onceCluster) made() (*cluster.Cluster, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.c, o.err
}

func common(t *testing.T) world {
	t.Helper()
	needRoot(t)
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.c == nil && shared.err == nil {
		shared.c, shared.err = cluster.New(context.Background(), "common", cluster.Config{Managers: 3, Workers: 2})
	}
	if shared.err != nil {
		t.Fatal("the common cluster:", shared.err)
	}
	w := world{shared.c, t, newJudges()}
	t.Cleanup(func() {
		w.judge()
		w.logs()
	})
	return w
}

// ok runs heddle on a host, which must succeed, and returns what it printed.
func (w world) ok(h *lab.Host, args ...string) string {
	w.t.Helper()
	out, err := w.Do(w.t.Context(), h, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// decode is ok for a command that prints JSON.
func (w world) decode(h *lab.Host, v any, args ...string) {
	w.t.Helper()
	if err := w.JSON(w.t.Context(), h, v, args...); err != nil {
		w.t.Fatal(err)
	}
}

// refused runs heddle on a host, which must fail with one line that has all of the words.
func (w world) refused(h *lab.Host, code int, words []string, args ...string) {
	w.t.Helper()
	_, err := w.Do(w.t.Context(), h, args...)
	w.isRefusal(err, code, words)
}

func (w world) isRefusal(err error, code int, words []string) {
	w.t.Helper()
	e, ok := errors.AsType[*lab.ExitError](err)
	if !ok {
		w.t.Errorf("it was not refused: %v", err)
		return
	}
	if e.Code != code {
		w.t.Errorf("%v: the exit code is %d, want %d", e.Args, e.Code, code)
	}
	lines := strings.Split(strings.TrimSuffix(e.Stderr, "\n"), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, "waiting for ") }) // after a second
	if len(lines) != 1 {
		w.t.Errorf("%v: the error has %d lines, want one:\n%s", e.Args, len(lines), e.Stderr)
	}
	for _, word := range words {
		if !regexp.MustCompile("(?i)" + word).MatchString(e.Stderr) {
			w.t.Errorf("%v: the error does not say %q: %s", e.Args, word, e.Stderr)
		}
	}
}

// network makes a network that goes away with the test, and returns its name.
func (w world) network(h *lab.Host, flags ...string) string {
	w.t.Helper()
	name := strings.ToLower(regexp.MustCompile("[^a-zA-Z0-9]+").ReplaceAllString(w.t.Name(), "-"))
	name = name[max(0, len(name)-50):] + fmt.Sprint(time.Now().UnixNano()%1e6)
	name = strings.TrimLeft(name, "-")
	w.ok(h, append([]string{"network", "create", name}, flags...)...)
	w.t.Cleanup(func() {
		w.judge()
		err := cluster.Eventually(context.Background(), 5*time.Second, func(ctx context.Context) error {
			_, err := w.Do(ctx, h, "network", "rm", name)
			return err
		})
		if err != nil && !w.t.Failed() {
			w.t.Error(err)
		}
	})
	return name
}

// attach attaches a workload that goes away with the test.
func (w world) attach(h *lab.Host, name, network string, flags ...string) cluster.Endpoint {
	w.t.Helper()
	w.ok(h, append([]string{"attach", name, "--network", network}, flags...)...)
	w.t.Cleanup(func() {
		w.judge()
		_, _ = w.Do(context.Background(), h, "detach", name)
	})
	e := w.endpoint(h, name)
	if e.Name == "" {
		w.t.Fatalf("%s does not list %s, which it has attached", h.Name(), name)
	}
	return e
}

// endpoint is a workload of a host as this host lists it, or the zero Endpoint.
func (w world) endpoint(h *lab.Host, name string) cluster.Endpoint {
	w.t.Helper()
	var rows []cluster.Endpoint
	w.decode(h, &rows, "endpoint", "ls", "--local", "--format", "json")
	for _, r := range rows {
		if r.Name == name {
			return r
		}
	}
	return cluster.Endpoint{}
}

// in is a command line that runs in a workload's namespace.
func in(workload string, args []string) []string {
	return append([]string{"ip", "netns", "exec", workload}, args...)
}

// ping sends one echo request from a workload; its answer must come within a second.
func (w world) ping(h *lab.Host, workload string, to ...netip.Addr) error {
	args := []string{}
	for _, a := range to {
		args = append(args, a.String())
	}
	return h.Run(w.t.Context(), in(workload, probe.Args("ping", args...))...)
}

// reaches fails the test unless the first packet to each address is answered.
func (w world) reaches(h *lab.Host, workload string, to cluster.Endpoint) {
	w.t.Helper()
	for _, a := range addrs(to) {
		if err := w.ping(h, workload, a); err != nil {
			w.t.Errorf("%s does not reach %s: %v", workload, to.Name, err)
		}
	}
}

func addrs(e cluster.Endpoint) (out []netip.Addr) {
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if p.IsValid() {
			out = append(out, p.Addr())
		}
	}
	return out
}

// soon fails the test unless the step succeeds within d.
func (w world) soon(d time.Duration, what string, step func(context.Context) error) {
	w.t.Helper()
	if err := cluster.Eventually(w.t.Context(), d, step); err != nil {
		w.t.Errorf("%s: %v", what, err)
	}
}

// stream starts echo requests every 10 ms from a workload. The function that it returns
// ends them and fails the test when one had no answer, with the times of those.
func (w world) stream(h *lab.Host, workload string, to ...netip.Addr) func() {
	w.t.Helper()
	return w.streamBy(h, 10*time.Millisecond, to, func(args []string) []string { return in(workload, args) })
}

// streamBy is stream at any interval and for any command line.
func (w world) streamBy(h *lab.Host, every time.Duration, to []netip.Addr, in func(args []string) []string) func() {
	w.t.Helper()
	errs, err := os.CreateTemp(w.t.TempDir(), "ping")
	if err != nil {
		w.t.Fatal(err)
	}
	args := []string{"-c", "0", "-i", every.String()}
	for _, a := range to {
		args = append(args, a.String())
	}
	p, err := h.Start(lab.Command{Args: in(probe.Args("ping", args...)), Stdout: errs, Stderr: errs})
	if err != nil {
		w.t.Fatal(err)
	}
	return func() {
		w.t.Helper()
		_ = p.Signal(2)
		err := p.Wait(w.t.Context())
		b, _ := os.ReadFile(errs.Name())
		if said := strings.TrimSpace(string(b)); err != nil {
			w.t.Errorf("traffic to %s was lost: %s", to, said)
		} else {
			w.t.Log(said)
		}
	}
}
