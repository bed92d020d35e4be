//go:build linux

package e2e

import (
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

// within runs heddle on a host and takes the time.
func (w world) within(limit time.Duration, h *lab.Host, args ...string) (string, error) {
	w.t.Helper()
	begin := time.Now()
	out, err := w.Do(w.t.Context(), h, args...)
	if took := time.Since(begin); took > limit {
		w.t.Errorf("%s: %v took %s, more than %s", h.Name(), args, took, limit)
	}
	return out, err
}

// A /29 has five addresses for endpoints. They go to who needs them, whoever holds them.
func TestTheLastAddressOfASmallSubnet(t *testing.T) {
	w := start(t, cluster.Config{Managers: 1, Workers: 3})
	m, a, b, c := w.Host(1), w.Host(2), w.Host(3), w.Host(4)
	w.ok(m, "network", "create", "small", "--subnet", "10.50.0.0/29")
	ok := func(h *lab.Host, args ...string) {
		t.Helper()
		if _, err := w.within(time.Second, h, args...); err != nil {
			t.Fatal(err)
		}
	}
	attach := func(h *lab.Host, name string) { t.Helper(); ok(h, "attach", name, "--network", "small") }
	attach(a, "a1") // each may take a reserve
	attach(b, "b1")
	attach(c, "c1")
	attach(a, "a2")
	attach(b, "b2")
	_, err := w.within(2*time.Second, c, "attach", "c2", "--network", "small")
	w.isRefusal(err, 1, []string{"no IPv4 address left"})
	_, err = w.within(2*time.Second, m, "attach", "m1", "--network", "small", "--ip", w.endpoint(a, "a1").IPv4.Addr().String())
	w.isRefusal(err, 1, []string{"in use by a1 on node n2"})

	ok(a, "detach", "a2") // idles with a
	attach(c, "c2")
	freed := w.endpoint(b, "b2").IPv4.Addr().String()
	ok(b, "detach", "b2")
	ok(m, "attach", "m1", "--network", "small", "--ip", freed)
	w.reaches(c, "c2", w.endpoint(m, "m1"))
	w.reaches(m, "m1", w.endpoint(c, "c2"))

	ok(b, "detach", "b1")
	if err := b.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	_, err = w.within(2*time.Second, a, "attach", "a3", "--network", "small")
	w.isRefusal(err, 1, []string{"n3", "does not answer", "heddle node rm n3"})
	if err := b.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	attach(a, "a3")
	w.reaches(c, "c1", w.endpoint(a, "a3"))
	if out := w.ok(m, "network", "ls", "--format", "{{range .IPAM.Config}}{{.InUse}} {{.Leased}} {{.Addresses}}{{end}}"); out != "5 5 5" {
		t.Errorf("in use, leased and usable are %q", out)
	}
}
