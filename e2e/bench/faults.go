//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
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
