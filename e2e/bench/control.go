//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
)

// create measures one client that makes networks at a manager.
func (b *bench) create(ctx context.Context) error {
	api := client(b.c.Host(1))
	s, err := repeat(b.n, func(i int) (float64, error) {
		return timed(func() error { return api.createNetwork(ctx, fmt.Sprintf("create-%d", i)) })
	})
	if err != nil {
		return err
	}
	b.add(figure{Name: "network create", Unit: "ms", Want: []want{atMost(median, 5)}, Swarm: "6.2*"}, s)
	for i := range s {
		if err := api.removeNetwork(ctx, fmt.Sprintf("create-%d", i)); err != nil {
			return err
		}
	}
	return nil
}

// creates measures eight clients of one manager that make networks as fast as they are made.
func (b *bench) creates(ctx context.Context) error {
	clients, hangUp := programs(b.c.Host(1), 8)
	defer hangUp()
	s, err := repeat(max(5, b.n/20), func(int) (float64, error) {
		const each = 400
		name := func(i int) string { return fmt.Sprintf("many-%d", i) }
		took, err := timed(func() error {
			return share(clients, each, func(a *api, i int) error { return a.createNetwork(ctx, name(i)) })
		})
		if err != nil {
			return 0, err
		}
		return each / took * 1000, share(clients, each, func(a *api, i int) error { return a.removeNetwork(ctx, name(i)) })
	})
	b.add(figure{
		Name: "network creates with 8 clients", Unit: "1/s", Want: []want{atLeast(median, 1000)}, Swarm: "202*",
		Note: "at one manager's socket; a sample is 400 creates",
	}, s)
	return err
}

// join measures a worker that comes in, until it has joined by its own words and is ready by
// those of a manager.
func (b *bench) join(ctx context.Context) error {
	manager, spare := b.c.Host(1), b.c.Spare()[0]
	token, err := b.c.Do(ctx, manager, "token", "create", "worker", "-q")
	if err != nil {
		return err
	}
	ask, hangUp := programs(manager, 1)
	defer hangUp()
	newcomer := client(spare)
	var joined []float64
	s, err := repeat(max(10, b.n/2), func(int) (float64, error) {
		begin := time.Now()
		var reply struct {
			Node string `json:"node"`
		}
		err := newcomer.stream(ctx, "/v1/join", map[string]any{"managers": []string{manager.Addr().String()}, "token": token}, &reply)
		if err != nil {
			return 0, err
		}
		joined = append(joined, ms(time.Since(begin)))
		for ready := false; !ready; {
			if time.Since(begin) > 10*time.Second {
				return 0, fmt.Errorf("%s is not ready 10 s after it has joined", spare.Name())
			}
			var rows []cluster.Node
			if err := ask[0].get(ctx, "/v1/nodes", &rows); err != nil {
				return 0, err
			}
			for _, r := range rows {
				ready = ready || r.ID == reply.Node && r.Status == "ready"
			}
			time.Sleep(time.Millisecond)
		}
		took := ms(time.Since(begin))
		return took, newcomer.stream(ctx, "/v1/leave", map[string]bool{}, nil)
	})
	if err != nil {
		return err
	}
	b.add(figure{Name: "worker joins, the call", Unit: "ms", Swarm: "118*"}, joined)
	b.add(figure{Name: "worker joins, until a manager lists it as ready", Unit: "ms", Want: []want{atMost(median, 150)}, Swarm: "155*"}, s)
	return nil
}
