//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// leader measures from the leader's end to the next accepted write.
func (b *bench) leader(ctx context.Context) error {
	ask := b.c.Host(5)
	api := client(ask)
	s, err := repeat(max(3, b.n/5), func(i int) (float64, error) {
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
	b.add(figure{Name: "leader killed → next write accepted", Unit: "ms", Want: []want{atMost(p99, 3000)}, Swarm: "10,700 / 13,600 / 17,600*"}, s)
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

// restart kills a worker's daemon and starts it again, as a supervisor would, while echo requests of both families go
// to a workload there every millisecond.
func (b *bench) restart(ctx context.Context) error {
	undo, err := b.everywhere(ctx, "restart")
	if err != nil {
		return err
	}
	from, on := b.c.Host(4), b.c.Host(5)
	api := client(on)
	name := "restart-" + on.Name()
	e, err := endpoint(ctx, api, name)
	if err != nil {
		return err
	}
	var streams []*stream
	for _, to := range []string{e.IPv4.Addr().String(), e.IPv6.Addr().String()} {
		s, err := startStream(from, "restart-"+from.Name(), to)
		if err != nil {
			return err
		}
		defer s.out.Close()
		streams = append(streams, s)
	}
	s, err := repeat(b.n, func(int) (float64, error) {
		if err := pause(ctx, time.After(200*time.Millisecond)); err != nil { // let the last start have its effect
			return 0, err
		}
		if err := on.KillDaemon(); err != nil {
			return 0, err
		}
		if err := pause(ctx, time.After(100*time.Millisecond)); err != nil {
			return 0, err
		}
		return timed(func() error {
			if err := on.StartDaemon(); err != nil {
				return err
			}
			return cluster.Eventually(ctx, 10*time.Second, func(ctx context.Context) error {
				e, err := endpoint(ctx, api, name)
				if err == nil && e.State != "ready" {
					err = fmt.Errorf("%s is %s", name, e.State)
				}
				return err
			})
		})
	})
	if err != nil {
		return err
	}
	var lost []float64
	all := 0
	for _, s := range streams {
		sent, answered, err := s.end(ctx)
		if err != nil {
			return err
		}
		lost = append(lost, float64(sent-answered))
		all += sent
	}
	b.add(figure{
		Name: fmt.Sprintf("packets lost, daemon killed and started again %d times", b.n), Unit: "packets of a stream",
		Want: []want{atMost(most, 0)}, Swarm: "for 26 s, or for ever*",
		Note: fmt.Sprintf("started 100 ms after the kill; echo requests every millisecond, one stream of each family, %d requests", all),
	}, lost)
	b.add(figure{Name: "daemon's start → its endpoint listed as ready", Unit: "ms"}, s)
	return undo()
}

func endpoint(ctx context.Context, a *api, name string) (cluster.Endpoint, error) {
	var rows []cluster.Endpoint
	if err := a.get(ctx, "/v1/endpoints?local=1", &rows); err != nil {
		return cluster.Endpoint{}, err
	}
	for _, r := range rows {
		if r.Name == name {
			return r, nil
		}
	}
	return cluster.Endpoint{}, fmt.Errorf("%s is not listed", name)
}

// stream is echo requests from a workload.
type stream struct {
	p   *lab.Process
	out *os.File
}

func startStream(h *lab.Host, workload, to string) (*stream, error) {
	out, err := os.CreateTemp("", "heddle-bench")
	if err != nil {
		return nil, err
	}
	os.Remove(out.Name())
	args := append([]string{"ip", "netns", "exec", workload}, probe.Args("ping", "-c", "0", "-i", "1ms", to)...)
	p, err := h.Start(lab.Command{Args: args, Stdout: out, Stderr: out})
	if err != nil {
		out.Close()
		return nil, err
	}
	return &stream{p, out}, nil
}

// end stops the stream and says how many requests were sent and answered.
func (s *stream) end(ctx context.Context) (sent, answered int, err error) {
	if err := s.p.Signal(unix.SIGINT); err != nil {
		return 0, 0, err
	}
	err = s.p.Wait(ctx)
	if _, lossy := errors.AsType[*lab.ExitError](err); err != nil && !lossy {
		return 0, 0, err
	}
	said := make([]byte, 1024)
	n, _ := s.out.ReadAt(said, 0)
	if _, err := fmt.Sscanf(string(said[:n]), "sent %d, answered %d", &sent, &answered); err != nil {
		return 0, 0, fmt.Errorf("the stream said %q: %w", said[:n], err)
	}
	return sent, answered, nil
}

// cut cuts a worker off for a minute, in which endpoints come and go on both sides.
func (b *bench) cut(ctx context.Context) error {
	undo, err := b.everywhere(ctx, "cut")
	if err != nil {
		return err
	}
	watchers, hangUp, err := b.watchAll(ctx, "cut")
	if err != nil {
		return err
	}
	defer hangUp()
	other, off := b.c.Host(4), b.c.Host(5)
	there, here := client(other), client(off)
	s, err := repeat(max(1, b.n/33), func(i int) (float64, error) {
		name := func(what string) string { return fmt.Sprintf("cut-%s-%d", what, i) }
		old, err := there.attach(ctx, name("old"), "cut")
		if err != nil {
			return 0, err
		}
		if err := b.c.Partition([]*lab.Host{off}, b.others(off)); err != nil {
			return 0, err
		}
		end := time.After(time.Minute)
		if err := pause(ctx, time.After(30*time.Second)); err != nil {
			return 0, err
		}
		newThere, err1 := there.attach(ctx, name("there"), "cut")
		newHere, err2 := here.attach(ctx, name("here"), "cut")
		if err := errors.Join(err1, err2, there.detach(ctx, name("old"))); err != nil {
			return 0, err
		}
		if err := pause(ctx, end); err != nil {
			return 0, err
		}
		healed := time.Now()
		if err := b.c.Heal(); err != nil {
			return 0, err
		}
		var last time.Time
		for h, w := range watchers {
			came, went := []string{newHere.MAC}, []string(nil)
			if h == off {
				came, went = []string{newThere.MAC}, []string{old.MAC}
			}
			at, err := w.wait(ctx, 10*time.Second, came, went)
			if err != nil {
				return 0, fmt.Errorf("%s, after the healing: %w", h.Name(), err)
			}
			if at.After(last) {
				last = at
			}
		}
		return ms(last.Sub(healed)), errors.Join(there.detach(ctx, name("there")), here.detach(ctx, name("here")))
	})
	if err != nil {
		return err
	}
	b.add(figure{
		Name: "worker cut off 60 s, healed → changes of both sides known", Unit: "ms", Want: []want{atMost(most, 1000)}, Swarm: "1,000 to 1,400*",
		Note: "one endpoint came on each side, one went; the last entry in the last of six kernels",
	}, s)
	return undo()
}

func pause(ctx context.Context, end <-chan time.Time) error {
	select {
	case <-end:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// others are all hosts but one.
func (b *bench) others(h *lab.Host) (out []*lab.Host) {
	for _, o := range b.c.Hosts() {
		if o != h {
			out = append(out, o)
		}
	}
	return out
}
