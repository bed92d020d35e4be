//go:build linux

// Command bench measures heddle's figures: those that the design wants in its section 10. It
// runs the built program on hosts in namespaces with their state on a real disk, whose
// fdatasync time it prints beside.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

func main() {
	lab.Main()
	probe.Main()
	n := flag.Int("n", 100, "samples of a figure that is cheap to take; the others have fewer")
	pick := flag.String("run", "", "run only the steps whose name matches this regexp")
	list := flag.Bool("list", false, "list the steps and end")
	jsonFile := flag.String("json", "", "keep the figures in this file, beside those of other steps that it has of the same program and machine")
	page := flag.String("write", "", "write the figures into this page, between its markers")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := measure(ctx, *n, *pick, *list, *jsonFile, *page)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func measure(ctx context.Context, n int, pick string, list bool, jsonFile, page string) error {
	wanted, err := regexp.Compile(pick)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if list {
		for _, s := range stages() {
			for _, step := range s.steps {
				fmt.Println(step.name)
			}
		}
		return nil
	}
	r, err := newReport(ctx)
	if err != nil {
		return err
	}
	b := &bench{n: n}
	failed := b.run(ctx, wanted)
	r.Figures = b.figures // what there is, also after a failure
	if jsonFile != "" {
		if r, err = r.keep(jsonFile); err != nil {
			return errors.Join(failed, err)
		}
	}
	fmt.Println(r.table())
	if failed == nil && page != "" {
		failed = r.write(page)
	}
	return failed
}

// bench is a run. A step finds the cluster of its stage in it, and leaves it as it was but
// for what the steps before it do not need.
type bench struct {
	c       *cluster.Cluster // nil in a stage without hosts
	n       int
	step    string // under way
	figures []figure
}

// stage is steps on one cluster, which is made for them.
type stage struct {
	hosts cluster.Config // without managers the stage has no cluster
	steps []step
}

type step struct {
	name string
	run  func(*bench, context.Context) error
}

func stages() []stage {
	return []stage{
		{cluster.Config{Managers: 3, Workers: 3}, []step{
			{"disk", (*bench).disk},
			{"rss-idle", (*bench).idle},
			{"rss-50", (*bench).memory},
			{"create", (*bench).create},
			{"creates", (*bench).creates},
			{"attach-first", (*bench).first},
			{"attach-warm", (*bench).warm},
			{"convergence", (*bench).convergence},
			{"leader", (*bench).leader},
			{"restart", (*bench).restart},
			{"repair", (*bench).repair},
			{"cut", (*bench).cut},
		}},
		{cluster.Config{Managers: 3, Workers: 2, Spare: 1}, []step{
			{"join", (*bench).join},
		}},
		{cluster.Config{Managers: 3, Workers: 8}, []step{
			{"burst", (*bench).burst},
		}},
		{cluster.Config{Managers: 1, Workers: 1}, []step{
			{"names", (*bench).names},
			{"endpoints", (*bench).endpoints},
		}},
		{cluster.Config{Managers: 1, Workers: 1, Spare: 2}, []step{
			{"traffic", (*bench).traffic},
			{"locks", (*bench).locks},
		}},
		{cluster.Config{Managers: 1, Workers: 1}, []step{
			{"vip", (*bench).vip},
			{"changes", (*bench).changes},
			{"replace", (*bench).replace},
		}},
		{cluster.Config{Managers: 1, Workers: 1, Spare: 2}, []step{
			{"encrypted", (*bench).encrypted},
		}},
		{cluster.Config{}, []step{
			{"swarm", (*bench).swarm},
		}},
	}
}

func (b *bench) run(ctx context.Context, wanted *regexp.Regexp) error {
	for _, s := range stages() {
		var steps []step
		for _, step := range s.steps {
			if wanted.MatchString(step.name) {
				steps = append(steps, step)
			}
		}
		if len(steps) == 0 {
			continue
		}
		if err := b.stage(ctx, s.hosts, steps); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) stage(ctx context.Context, hosts cluster.Config, steps []step) (err error) {
	if hosts.Managers > 0 {
		if b.c, err = cluster.New(ctx, "bench", hosts); err != nil {
			return err
		}
		defer func() {
			err = errors.Join(err, b.c.Close())
			b.c = nil
		}()
	}
	for _, s := range steps {
		b.step = s.name
		begin := time.Now()
		if err := s.run(b, ctx); err != nil {
			b.logs()
			return fmt.Errorf("step %s: %w", s.name, err)
		}
		fmt.Fprintf(os.Stderr, "%-14s %s\n", s.name, time.Since(begin).Round(time.Second/10))
	}
	return nil
}

// logs prints how the daemons' logs end: the lab takes them away.
func (b *bench) logs() {
	if b.c == nil {
		return
	}
	for _, h := range b.c.Hosts() {
		lines := strings.SplitAfter(h.DaemonLog(), "\n")
		fmt.Fprintf(os.Stderr, "%s: the daemon's log ends:\n%s", h.Name(), strings.Join(lines[max(0, len(lines)-15):], ""))
	}
}

// add enters a figure whose samples were taken.
func (b *bench) add(f figure, samples []float64) {
	f.Step = b.step
	f.measure(samples)
	b.figures = append(b.figures, f)
}

// timed is how many milliseconds a step takes.
func timed(step func() error) (float64, error) {
	begin := time.Now()
	err := step()
	return ms(time.Since(begin)), err
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

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
