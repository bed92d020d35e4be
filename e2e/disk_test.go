//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

// smallDisk starts a host's daemon again on a disk of its own of 16 MiB. full fills it, and free
// makes room again.
func (w world) smallDisk(h *lab.Host) (full, free func()) {
	w.t.Helper()
	if err := h.StopDaemon(); err != nil {
		w.t.Fatal(err)
	}
	w.sh(h, "mount -t tmpfs -o size=16m tmpfs /var/lib/heddle")
	if err := h.StartDaemon(); err != nil {
		w.t.Fatal(err)
	}
	full = func() { w.sh(h, "head -c 64M /dev/zero > /var/lib/heddle/filler 2>/dev/null || true") }
	return full, func() { w.sh(h, "rm /var/lib/heddle/filler") }
}

// A worker whose disk is full refuses what it could not remember, whole, and keeps what stands:
// traffic, names, its answers. With room again it goes on by itself.
func TestAWorkersDiskIsFull(t *testing.T) {
	t.Parallel() // most of it is waiting
	w := startHosts(t, cluster.Config{Managers: 1, Workers: 2})
	m, a, b := w.Host(1), w.Host(2), w.Host(3)
	full, free := w.smallDisk(b)
	w.ok(m, "init", "--advertise-addr", m.Addr().String())
	token := w.ok(m, "token", "create", "worker", "-q")
	for _, h := range []*lab.Host{a, b} {
		w.ok(h, "join", m.Addr().String(), "--token", token)
	}
	w.ok(m, "network", "create", "net", "--ipv6")
	w.attach(a, "a", "net")
	e := w.attach(b, "b", "net")
	done := w.stream(a, "a", e.IPv4.Addr())
	full()
	var err error
	name := ""
	for i := 0; err == nil && i < 50; i++ { // pages of the file that are free hold some more
		name = fmt.Sprint("w", i)
		_, err = w.Do(t.Context(), b, "attach", name, "--network", "net")
	}
	w.isRefusal(err, 1, []string{"no space left", "/var/lib/heddle/node.db", "free space"})
	if row := w.endpoint(b, name); row.Name != "" {
		t.Errorf("%s is half made: %+v", name, row)
	}
	if out, _ := b.Output(t.Context(), "ls", "/run/netns"); strings.Contains(out, name+"\n") {
		t.Errorf("the namespace of %s is there: %s", name, out)
	}
	w.reaches(a, "a", e)
	w.ok(b, "status")
	w.ok(b, "network", "ls")
	if err := errors.Join(b.StopDaemon(), b.StartDaemon()); err != nil { // it comes up on such a disk as well
		t.Fatal(err)
	}
	if err := w.SetMTU(b, 1400); err != nil {
		t.Fatal(err)
	}
	w.soon(5*time.Second, "others know of it what it could not write", func(ctx context.Context) error {
		out, err := a.Output(ctx, in("a", []string{"cat", "/sys/class/net/eth0/mtu"})...)
		if err == nil && strings.TrimSpace(out) != "1350" {
			err = fmt.Errorf("the MTU is %s, want 1350", strings.TrimSpace(out))
		}
		return err
	})
	free()
	w.reaches(a, "a", w.attach(b, name, "net"))
	done()
}

// A manager whose disk is full stops being one and says so; the others take over, and its own
// workloads go on. With room again a restart makes it a manager as before.
func TestAManagersDiskIsFull(t *testing.T) {
	t.Parallel() // most of it is waiting
	w := startHosts(t, cluster.Config{Managers: 3})
	m := w.Host(1)
	full, free := w.smallDisk(m)
	w.ok(m, "init", "--advertise-addr", m.Addr().String())
	for _, h := range w.Managers()[1:] {
		w.ok(h, "join", m.Addr().String(), "--token", w.ok(m, "token", "create", "manager", "-q"))
	}
	for _, h := range w.Managers() {
		w.role(m, h.Name(), "manager")
	}
	w.ok(m, "network", "create", "net")
	e := w.attach(m, "on-it", "net")
	w.attach(w.Host(2), "peer", "net")
	done := w.stream(w.Host(2), "peer", e.IPv4.Addr())
	full()
	created := map[string]bool{}
	w.soon(20*time.Second, "the manager stops being one", func(ctx context.Context) error {
		name := fmt.Sprint("n", len(created))
		if _, err := w.Do(ctx, w.Host(2), "network", "create", name); err == nil {
			created[name] = true
		}
		out, err := w.Do(ctx, m, "status")
		if err == nil && !strings.Contains(out, "no manager runs on this node, which should be one: ") {
			err = errors.New(out)
		}
		return err
	})
	if out := w.ok(m, "status"); !strings.Contains(out, "no space left") {
		t.Errorf("status does not say why: %s", out)
	}
	w.soon(5*time.Second, "a write without it, asked there", func(ctx context.Context) error {
		_, err := w.Do(ctx, m, "network", "create", "after")
		return err
	})
	created["after"] = true
	done()
	free()
	if err := m.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := m.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	w.soon(10*time.Second, "it is a manager again, and has all that was accepted", func(ctx context.Context) error {
		out, err := w.Do(ctx, m, "network", "ls", "--stale", "--format", "{{.Name}}")
		for name := range created {
			if err == nil && !strings.Contains(out+"\n", name+"\n") {
				err = fmt.Errorf("%s is not in %q", name, out)
			}
		}
		return err
	})
	w.role(w.Host(2), m.Name(), "manager")
	if out := w.ok(m, "status"); strings.Contains(out, "should be one") {
		t.Errorf("status goes on about it: %s", out)
	}
}
