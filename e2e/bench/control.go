//go:build linux

package main

import (
	"context"
	"fmt"
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
