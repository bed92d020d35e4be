//go:build linux

// Command bench prints heddle's figures: attach, convergence, loss of the leader, memory. It
// runs the built program on hosts in namespaces with their state on a real disk, whose
// fdatasync time it prints beside.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

func main() {
	lab.Main()
	n := flag.Int("n", 100, "samples of each figure; a fifth of it for first attaches, a twentieth for leaders")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, *n)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// figure is one row: quantiles of its samples and what they must not exceed (0 is no limit).
type figure struct {
	Name    string  `json:"name"`
	Unit    string  `json:"unit"`
	Samples int     `json:"samples"`
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99"`
	Max     float64 `json:"max"`
	Want50  float64 `json:"want50,omitempty"`
	Want99  float64 `json:"want99,omitempty"`
}

func newFigure(name, unit string, want50, want99 float64, samples []float64) figure {
	slices.Sort(samples)
	q := func(p float64) float64 {
		if len(samples) == 0 {
			return 0
		}
		return samples[min(len(samples)-1, int(p*float64(len(samples))))]
	}
	return figure{name, unit, len(samples), q(0.5), q(0.99), q(1), want50, want99}
}

type bench struct {
	c       *cluster.Cluster
	n       int
	figures []figure
}

func run(ctx context.Context, n int) (err error) {
	c, err := cluster.New(ctx, "bench", cluster.Config{Managers: 3, Workers: 3})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	b := &bench{c: c, n: n}
	for _, step := range []func(context.Context) error{b.disk, b.idle, b.create, b.first, b.warm, b.convergence, b.memory, b.leader} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return b.print()
}

func (b *bench) print() error {
	fmt.Printf("%d hosts in namespaces on %d cores\n\n%-52s %5s %9s %9s %9s   %s\n", len(b.c.Hosts()), runtime.NumCPU(), "", "n", "p50", "p99", "max", "wanted")
	for _, f := range b.figures {
		want := ""
		for _, w := range []struct {
			label    string
			got, max float64
		}{{"p50", f.P50, f.Want50}, {"p99", f.P99, f.Want99}} {
			if w.max > 0 {
				verdict := "met"
				if w.got > w.max {
					verdict = "MISSED"
				}
				want += fmt.Sprintf("%s ≤ %g %s %s  ", w.label, w.max, f.Unit, verdict)
			}
		}
		fmt.Printf("%-52s %5d %9.2f %9.2f %9.2f   %s\n", f.Name+", "+f.Unit, f.Samples, f.P50, f.P99, f.Max, want)
	}
	fmt.Println()
	return json.NewEncoder(os.Stdout).Encode(struct {
		Cores   int      `json:"cores"`
		Figures []figure `json:"figures"`
	}{runtime.NumCPU(), b.figures})
}

func (b *bench) add(f figure) { b.figures = append(b.figures, f) }

// timed is how many milliseconds a step takes.
func timed(step func() error) (float64, error) {
	begin := time.Now()
	err := step()
	return float64(time.Since(begin).Microseconds()) / 1000, err
}

// repeat takes samples of a step, whose argument counts from 0.
func repeat(n int, step func(i int) (float64, error)) ([]float64, error) {
	var out []float64
	for i := range n {
		v, err := step(i)
		if err != nil {
			return out, err
		}
		out = append(out, v)
	}
	return out, nil
}

// disk measures what each durable write costs here.
func (b *bench) disk(context.Context) error {
	f, err := os.Create(filepath.Join(b.c.Dir(), "fdatasync"))
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 4096)
	s, err := repeat(b.n, func(int) (float64, error) {
		if _, err := f.Write(block); err != nil {
			return 0, err
		}
		return timed(func() error { return unix.Fdatasync(int(f.Fd())) })
	})
	b.add(newFigure("fdatasync of the disk", "ms", 0, 0, s))
	return err
}

func (b *bench) rss(name string, want float64) error {
	var s []float64
	for _, h := range b.c.Hosts() {
		n, err := h.RSS()
		if err != nil {
			return err
		}
		s = append(s, float64(n)/(1<<20))
	}
	b.add(newFigure(name, "MiB", 0, want, s))
	return nil
}

func (b *bench) idle(context.Context) error { return b.rss("daemon RSS, idle, all hosts", 45) }

func (b *bench) create(ctx context.Context) error {
	api := client(b.c.Host(1))
	s, err := repeat(b.n, func(i int) (float64, error) {
		return timed(func() error { return api.createNetwork(ctx, fmt.Sprintf("create-%d", i)) })
	})
	if err != nil {
		return err
	}
	b.add(newFigure("network create", "ms", 5, 0, s))
	for i := range s {
		if err := api.removeNetwork(ctx, fmt.Sprintf("create-%d", i)); err != nil {
			return err
		}
	}
	return nil
}

// first measures the first attach of a network on a node, which takes a lease.
func (b *bench) first(ctx context.Context) error {
	other, h := client(b.c.Host(4)), client(b.c.Host(5))
	s, err := repeat(max(5, b.n/5), func(i int) (ms float64, err error) {
		net := fmt.Sprintf("first-%d", i)
		if err := other.createNetwork(ctx, net); err != nil {
			return 0, err
		}
		if _, err := other.attach(ctx, "other", net); err != nil {
			return 0, err
		}
		ms, err = timed(func() error { _, err := h.attach(ctx, "first", net); return err })
		if err != nil {
			return 0, err
		}
		return ms, errors.Join(other.detach(ctx, "other"), h.detach(ctx, "first"))
	})
	b.add(newFigure("attach, first of the network on a node", "ms", 40, 0, s))
	return err
}

// everywhere makes a network with one endpoint on each host.
func (b *bench) everywhere(ctx context.Context, net string) error {
	if err := client(b.c.Host(1)).createNetwork(ctx, net); err != nil {
		return err
	}
	for _, h := range b.c.Hosts() {
		if _, err := client(h).attach(ctx, net+"-"+h.Name(), net); err != nil {
			return err
		}
	}
	return nil
}

// warm measures attaches from a lease, told to five other participants.
func (b *bench) warm(ctx context.Context) error {
	if err := b.everywhere(ctx, "warm"); err != nil {
		return err
	}
	h := client(b.c.Host(5))
	s, err := repeat(b.n, func(i int) (float64, error) {
		name := fmt.Sprintf("warm-%d", i)
		ms, err := timed(func() error { _, err := h.attach(ctx, name, "warm"); return err })
		if err != nil {
			return 0, err
		}
		return ms, h.detach(ctx, name)
	})
	b.add(newFigure("attach with a warm lease, 6 participants", "ms", 10, 30, s))
	return err
}

// convergence measures from the endpoint's last forwarding entry on its own node to the
// last of its entries on another.
func (b *bench) convergence(ctx context.Context) error {
	if err := b.everywhere(ctx, "conv"); err != nil {
		return err
	}
	at, on := b.c.Host(6), b.c.Host(5)
	watchAt, err := watch(ctx, b.c, at, "conv")
	if err != nil {
		return err
	}
	defer watchAt.close()
	watchOn, err := watch(ctx, b.c, on, "conv")
	if err != nil {
		return err
	}
	defer watchOn.close()
	api := client(on)
	s, err := repeat(b.n, func(i int) (float64, error) {
		name := fmt.Sprintf("conv-%d", i)
		e, err := api.attach(ctx, name, "conv")
		if err != nil {
			return 0, err
		}
		ms, err := spread(watchOn, watchAt, e.MAC)
		if err != nil {
			return 0, fmt.Errorf("convergence of %s: %w", name, err)
		}
		return ms, api.detach(ctx, name)
	})
	b.add(newFigure("endpoint stands on B → its entries stand at A", "ms", 3, 20, s))
	return err
}

// memory fills up to 50 endpoints in the cluster.
func (b *bench) memory(ctx context.Context) error {
	hosts := b.c.Hosts()
	for i := range 50 - 2*len(hosts) { // warm and conv have one on each host
		h := hosts[i%len(hosts)]
		if _, err := client(h).attach(ctx, fmt.Sprintf("mem-%d", i), "warm"); err != nil {
			return err
		}
	}
	return b.rss("daemon RSS, 50 endpoints in the cluster, all hosts", 50)
}

// leader measures from the leader's end to the next accepted write.
func (b *bench) leader(ctx context.Context) error {
	ask := b.c.Host(5)
	api := client(ask)
	s, err := repeat(max(3, b.n/20), func(i int) (float64, error) {
		leader, err := b.c.Leader(ctx, ask)
		if err != nil {
			return 0, err
		}
		if err := leader.KillDaemon(); err != nil {
			return 0, err
		}
		ms, err := timed(func() error {
			return cluster.Eventually(ctx, 30*time.Second, func(ctx context.Context) error {
				return api.createNetwork(ctx, fmt.Sprintf("leader-%d", i))
			})
		})
		if err != nil {
			return 0, err
		}
		if err := leader.StartDaemon(); err != nil {
			return 0, err
		}
		return ms, cluster.Eventually(ctx, 20*time.Second, func(ctx context.Context) error { return b.allFollow(ctx, ask) })
	})
	b.add(newFigure("leader killed → next write accepted", "ms", 0, 3000, s))
	return err
}

// allFollow is an error unless three managers are reachable.
func (b *bench) allFollow(ctx context.Context, ask *lab.Host) error {
	var rows []cluster.Node
	if err := b.c.JSON(ctx, ask, &rows, "node", "ls", "--format", "json"); err != nil {
		return err
	}
	well := 0
	for _, r := range rows {
		if r.ManagerStatus == "Leader" || r.ManagerStatus == "Reachable" {
			well++
		}
	}
	if well != 3 {
		return fmt.Errorf("%d managers are well", well)
	}
	return nil
}
