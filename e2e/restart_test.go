//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/oracle"
)

// networkKind is a way in which a network may carry its frames.
type networkKind struct {
	name         string
	flags        []string // of its making
	over4, over6 int      // bytes that it adds to a packet, over an underlay of either family
	rate         string   // of a stream of TCP that it carries beside others, where processes encrypt, too

	// every is how often an echo is asked for. The kernel does not answer while what its socket for
	// ICMP may hold, some 60 to 160 answers, is still under way on the host (IcmpOutErrors counts
	// it), and a process that encrypts may wait for a processor for a quarter of a second.
	every time.Duration
}

var networkKinds = []networkKind{
	{"plain", nil, 50, 70, "100M", time.Millisecond},
	{"encrypted", []string{"--encrypted"}, 130, 150, "20M", 10 * time.Millisecond},
}

// A daemon that is killed and started again adopts what stands. No packet is lost, and nothing at
// all happens in the kernel: its monitors are silent.
func TestRestartsAreNotNoticed(t *testing.T) {
	w := start(t, cluster.Config{Managers: 1, Workers: 3})
	m, a, b, c := w.Host(1), w.Host(2), w.Host(3), w.Host(4)
	for _, k := range networkKinds {
		w.ok(m, append([]string{"network", "create", k.name, "--ipv6"}, k.flags...)...)
		for _, h := range []*lab.Host{a, b, c} {
			w.attach(h, k.name, k.name)
		}
	}
	for _, h := range []*lab.Host{a, b} {
		w.soon(5*time.Second, "the host's own addresses are settled", func(ctx context.Context) error {
			return h.Run(ctx, "sh", "-c", "! ip -6 addr show tentative | grep .")
		})
	}
	restarts, away := 10, 3*time.Second
	if *rounds > 1 { // make soak
		restarts, away = 5**rounds, 10*time.Minute
	}
	restart := func(n int) {
		t.Helper()
		for range n {
			for _, h := range []*lab.Host{a, b} {
				w.restartDaemon(h)
			}
		}
	}
	for _, tc := range []struct {
		name string
		do   func(w world) (news []string) // words of which one is in each line that may be heard
	}{
		{"killed and started", func(world) []string { restart(restarts); return nil }},
		{"beside others that come and go", func(w world) []string {
			end := w.comeAndGo(c, networkKinds[0].name)
			restart(max(3, restarts/5))
			return end()
		}},
		{"away", func(w world) []string {
			if err := b.KillDaemon(); err != nil {
				w.t.Fatal(err)
			}
			<-time.After(away) // the time without a daemon
			if err := b.StartDaemon(); err != nil {
				w.t.Fatal(err)
			}
			w.isBack(b)
			return nil
		}},
		{"without managers", func(w world) []string {
			if err := m.KillDaemon(); err != nil {
				w.t.Fatal(err)
			}
			restart(max(3, restarts/5))
			if err := m.StartDaemon(); err != nil {
				w.t.Fatal(err)
			}
			return nil
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := w
			w.t = t
			before := w.links(a) + w.links(b)
			var ends []func()
			for _, k := range networkKinds {
				e := w.endpoint(b, k.name)
				ends = append(ends, w.flow(a, k.name, b, e, k.rate), w.streamBy(a, k.every, addrs(e), func(args []string) []string { return in(k.name, args) }))
			}
			quiet := []*oracle.Monitor{w.listen(a), w.listen(b)}
			news := tc.do(w)
			for _, end := range ends {
				end()
			}
			for _, q := range quiet {
				said := slices.DeleteFunc(q.Said(), func(line string) bool {
					return slices.ContainsFunc(news, func(word string) bool { return strings.Contains(line, word) })
				})
				if len(said) > 0 {
					t.Errorf("%d lines were said, such as\n%s", len(said), strings.Join(said[:min(len(said), 20)], "\n"))
				}
			}
			if after := w.links(a) + w.links(b); after != before {
				t.Errorf("the links are not the same ones:\nbefore\n%s\nafter\n%s", before, after)
			}
			w.hears(quiet)
		})
	}
}

// comeAndGo attaches and detaches a workload on a host, over and over, until the function that it
// returns is called, which tells the addresses that the workload had.
func (w world) comeAndGo(h *lab.Host, network string) func() []string {
	var had []string
	var err error
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for err == nil {
			var rows []cluster.Endpoint
			if _, err = w.Do(w.t.Context(), h, "attach", "visitor", "--network", network); err == nil {
				err = w.JSON(w.t.Context(), h, &rows, "endpoint", "ls", "--local", "--filter", "name=visitor", "--format", "json")
			}
			for _, e := range rows {
				had = append(had, e.MAC, e.IPv4.Addr().String()+" ", e.IPv6.Addr().String()+" ")
			}
			if err == nil {
				_, err = w.Do(w.t.Context(), h, "detach", "visitor")
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	return func() []string {
		w.t.Helper()
		close(stop)
		<-done
		if err != nil || len(had) < 6 {
			w.t.Errorf("visitors had %v: %v", had, err)
		}
		return had
	}
}

// restartDaemon kills a host's daemon, starts it again and waits until it is back.
func (w world) restartDaemon(h *lab.Host) {
	w.t.Helper()
	if err := h.KillDaemon(); err != nil {
		w.t.Fatal(err)
	}
	if err := h.StartDaemon(); err != nil {
		w.t.Fatal(err)
	}
	w.isBack(h)
}

// isBack waits until a host has its endpoints, its peers and, where there is one, a manager.
func (w world) isBack(h *lab.Host) {
	w.t.Helper()
	w.soon(5*time.Second, h.Name()+" is back", func(ctx context.Context) error {
		var s cluster.Status
		if err := w.JSON(ctx, h, &s, "status", "--format", "json"); err != nil {
			return err
		}
		for _, e := range s.Endpoints {
			if e.State != "ready" {
				return fmt.Errorf("%s is %s", e.Name, e.State)
			}
		}
		for _, p := range s.Peers {
			if p.State != "alive" && p.Name != "n1" {
				return fmt.Errorf("%s is %s", p.Name, p.State)
			}
		}
		if w.Host(1).Daemon() != nil && !s.Managers[0].Following {
			return errors.New("it follows no manager")
		}
		return nil
	})
}

// listen starts monitors on a host, which end with the test.
func (w world) listen(h *lab.Host) *oracle.Monitor {
	w.t.Helper()
	m, err := oracle.Listen(w.t.Context(), h)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { m.End(context.Background()) })
	return m
}

// flow sends a stream of TCP by iperf3 from a workload to another. The function that it returns
// ends it and fails the test when a segment was lost, or none was sent for a second.
func (w world) flow(from *lab.Host, workload string, to *lab.Host, e cluster.Endpoint, rate string) func() {
	w.t.Helper()
	server, err := to.Start(lab.Command{Args: in(e.Name, []string{"iperf3", "-s", "-1"})})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = server.Kill() })
	w.soon(5*time.Second, "iperf3 listens", func(ctx context.Context) error {
		return to.Run(ctx, in(e.Name, []string{"sh", "-c", "ss -Hltn | grep -q :5201"})...)
	})
	said, err := os.CreateTemp(w.t.TempDir(), "iperf")
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := from.Start(lab.Command{Args: in(workload, []string{"iperf3", "-c", e.IPv4.Addr().String(), "-b", rate, "-t", "3600", "-J"}), Stdout: said, Stderr: said})
	if err != nil {
		w.t.Fatal(err)
	}
	return func() {
		w.t.Helper()
		_ = p.Signal(syscall.SIGSTOP)
		w.arrived(from, workload, to, e.Name)
		_ = p.Signal(syscall.SIGINT)
		_ = p.Signal(syscall.SIGCONT)
		_ = p.Wait(w.t.Context()) // by a signal it ends with an error
		b, err := os.ReadFile(said.Name())
		if err != nil {
			w.t.Fatal(err)
		}
		var r struct {
			Intervals []struct {
				Sum struct {
					Start, Seconds float64
					Bytes          int64
				}
			}
		}
		if err := json.Unmarshal(b, &r); err != nil || len(r.Intervals) == 0 {
			w.t.Errorf("iperf3 said %q: %v", b, err)
		}
		var bytes int64
		for _, i := range r.Intervals {
			bytes += i.Sum.Bytes
			if i.Sum.Bytes == 0 && i.Sum.Seconds > 0.5 {
				w.t.Errorf("%.1f s after its start the stream stands still for %.1f s", i.Sum.Start, i.Sum.Seconds)
			}
		}
		w.t.Logf("%s: a TCP stream of %d MB in %d s", workload, bytes>>20, len(r.Intervals))
	}
}

// arrived waits until a workload has all segments with data that another has sent it by TCP, those
// that were sent twice included: the kernel counts them at both ends of a connection. Counts of
// what was sent again tell nothing, since where processors are short an answer comes too late for
// the sender's patience. The sender must be at rest.
func (w world) arrived(from *lab.Host, sender string, to *lab.Host, receiver string) {
	w.t.Helper()
	w.soon(5*time.Second, "all segments from "+sender+" have arrived", func(ctx context.Context) error {
		sent, err := segments(ctx, from, sender, "dst", "data_segs_out:")
		if err != nil {
			return err
		}
		got, err := segments(ctx, to, receiver, "src", "data_segs_in:")
		if err == nil && (got != sent || sent == 0) {
			err = fmt.Errorf("%d of %d have", got, sent)
		}
		return err
	})
}

// segments sums up a count over the connections of iperf3 in a workload.
func segments(ctx context.Context, h *lab.Host, workload, side, count string) (sum int, err error) {
	out, err := h.Output(ctx, in(workload, []string{"ss", "-Htin", "state", "established", side, ":5201"})...)
	if err != nil {
		return 0, err
	}
	for field := range strings.FieldsSeq(out) {
		if number, ok := strings.CutPrefix(field, count); ok {
			n, err := strconv.Atoi(number)
			if err != nil {
				return 0, err
			}
			sum += n
		}
	}
	return sum, nil
}

// hears fails the test unless the monitors hear of a change in each namespace that they were in:
// else their silence means nothing.
func (w world) hears(all []*oracle.Monitor) {
	w.t.Helper()
	for _, m := range all {
		w.soon(5*time.Second, "the monitors are heard", func(ctx context.Context) error { return m.Provoke(ctx) })
	}
}
