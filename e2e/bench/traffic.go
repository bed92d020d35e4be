//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/heddle-net/heddle/e2e/cluster"
)

// traffic compares an overlay with a VXLAN made by hand. That one has hosts of its own on the
// same underlay, in no cluster: on heddle's it would go through heddle's rules.
func (b *bench) traffic(ctx context.Context) error {
	if err := client(b.c.Host(1)).createNetwork(ctx, "traffic"); err != nil {
		return err
	}
	ours := way{addr: map[family]netip.Addr{}}
	for i, end := range []*string{&ours.from, &ours.to} {
		h := b.c.Host(1 + i)
		e, err := client(h).attach(ctx, "flow", "traffic")
		if err != nil {
			return err
		}
		*end = h.Path("/run/netns/flow")
		ours.addr[ipv4], ours.addr[ipv6] = e.IPv4.Addr(), e.IPv6.Addr()
	}
	var rows []cluster.Network
	if err := b.c.JSON(ctx, b.c.Host(1), &rows, "network", "inspect", "traffic"); err != nil {
		return err
	}
	hand, err := handmade(ctx, b.c.Host(3), b.c.Host(4), rows[0].MTU)
	if err != nil {
		return err
	}
	return b.against(ctx, ours, hand, comparison{least: map[string]float64{"TCP": 0.95, "UDP": 0.88}, swarm: map[string]string{"TCP": "0.98*", "UDP": "1.03*"}})
}

// comparison says how to enter what is compared with a VXLAN made by hand.
type comparison struct {
	prefix string             // of the figures' names
	least  map[string]float64 // wanted ratio by protocol; may be nil
	swarm  map[string]string  // Swarm's ratio by protocol; may be nil
}

// against enters throughput, packets and their ratios to those of a VXLAN made by hand.
func (b *bench) against(ctx context.Context, ours, hand way, c comparison) error {
	for _, k := range []struct {
		proto, name, unit string
		open              func(way, family) (flow, error)
	}{
		{"TCP", "TCP throughput", "Gbit/s", way.stream},
		{"UDP", fmt.Sprintf("UDP packets of %d bytes", payload), "1,000/s", way.packets},
	} {
		for _, f := range []family{ipv4, ipv6} {
			if !ours.addr[f].IsValid() {
				continue
			}
			r, err := inTurns(ctx, func() (flow, error) { return k.open(ours, f) }, func() (flow, error) { return k.open(hand, f) })
			if err != nil {
				return fmt.Errorf("%s over %s: %w", k.name, f, err)
			}
			b.enter(r, fmt.Sprintf("%s%s over %s", c.prefix, k.name, f), k.unit, c.least[k.proto], c.swarm[k.proto])
		}
	}
	return nil
}

func (b *bench) enter(r rates, name, unit string, least float64, swarm string) {
	ratio := figure{Name: name + " against the same VXLAN made by hand", Unit: "ratio", Swarm: swarm}
	if least > 0 {
		ratio.Want = []want{atLeast(median, least)}
	}
	ratios := r.ratios()
	low, high := medianInterval(ratios)
	var hand figure
	hand.measure(r.hand)
	ratio.Note = fmt.Sprintf("pairs in turns; median at 95 %%: %.3f to %.3f; by hand: %s %s", low, high, number(hand.Median), unit)
	b.add(ratio, ratios)
	b.add(figure{Name: name, Unit: unit}, r.ours)
}
