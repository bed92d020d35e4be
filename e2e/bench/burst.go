//go:build linux

package main

import (
	"context"
	"fmt"
	"time"
)

// burst makes 1,000 endpoints appear on one node at once: they are attached while nothing of
// the node's gossip passes, and then it passes. Managers are reached all the while, so that
// the lease grows.
func (b *bench) burst(ctx context.Context) error {
	const count = 1000
	undo, err := b.everywhere(ctx, "burst", "10.200.0.0/20")
	if err != nil {
		return err
	}
	watchers, hangUp, err := b.watchAll(ctx, "burst")
	if err != nil {
		return err
	}
	defer hangUp()
	node := b.c.Host(len(b.c.Hosts()))
	clients, bye := programs(node, 8)
	defer bye()
	var known []float64
	for round := range max(1, b.n/33) {
		name := func(i int) string { return fmt.Sprintf("burst-%d-%d", round, i) }
		if err := node.Run(ctx, "nft", gossipCut); err != nil {
			return err
		}
		macs := make([]string, count)
		err := share(clients, count, func(a *api, i int) error {
			e, _, err := a.attachCut(ctx, name(i), "burst")
			macs[i] = e.MAC
			return err
		})
		if err != nil {
			return err
		}
		healed := time.Now()
		if err := node.Run(ctx, "nft", "delete table inet bench"); err != nil {
			return err
		}
		for _, h := range b.others(node) {
			at, err := watchers[h].wait(ctx, 20*time.Second, macs, nil)
			if err != nil {
				return fmt.Errorf("%s: %w", h.Name(), err)
			}
			known = append(known, ms(at.Sub(healed)))
		}
		if err := share(clients, count, func(a *api, i int) error { return a.detach(ctx, name(i)) }); err != nil {
			return err
		}
	}
	b.add(figure{
		Name: "1,000 endpoints appear on one node → known to each of 10", Unit: "ms", Want: []want{atMost(most, 1000)}, Swarm: "about 49,000, modelled*",
		Note: "attached while the node's gossip is cut off; from its healing to the last of 4,000 entries in a kernel; all 11 nodes on these cores",
	}, known)
	return undo()
}

// gossipCut drops all that comes and goes by port 5378.
const gossipCut = `table inet bench {
	chain in {
		type filter hook input priority -300
		meta l4proto { tcp, udp } th dport 5378 drop
		meta l4proto { tcp, udp } th sport 5378 drop
	}
	chain out {
		type filter hook output priority -300
		meta l4proto { tcp, udp } th dport 5378 drop
		meta l4proto { tcp, udp } th sport 5378 drop
	}
}`
