//go:build linux

package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/heddle-net/heddle/e2e/cluster"
)

// lockVariants are what is done to the locks of ports that are otherwise alike, while the daemon
// that would mend them is stopped. $T is the lock's table.
var lockVariants = []struct{ name, nft string }{
	{"no lock", `nft delete table $T`},
	{"no lock, again", `nft delete table $T`},
	{"the hook alone", `nft flush chain $T ingress`},
	{"MAC and IP", `nft -a list chain $T ingress | sed -n 's/.* dhcp".*handle \([0-9]*\).*/delete rule '"$T"' ingress handle \1/p' | nft -f -`},
	{"the whole lock", `true`},
}

// locks measures what the rules on a port cost each packet: bursts of flows through ports with
// more and with fewer of them, in turns.
func (b *bench) locks(ctx context.Context) error {
	here, there := b.c.Host(1), b.c.Host(2)
	if err := client(here).createNetwork(ctx, "locks", "10.210.0.0/24", "fd00:210::/64"); err != nil {
		return err
	}
	var rows []cluster.Network
	var ways []way
	var ports []string
	for i := range lockVariants {
		near, err := client(here).attach(ctx, fmt.Sprintf("near-%d", i), "locks")
		if err != nil {
			return err
		}
		far, err := client(there).attach(ctx, fmt.Sprintf("far-%d", i), "locks")
		if err != nil {
			return err
		}
		ports = append(ports, "ep-"+near.ID[:12])
		ways = append(ways, way{
			from: here.Path("/run/netns/" + near.Name), to: there.Path("/run/netns/" + far.Name),
			addr: map[family]netip.Addr{ipv4: far.IPv4.Addr(), ipv6: far.IPv6.Addr()},
		})
	}
	if err := b.c.JSON(ctx, here, &rows, "network", "inspect", "locks"); err != nil {
		return err
	}
	if err := here.PauseDaemon(); err != nil {
		return err
	}
	defer here.ContinueDaemon()
	for i, v := range lockVariants {
		change := strings.ReplaceAll("set -e; "+v.nft, "$T", "netdev heddle-"+ports[i])
		if err := here.Run(ctx, "ip", "netns", "exec", rows[0].Namespace, "sh", "-c", change); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	for _, f := range []family{ipv4, ipv6} {
		if err := b.lockCosts(ctx, ways, f); err != nil {
			return fmt.Errorf("over %s: %w", f, err)
		}
	}
	return nil
}

// lockCosts enters by how much longer than through the first way a packet takes.
func (b *bench) lockCosts(ctx context.Context, ways []way, f family) error {
	flows := make([]flow, len(ways))
	for i, w := range ways {
		var err error
		if flows[i], err = w.packets(f); err != nil {
			return err
		}
		defer flows[i].close()
	}
	base, more := []float64{}, make([][]float64, len(ways))
	for round := range rounds*pairs + 1 {
		took := make([]float64, len(ways)) // microseconds for each packet
		for turn := range ways {
			i := (turn + round) % len(ways)
			rate, err := flows[i].run()
			if err != nil || ctx.Err() != nil {
				return cmp.Or(err, ctx.Err())
			}
			if rate == 0 {
				return fmt.Errorf("%s: nothing of a burst arrived", lockVariants[i].name)
			}
			took[i] = 1000 / rate
		}
		if round == 0 { // warms up
			continue
		}
		base = append(base, took[0])
		for i := 1; i < len(ways); i++ {
			more[i] = append(more[i], took[i]-took[0])
		}
	}
	b.add(figure{Name: fmt.Sprintf("a packet of 64 bytes over %s, no lock", f), Unit: "us", Note: "between workloads of two nodes"}, base)
	for i := 1; i < len(ways); i++ {
		b.add(figure{Name: fmt.Sprintf("%s: longer than without, over %s", lockVariants[i].name, f), Unit: "us"}, more[i])
	}
	return nil
}
