//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
)

// endpoints measures a node beside one that has 10,000 endpoints: until all are in its kernel, and
// what one more costs then. The other has their records alone, since it takes long to make so many
// namespaces, and a bridge has no room for their links.
func (b *bench) endpoints(ctx context.Context) error {
	const network = "crowd"
	if _, err := b.everywhere(ctx, network, "10.192.0.0/16"); err != nil {
		return err
	}
	watchers, hangUp, err := b.watchAll(ctx, network) // before there are so many: it asks for the network with its endpoints
	if err != nil {
		return err
	}
	defer hangUp()
	at, on := b.c.Host(1), b.c.Host(2)
	macs, err := b.crowd(ctx, network, 10_000)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := on.StartDaemon(); err != nil {
		return err
	}
	last, err := watchers[at].wait(ctx, time.Minute, macs, nil)
	if err != nil {
		return err
	}
	b.add(figure{
		Name: "a node with 10,000 endpoints starts → all are programmed on another", Unit: "ms", Want: []want{atMost(most, 2000)},
		Note: "to the last of 40,000 entries in the kernel; each node checks 10,000 signatures, both on these cores",
	}, []float64{ms(last.Sub(begin))})
	b.add(figure{Name: "of it, first entry in the kernel → last", Unit: "ms"}, []float64{ms(last.Sub(watchers[at].first(begin)))})
	if err := b.oneMore(ctx, network, watchers[at], watchers[on]); err != nil {
		return err
	}
	rss, err := at.RSS()
	if err != nil {
		return err
	}
	b.add(figure{Name: "daemon RSS with 10,000 remote endpoints", Unit: "MiB", Want: []want{atMost(most, 100)}}, []float64{float64(rss) / (1 << 20)})
	return nil
}

// crowd lets the second host state endpoints that are nowhere, as soon as its daemon starts again,
// and returns their MACs.
func (b *bench) crowd(ctx context.Context, network string, n int) ([]string, error) {
	on := b.c.Host(2)
	bin, err := cluster.Bin()
	if err != nil {
		return nil, err
	}
	if err := on.StopDaemon(); err != nil {
		return nil, err
	}
	out, err := on.Output(ctx, filepath.Join(bin, "heddle-crowd"), "/var/lib/heddle", network, fmt.Sprint(n))
	return strings.Fields(out), err
}

// oneMore attaches and detaches an endpoint on the second host, again and again, among those that
// the first knows.
func (b *bench) oneMore(ctx context.Context, network string, watchAt, watchOn *watcher) error {
	at, on := b.c.Host(1), b.c.Host(2)
	before, err := at.CPU()
	if err != nil {
		return err
	}
	api := client(on)
	s, err := repeat(b.n, func(i int) (float64, error) {
		name := fmt.Sprintf("more-%d", i)
		e, err := api.attach(ctx, name, network)
		if err != nil {
			return 0, err
		}
		ms, err := spread(watchOn, watchAt, e.MAC)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		if err := api.detach(ctx, name); err != nil {
			return 0, err
		}
		_, err = watchAt.wait(ctx, 5*time.Second, nil, []string{e.MAC})
		return ms, err
	})
	after, cpuErr := at.CPU()
	if err := errors.Join(err, cpuErr); err != nil {
		return err
	}
	b.add(figure{Name: "one more stands on B → its entries stand at A, among 10,000", Unit: "ms"}, s)
	b.add(figure{
		Name: "CPU of a daemon per change of a remote endpoint, among 10,000", Unit: "ms", Want: []want{atMost(most, 10)},
		Note: fmt.Sprintf("the mean of %d changes", 2*len(s)),
	}, []float64{ms(after-before) / float64(2*len(s))})
	return nil
}
