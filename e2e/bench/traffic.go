//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/heddle-net/heddle/e2e/cluster"
)

// traffic compares an overlay with a VXLAN made by hand. That one has hosts of its own on the
// same underlay, in no cluster: on heddle's it would go through rules, too.
func (b *bench) traffic(ctx context.Context) error {
	if err := client(b.c.Host(1)).createNetwork(ctx, "traffic"); err != nil {
		return err
	}
	ours, mtu, err := b.flowOver(ctx, "traffic")
	if err != nil {
		return err
	}
	hand, err := handmade(ctx, b.c.Host(3), b.c.Host(4), mtu)
	if err != nil {
		return err
	}
	return b.against(ctx, ours, hand, "", map[string]float64{tcp: 0.95, udp: 0.88})
}

// encrypted compares an encrypted overlay with a VXLAN over wireguard-go made by hand. Of what
// that carries TCP alone can be compared in turns: packets pass through processes, and
// are still under way when the last was written.
func (b *bench) encrypted(ctx context.Context) error {
	if _, err := b.c.Do(ctx, b.c.Host(1), "network", "create", "sealed", "--encrypted", "--ipv6"); err != nil {
		return err
	}
	ours, mtu, err := b.flowOver(ctx, "sealed")
	if err != nil {
		return err
	}
	hand, err := handmadeSealed(ctx, b.c.Host(3), b.c.Host(4), mtu)
	if err != nil {
		return err
	}
	ours.processes, hand.processes = true, true
	return b.against(ctx, ours, hand, "encrypted: ", map[string]float64{tcp: 0.95})
}

// flowOver attaches a workload on each of the first two hosts.
func (b *bench) flowOver(ctx context.Context, network string) (ours way, mtu int, err error) {
	ours.addr = map[family]netip.Addr{}
	for i, end := range []*string{&ours.from, &ours.to} {
		h := b.c.Host(1 + i)
		e, err := client(h).attach(ctx, "flow", network)
		if err != nil {
			return ours, 0, err
		}
		*end = h.Path("/run/netns/flow")
		ours.addr[ipv4], ours.addr[ipv6] = e.IPv4.Addr(), e.IPv6.Addr()
	}
	var rows []cluster.Network
	if err := b.c.JSON(ctx, b.c.Host(1), &rows, "network", "inspect", network); err != nil {
		return ours, 0, err
	}
	return ours, rows[0].MTU, nil
}

const (
	tcp = "TCP throughput"
	udp = "UDP packets of 64 bytes"
)

// against enters what a way carries, and its ratios to a VXLAN made by hand. The names of the
// figures get the prefix; least are the ratios that are wanted, of what is measured; nil measures all.
func (b *bench) against(ctx context.Context, w, hand way, prefix string, least map[string]float64) error {
	for _, k := range []struct {
		name, unit string
		open       func(way, family) (flow, error)
	}{{tcp, "Gbit/s", way.stream}, {udp, "1,000/s", way.packets}} {
		for _, f := range []family{ipv4, ipv6} {
			if _, wanted := least[k.name]; !w.addr[f].IsValid() || least != nil && !wanted {
				continue
			}
			n := pairs
			if w.processes {
				n /= 4
			}
			r, err := inTurns(ctx, n, func() (flow, error) { return k.open(w, f) }, func() (flow, error) { return k.open(hand, f) })
			if err != nil {
				return fmt.Errorf("%s over %s: %w", k.name, f, err)
			}
			ratios := r.ratios()
			low, high := medianInterval(ratios)
			name := fmt.Sprintf("%s%s over %s", prefix, k.name, f)
			ratio := figure{
				Name: name + ", against a VXLAN by hand", Unit: "ratio",
				Note: fmt.Sprintf("pairs in turns; the median's 95 %% interval is %.3f to %.3f; by hand: %s %s", low, high, number(medianOf(r.hand)), k.unit),
			}
			if least != nil {
				ratio.Want = []want{atLeast(median, least[k.name])}
			}
			b.add(ratio, ratios)
			b.add(figure{Name: name, Unit: k.unit}, r.ours)
		}
	}
	return nil
}

func medianOf(samples []float64) float64 {
	var f figure
	f.measure(samples)
	return f.Median
}
