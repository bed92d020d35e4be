//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// What a workload forges is dropped and counted by kind on its own node; what it sends honestly is
// not, whichever way it came to its addresses.
func TestForgingWorkload(t *testing.T) {
	w := common(t)
	a, b := w.Host(4), w.Host(5)
	net, second := w.network(a, "--subnet", "10.31.0.0/24", "--subnet", "fd00:31::/64"), w.network(a, "--ipv6")
	forger := w.attach(a, "forger", net)
	beside, far := w.attach(a, "beside", net), w.attach(b, "far", net)
	w.ok(a, "attach", "forger", "--network", second)
	everybody := func() {
		t.Helper()
		w.reaches(a, "forger", beside)
		w.reaches(a, "forger", far)
		w.reaches(a, "beside", forger)
		w.reaches(b, "far", forger)
	}
	everybody()
	w.sh(a, "ip -n forger link set eth0 down && ip -n forger addr del "+forger.IPv6.String()+" dev eth0 2>/dev/null; ip -n forger link set eth0 up")
	w.soon(5*time.Second, "repaired", func(context.Context) (err error) {
		for _, ip := range addrs(forger) {
			err = errors.Join(err, w.ping(b, "far", ip))
		}
		return err
	})
	everybody() // also after it has looked for duplicates of its link-local address
	for _, h := range []*lab.Host{a, b} {
		if got := w.forged(h); len(got) > 0 {
			t.Fatalf("%s counts honest frames as forged: %v", h.Name(), got)
		}
	}

	station := func(e cluster.Endpoint) string {
		return fmt.Sprintf("%s,%s,%s", e.MAC, e.IPv4.Addr(), e.IPv6.Addr())
	}
	out, err := a.Output(t.Context(), in("forger", probe.Args("spoof", "-me", station(forger), "-other", station(beside),
		"-gateway", "02:68:65:64:00:01,10.31.0.1,fd00:31::1"))...)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]uint64{}
	if err := json.Unmarshal([]byte(out), &want); err != nil {
		t.Fatal(err)
	}
	delete(want, "") // the honest ones
	if len(want) < 8 {
		t.Errorf("only the kinds %v were forged", want)
	}
	if got := w.forged(a); !maps.Equal(got, want) {
		t.Errorf("counted as forged are %v, want %v", got, want)
	}
	everybody()
}

// forged are the host's counters of what its workloads have forged, by kind.
func (w world) forged(h *lab.Host) map[string]uint64 {
	w.t.Helper()
	var s cluster.Status
	w.decode(h, &s, "status", "--format", "json")
	out := map[string]uint64{}
	for name, n := range s.Counters {
		if _, kind, is := strings.Cut(name, "forged by "); is {
			out[kind[strings.LastIndexByte(kind, '(')+1:len(kind)-1]] += n
		}
	}
	return out
}
