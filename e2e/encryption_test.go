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

// sealed is a cluster with an encrypted network, a on the first worker and b on the second.
func sealed(t *testing.T, cfg cluster.Config) (w world, a, b *lab.Host, eb cluster.Endpoint) {
	w = start(t, cfg)
	a, b = w.Workers()[0], w.Workers()[1]
	w.ok(a, "network", "create", "sealed", "--encrypted", "--ipv6")
	ea := w.attach(a, "a", "sealed")
	eb = w.attach(b, "b", "sealed")
	w.reaches(a, "a", eb)
	w.reaches(b, "b", ea)
	return w, a, b, eb
}

// Workloads of an encrypted network reach each other over both families, and go on while both
// nodes replace their keys, with or without managers.
func TestKeysAreReplacedUnderTraffic(t *testing.T) {
	w, a, b, eb := sealed(t, cluster.Config{Managers: 1, Workers: 2})
	keys := w.keys(a) + w.keys(b)
	done, done6 := w.stream(a, "a", eb.IPv4.Addr()), w.stream(a, "a", eb.IPv6.Addr())
	if err := w.Host(1).KillDaemon(); err != nil {
		t.Fatal(err)
	}
	rotated := make(chan error, 2)
	for _, h := range []*lab.Host{a, b} {
		go func() { rotated <- h.Run(t.Context(), "heddle", "key", "rotate") }()
	}
	if err := errors.Join(<-rotated, <-rotated); err != nil {
		t.Error(err)
	}
	done()
	done6()
	// A node is done when it has a new key; its peers hear of that after.
	w.soon(time.Second, "no old key is in use", func(context.Context) error {
		for _, k := range strings.Fields(w.keys(a) + w.keys(b)) {
			if strings.Contains(keys, k) {
				return fmt.Errorf("key %s is", k)
			}
		}
		return nil
	})
	w.reaches(a, "a", eb)
}

// keys are the public keys of a host's WireGuard devices' peers.
func (w world) keys(h *lab.Host) string {
	w.t.Helper()
	out, err := h.Output(w.t.Context(), in("heddle-wg", []string{"sh", "-c", "for d in heddle-wg0 heddle-wg1; do wg show $d peers; done"})...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// A node that is removed is no peer any more within ten seconds, also where no manager answers.
func TestARemovedNodeIsNoPeer(t *testing.T) {
	w, a, b, _ := sealed(t, cluster.Config{Managers: 1, Workers: 3})
	c := w.Workers()[2]
	w.attach(c, "c", "sealed")
	if n := len(strings.Fields(w.keys(a))); n != 4 {
		t.Fatalf("%d peers, want 2 on each of 2 devices", n)
	}
	if err := b.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	w.ok(w.Host(1), "node", "rm", "--force", b.Name())
	for _, h := range []*lab.Host{a, c} {
		w.soon(10*time.Second, "the removed node is no peer on "+h.Name(), func(context.Context) error {
			if n := len(strings.Fields(w.keys(h))); n != 2 {
				return fmt.Errorf("%d peers", n)
			}
			return nil
		})
	}
}

// Where encryption can't be had, an attach fails and says why; nothing is sent in clear text
// instead. When it can be had, it works.
func TestWithoutEncryptionThereIsNoAttach(t *testing.T) {
	t.Parallel() // most of it is waiting
	w, a, _, _ := sealed(t, cluster.Config{Managers: 1, Workers: 3})
	c := w.Workers()[2]
	w.ok(c, "network", "create", "plain")
	w.sh(c, "mount -t tmpfs none /dev/net")
	if err := c.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(w.ok(c, "node", "inspect", c.Name()), "kernel") {
		t.Skip("this kernel has WireGuard, which can't be taken from it")
	}
	w.attach(c, "p", "plain")
	w.refused(c, 1, []string{"WireGuard", "/dev/net/tun"}, "attach", "c", "--network", "sealed")
	if e := w.endpoint(c, "c"); e.Name != "" {
		t.Errorf("a failed attach leaves %+v", e)
	}
	w.sh(c, "umount /dev/net")
	w.soon(20*time.Second, "encryption is had again", func(ctx context.Context) error {
		_, err := w.Do(ctx, c, "attach", "c", "--network", "sealed")
		return err
	})
	w.soon(20*time.Second, "it reaches the others", func(context.Context) error {
		return w.ping(a, "a", w.endpoint(c, "c").IPv4.Addr())
	})
}
