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
	var known []float64
	for round := range max(1, b.n/50) {
		// The endpoints stay, since it takes long to detach them all; and a bridge has room for
		// 1,023. So each round has its own network.
		s, err := b.appear(ctx, fmt.Sprintf("burst-%d", round), fmt.Sprintf("10.200.%d.0/20", 16*round))
		if err != nil {
			return err
		}
		known = append(known, s...)
	}
	b.add(figure{
		Name: "1,000 endpoints appear on one node → known to each of 10", Unit: "ms", Want: []want{atMost(most, 1000)}, Swarm: "about 49,000, modelled*",
		Note: "attached while the node's gossip is cut off; from its healing to the last of 4,000 entries in a kernel; all 11 nodes on these cores",
	}, known)
	return nil
}

// appear is a round of burst: the milliseconds until each of the others knew all.
func (b *bench) appear(ctx context.Context, network, subnet string) (known []float64, err error) {
	if _, err := b.everywhere(ctx, network, subnet); err != nil {
		return nil, err
	}
	watchers, hangUp, err := b.watchAll(ctx, network)
	if err != nil {
		return nil, err
	}
	defer hangUp()
	node := b.c.Host(len(b.c.Hosts()))
	if err := node.Run(ctx, "nft", gossipCut); err != nil {
		return nil, err
	}
	clients, bye := programs(node, 8)
	defer bye()
	macs := make([]string, 1000)
	err = share(clients, len(macs), func(a *api, i int) error {
		e, err := a.attach(ctx, fmt.Sprintf("%s-%d", network, i), network)
		macs[i] = e.MAC
		return err
	})
	if err != nil {
		return nil, err
	}
	healed := time.Now()
	if err := node.Run(ctx, "nft", "delete table inet bench"); err != nil {
		return nil, err
	}
	for _, h := range b.others(node) {
		at, err := watchers[h].wait(ctx, 20*time.Second, macs, nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", h.Name(), err)
		}
		known = append(known, ms(at.Sub(healed)))
	}
	return known, nil
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
