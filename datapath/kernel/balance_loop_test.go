package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/balance"
	"github.com/heddle-net/heddle/datapath/netns"
)

// balanced is the kernel as the loop for service addresses takes it.
type balanced struct{ *Kernel }

func (b balanced) Open(ns datapath.NS) (balance.Rules, error) { return b.Balance(ns) }
func (b balanced) Forget(ns datapath.NS)                      { b.ForgetRules(ns) }
func (b balanced) Watch(ctx context.Context, changed func(datapath.NS, uint32, bool)) error {
	return b.WatchRules(ctx, changed)
}

func startBalance(t testing.TB, h *host) (l *balance.Loop, stop func()) {
	l = balance.New(balanced{h.Kernel}, balance.Config{}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := l.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return l, stop
}

// manyVIPs are services with backends, of one port and family each.
func manyVIPs(services, backends int) (all []*datapath.VIP) {
	for i := range services {
		all = append(all, oneOfMany(i, backends))
	}
	return all
}

func oneOfMany(i, backends int) *datapath.VIP {
	p := datapath.VIPPort{Proto: "tcp", Port: 80}
	for j := range backends {
		p.Backends = append(p.Backends, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(10 + j), byte(i >> 8), byte(i)}), 80))
	}
	return &datapath.VIP{Service: fmt.Sprintf("%05d", i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 9, 100 + byte(i>>8), byte(i)})}, Ports: []datapath.VIPPort{p}}
}

// A start adopts what stands; what others destroy is back within a second; nothing keeps a namespace
// of others alive; and what is not wanted any more goes.
func TestBalancersAreKept(t *testing.T) {
	s := newSegment(t, newHost(t), 3)
	s.serve(t, 1)
	s.serve(t, 2)
	all := []*datapath.VIP{newVIP(100, 1, 2), newVIP(101, 1)}
	wanted := []datapath.Balancer{{VIPs: all}, {NS: s.ns[0], VIPs: all}}
	l, stop := startBalance(t, s.host)
	l.Set(wanted)
	must(t, l.Wait(t.Context(), datapath.NS{}, s.ns[0]))
	if got, err := s.once(t, "tcp", seat(101, false), frontPort); err != nil || !strings.HasPrefix(got, "1 ") {
		t.Fatalf("%q, %v", got, err)
	}
	before := s.rules(t)
	stop()
	l, _ = startBalance(t, s.host)
	l.Set(wanted)
	must(t, l.Wait(t.Context(), datapath.NS{}, s.ns[0]))
	if now := s.rules(t); now != before {
		t.Errorf("a start has changed what was right:\n%s\n%s", before, now)
	}
	var took []time.Duration
	for _, damage := range []string{"flush ruleset", "flush chain inet heddle-services output", "delete element inet heddle-services vips4 { 10.9.0.101 }"} {
		for _, ns := range []datapath.NS{{Path: s.lab.Path("host")}, s.ns[0]} {
			run(t, ns.Path, "nft", damage)
			begin := time.Now()
			for !s.sound(t, ns, all) {
				if time.Since(begin) > 5*time.Second {
					t.Fatalf("%s: not repaired", damage)
				}
			}
			took = append(took, time.Since(begin))
		}
	}
	slices.Sort(took)
	if most := took[len(took)-1]; most > time.Second {
		t.Errorf("the slowest repair took %s", most)
	}
	f, err := netns.Open(s.ns[0].Path, 0)
	must(t, err)
	f.Close()
	l.Set([]datapath.Balancer{{NS: s.ns[0]}})
	must(t, l.Wait(t.Context(), s.ns[0]))
	for begin := time.Now(); strings.Contains(s.rules(t)+run(t, s.lab.Path("host"), "nft", "list", "ruleset"), balancerTable); {
		if time.Since(begin) > 5*time.Second {
			t.Fatal("something is left")
		}
	}
}

// sound says whether the VIPs, and nothing else, are in a namespace.
func (s *segment) sound(t testing.TB, ns datapath.NS, all []*datapath.VIP) bool {
	t.Helper()
	k := New(Config{Host: s.lab.Path("host"), Netns: s.dir})
	defer k.Close()
	b, err := k.Balance(ns)
	must(t, err)
	defer b.Close()
	st, err := b.Read(all)
	must(t, err)
	return st.Sound && len(datapath.ChangedVIPs(st.VIPs, all)) == 0
}

// The namespace of a workload ends with the workload, whatever was read and watched in it.
func TestBalancersKeepNothingAlive(t *testing.T) {
	s := newSegment(t, newHost(t), 2)
	l, _ := startBalance(t, s.host)
	l.Set([]datapath.Balancer{{NS: s.ns[1], VIPs: []*datapath.VIP{newVIP(100, 1)}}})
	must(t, l.Wait(t.Context(), s.ns[1]))
	must(t, s.lab.Remove("at1"))
	at := s.lab.Path("host")
	for begin := time.Now(); strings.Contains(ip(t, at, "link"), "p1@"); { // its peer goes with the namespace
		if time.Since(begin) > 5*time.Second {
			t.Fatal("the namespace is still there")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A change is in force in all workloads of a node within 50 ms, with a thousand services too.
func BenchmarkBalancers(b *testing.B) {
	workloads := 20
	for _, services := range []int{10, 1000} {
		b.Run(fmt.Sprint(services), func(b *testing.B) {
			if v := os.Getenv("WL"); v != "" {
				workloads, _ = strconv.Atoi(v)
			}
			s := newSegment(b, newHost(b), workloads)
			l, _ := startBalance(b, s.host)
			all := manyVIPs(services, 10)
			wanted := func() (out []datapath.Balancer) {
				for _, ns := range s.ns {
					out = append(out, datapath.Balancer{NS: ns, VIPs: all})
				}
				return out
			}
			begin := time.Now()
			l.Set(wanted())
			must(b, l.Wait(b.Context(), s.ns...))
			load := time.Since(begin)
			var took []time.Duration
			for b.Loop() {
				all = slices.Clone(all)
				all[services/2] = oneOfMany(services/2, 9+len(took)%2)
				begin := time.Now()
				l.Set(wanted())
				must(b, l.Wait(b.Context(), s.ns...))
				took = append(took, time.Since(begin))
			}
			slices.Sort(took)
			b.ReportMetric(float64(load.Milliseconds()), "load-ms")
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "change-p50-us")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "change-p99-us")
		})
	}
}
