//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
)

// first measures the first attach of a network on a node, which takes a lease.
func (b *bench) first(ctx context.Context) error {
	other, h := client(b.c.Host(4)), client(b.c.Host(5))
	name := func(i int) string { return fmt.Sprintf("first-%d", i) }
	s, err := repeat(max(5, b.n/5), func(i int) (float64, error) {
		if err := other.createNetwork(ctx, name(i)); err != nil {
			return 0, err
		}
		if _, err := other.attach(ctx, "other", name(i)); err != nil {
			return 0, err
		}
		ms, err := timed(func() error { _, err := h.attach(ctx, "first", name(i)); return err })
		if err != nil {
			return 0, err
		}
		return ms, errors.Join(other.detach(ctx, "other"), h.detach(ctx, "first"))
	})
	if err != nil {
		return err
	}
	b.add(figure{Name: "attach, first of the network on a node", Unit: "ms", Want: []want{atMost(median, 40)}, Swarm: "710*"}, s)
	for i := range s {
		if err := b.remove(ctx, name(i)); err != nil {
			return err
		}
	}
	return nil
}

// remove takes a network without endpoints away, and waits until no kernel has anything of it.
// Else it would linger there, and the attaches of later steps meet it.
func (b *bench) remove(ctx context.Context, net string) error {
	var rows []cluster.Network
	if err := client(b.c.Host(1)).get(ctx, "/v1/networks", &rows); err != nil {
		return err
	}
	i := slices.IndexFunc(rows, func(n cluster.Network) bool { return n.Name == net })
	if i < 0 {
		return fmt.Errorf("network %s is not listed", net)
	}
	if err := client(b.c.Host(1)).removeNetwork(ctx, net); err != nil {
		return err
	}
	ns := "/run/netns/heddle-" + rows[i].ID[:12] // rows name it only where a workload is
	return cluster.Eventually(ctx, 20*time.Second, func(context.Context) error {
		for _, h := range b.c.Hosts() {
			if _, err := os.Stat(h.Path(ns)); err == nil {
				return fmt.Errorf("%s still has network %s in its kernel", h.Name(), net)
			}
		}
		return nil
	})
}

// everywhere makes a network with one endpoint on each host. The function that it returns
// detaches them and removes it.
func (b *bench) everywhere(ctx context.Context, net string, subnets ...string) (func() error, error) {
	if err := client(b.c.Host(1)).createNetwork(ctx, net, subnets...); err != nil {
		return nil, err
	}
	for _, h := range b.c.Hosts() {
		if _, err := client(h).attach(ctx, net+"-"+h.Name(), net); err != nil {
			return nil, err
		}
	}
	return func() error {
		for _, h := range b.c.Hosts() {
			if err := client(h).detach(ctx, net+"-"+h.Name()); err != nil {
				return err
			}
		}
		return b.remove(ctx, net)
	}, nil
}

// warm measures attaches from a lease, told to five other participants; and, turn by turn, the
// same typed on the command line.
func (b *bench) warm(ctx context.Context) error {
	undo, err := b.everywhere(ctx, "warm")
	if err != nil {
		return err
	}
	host := b.c.Host(5)
	api := client(host)
	var atAPI, atCLI, more []float64
	for i := range b.n {
		name := fmt.Sprintf("warm-%d", i)
		for _, way := range []struct {
			attach  func() error
			samples *[]float64
		}{
			{func() error { _, err := api.attach(ctx, name, "warm"); return err }, &atAPI},
			{func() error { return host.Run(ctx, "heddle", "attach", name, "--network", "warm") }, &atCLI},
		} {
			ms, err := timed(way.attach)
			if err != nil {
				return err
			}
			*way.samples = append(*way.samples, ms)
			if err := api.detach(ctx, name); err != nil {
				return err
			}
		}
		more = append(more, atCLI[i]-atAPI[i])
	}
	b.add(figure{Name: "attach with a warm lease, 6 participants", Unit: "ms", Want: []want{atMost(median, 10), atMost(p99, 30)}, Swarm: "322*"}, atAPI)
	b.add(figure{
		Name: "the command line's own cost of an attach", Unit: "ms",
		Note: "starting the program in the host included; pairs of `heddle attach` and an attach at the API",
	}, more)
	return undo()
}

// convergence measures from the endpoint's last forwarding entry on its own node to the
// last of its entries on another.
func (b *bench) convergence(ctx context.Context) error {
	undo, err := b.everywhere(ctx, "conv")
	if err != nil {
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
	b.add(figure{
		Name: "endpoint stands on B → its entries stand at A, 6 hosts", Unit: "ms",
		Want: []want{atMost(median, 3), atMost(p99, 20)}, Swarm: "103, max 196*",
	}, s)
	return errors.Join(err, undo())
}
