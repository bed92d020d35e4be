//go:build linux

package vm_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/vm"
)

// Whether or not a manager is there, a node that reboots comes back from its own disk, its
// workloads with their namespaces and addresses; and nodes go on whose certificates and leases
// are a year old at once, with nobody to renew them.
func TestWhileTheManagerIsOff(t *testing.T) {
	w := common(t)
	a, b := w.attach(w.one, "a"), w.attach(w.two, "b")
	w.withoutManager(func() {
		w.reboots(a, b)
		w.agesAYear(a, b)
	})
}

func (w world) reboots(a, b cluster.Endpoint) {
	w.t.Helper()
	if err := w.one.Reboot(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.meets(w.one, "a", b)
	if again := w.endpoint(w.one, "a"); again.IPv4 != a.IPv4 || again.IPv6 != a.IPv6 || again.MAC != a.MAC {
		w.t.Errorf("the workload was %+v and is %+v", a, again)
	}
	w.reaches(w.two, "b", a)
}

func (w world) agesAYear(a, b cluster.Endpoint) {
	w.t.Helper()
	end := w.stream(w.one, "a", b)
	w.setClocks(365 * 24 * time.Hour)
	defer w.setClocks(0)
	w.ok(w.one, "systemctl", "restart", "heddle")
	w.ok(w.two, "systemctl", "restart", "heddle")
	c := w.attach(w.one, "c")
	w.meets(w.two, "b", c)
	end()
	w.reaches(w.two, "b", a)
}

// setClocks sets the workers' clocks to so much more than this machine's.
func (w world) setClocks(ahead time.Duration) {
	w.t.Helper()
	for _, h := range []*vm.Host{w.one, w.two} {
		w.ok(h, "date", "-s", "@"+strconv.FormatInt(time.Now().Add(ahead).Unix(), 10))
	}
}

// withoutManager pulls the manager's plug while the step runs, and waits until it leads again.
func (w world) withoutManager(step func()) {
	w.t.Helper()
	if err := w.manager.PullPlug(); err != nil {
		w.t.Fatal(err)
	}
	defer func() {
		if err := w.manager.Boot(context.Background()); err != nil {
			w.t.Fatal(err)
		}
		w.soon(20*time.Second, "the manager leads again", func(ctx context.Context) error {
			out, err := w.manager.Output(ctx, "heddle", "node", "ls", "--format", "{{.Name}} {{.Status}}")
			if err == nil && strings.Count(out, "ready") < 3 {
				err = fmt.Errorf("the nodes are %q", out)
			}
			return err
		})
	}()
	step()
}

// meets fails the test unless a workload reaches another soon, with each address.
func (w world) meets(h *vm.Host, workload string, to cluster.Endpoint) {
	w.t.Helper()
	for _, a := range addrs(to) {
		w.soon(20*time.Second, workload+" reaches "+to.Name, func(ctx context.Context) error {
			return h.Run(ctx, in(workload, "ping", a.String())...)
		})
	}
}
