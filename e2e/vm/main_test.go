//go:build linux

package vm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/probe"
	"github.com/heddle-net/heddle/e2e/vm"
)

func TestMain(m *testing.M) {
	vm.Main()
	probe.Main()
	code := m.Run()
	if err := shared.close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// shared is the one cluster of all scenarios: a manager and two workers. Each scenario leaves
// it as it found it.
var shared onceWorld

type onceWorld struct {
	mu  sync.Mutex
	lab *vm.Lab
	err error
}

func (o *onceWorld) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lab == nil {
		return nil
	}
	return o.lab.Close()
}

// network is the one that form makes.
const network = "blue"

// kernelTests is where the tests of datapath/kernel stand in the hosts.
const kernelTests = "/usr/local/lib/heddle-lab/kernel.test"

func addKernelTests(root string) error {
	cmd := exec.Command("go", "test", "-c", "-tags", "hashicorpmetrics", "-ldflags", "-s -w", "-o", root+kernelTests, "github.com/heddle-net/heddle/datapath/kernel")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the tests of datapath/kernel: %w: %s", err, out)
	}
	return nil
}

// world is the cluster under test.
type world struct {
	*vm.Lab
	t                 *testing.T
	manager, one, two *vm.Host
}

// common boots the hosts, has systemd start heddle on them and makes the cluster, once.
func common(t *testing.T) world {
	t.Helper()
	if why := vm.Missing(); why != "" {
		t.Skip(why)
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.lab == nil && shared.err == nil {
		if shared.lab, shared.err = vm.New(context.Background(), vm.Config{Hosts: 3, Files: addKernelTests}); shared.err == nil {
			shared.err = form(context.Background(), shared.lab.Hosts())
		}
	}
	if shared.err != nil {
		t.Fatal("the common cluster:", shared.err)
	}
	hosts := shared.lab.Hosts()
	w := world{Lab: shared.lab, t: t, manager: hosts[0], one: hosts[1], two: hosts[2]}
	t.Cleanup(w.logs)
	return w
}

// form enables the unit and makes a cluster with a network.
func form(ctx context.Context, hosts []*vm.Host) error {
	errs := make([]error, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() { errs[i] = h.Run(ctx, "systemctl", "enable", "--now", "heddle") })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := hosts[0].Run(ctx, "heddle", "init"); err != nil {
		return err
	}
	token, err := hosts[0].Output(ctx, "heddle", "token", "create", "worker", "-q")
	if err != nil {
		return err
	}
	for _, h := range hosts[1:] {
		if err := h.Run(ctx, "heddle", "join", hosts[0].Addr().String(), "--token", strings.TrimSpace(token)); err != nil {
			return err
		}
	}
	return hosts[0].Run(ctx, "heddle", "network", "create", network, "--ipv6")
}

// logs prints what the hosts say of themselves when the test has failed.
func (w world) logs() {
	if !w.t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, h := range w.Hosts() {
		for _, args := range [][]string{{"journalctl", "-u", "heddle", "-n", "25", "-o", "cat", "--no-pager"}, {"systemctl", "--failed", "--no-pager"}} {
			out, err := h.Output(ctx, args...)
			w.t.Logf("%s: %s: %v\n%s", h.Name(), strings.Join(args, " "), err, out)
		}
		w.t.Logf("%s: the console ends:\n%s", h.Name(), h.Console())
	}
}

// ok runs a command on a host, which must succeed, and returns what it printed.
func (w world) ok(h *vm.Host, args ...string) string {
	w.t.Helper()
	out, err := h.Output(w.t.Context(), args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// attach attaches a workload that goes away with the test.
func (w world) attach(h *vm.Host, name string) cluster.Endpoint {
	w.t.Helper()
	return w.attachTo(network, h, name)
}

func (w world) attachTo(network string, h *vm.Host, name string) cluster.Endpoint {
	w.t.Helper()
	w.ok(h, "heddle", "attach", name, "--network", network)
	w.t.Cleanup(func() {
		if err := h.Run(context.Background(), "heddle", "detach", name); err != nil {
			w.t.Error(err)
		}
	})
	return w.endpoint(h, name)
}

// endpoint is a workload of a host as this host lists it.
func (w world) endpoint(h *vm.Host, name string) cluster.Endpoint {
	w.t.Helper()
	var rows []cluster.Endpoint
	if err := json.Unmarshal([]byte(w.ok(h, "heddle", "endpoint", "ls", "--local", "--format", "json")), &rows); err != nil {
		w.t.Fatal(err)
	}
	for _, r := range rows {
		if r.Name == name {
			return r
		}
	}
	w.t.Fatalf("%s does not list %s, which it has attached", h.Name(), name)
	return cluster.Endpoint{}
}

// in is a probe's command line that runs in a workload's namespace.
func in(workload string, args ...string) []string {
	p := probe.Args(args[0], args[1:]...)
	p[0] = vm.Program
	return append([]string{"ip", "netns", "exec", workload}, p...)
}

func addrs(e cluster.Endpoint) []netip.Addr { return []netip.Addr{e.IPv4.Addr(), e.IPv6.Addr()} }

// reaches fails the test unless the first packet to each address is answered; an emulated host
// may take more than a second for it.
func (w world) reaches(h *vm.Host, workload string, to cluster.Endpoint) {
	w.t.Helper()
	for _, a := range addrs(to) {
		if err := h.Run(w.t.Context(), in(workload, "ping", "-w", "5s", a.String())...); err != nil {
			w.t.Errorf("%s does not reach %s: %v", workload, to.Name, err)
		}
	}
}

// stream starts echo requests every 10 ms to both addresses of a workload. The function that
// it returns ends them and fails the test when one had no answer.
func (w world) stream(h *vm.Host, workload string, to cluster.Endpoint) func() {
	w.t.Helper()
	var streams []*vm.Process
	for _, a := range addrs(to) {
		p, err := h.Start(in(workload, "ping", "-c", "0", "-i", "10ms", "-w", "3s", a.String())...)
		if err != nil {
			w.t.Fatal(err)
		}
		streams = append(streams, p)
	}
	return func() {
		w.t.Helper()
		for _, p := range streams {
			_ = p.Signal(unix.SIGINT)
			out, err := p.Wait(w.t.Context())
			w.t.Log(strings.TrimSpace(out))
			if err != nil {
				w.t.Errorf("traffic to %s was lost: %v", to.Name, err)
			}
		}
	}
}

// soon fails the test unless the step succeeds within d.
func (w world) soon(d time.Duration, what string, step func(context.Context) error) {
	w.t.Helper()
	if err := cluster.Eventually(w.t.Context(), d, step); err != nil {
		w.t.Errorf("%s: %v", what, err)
	}
}
