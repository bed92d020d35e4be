//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/heddle-net/heddle/e2e/lab"
)

// handmade joins two hosts by a VXLAN as a person makes it with iproute2, in heddle's own
// shape: bridge and VXLAN device in a namespace, a veth into a workload's, entries written by
// hand, no rules. It goes with the hosts.
func handmade(ctx context.Context, a, b *lab.Host, mtu int) (way, error) {
	for i, at := range []struct{ here, there *lab.Host }{{a, b}, {b, a}} {
		if err := at.here.Run(ctx, "sh", "-ec", handmadeSide("", at.here.Addr(), at.there.Addr(), 1+i, 2-i, mtu)); err != nil {
			return way{}, fmt.Errorf("make a VXLAN by hand: %w", err)
		}
	}
	return handmadeWay(a, b), nil
}

// handmadeSealed is handmade over wireguard-go, whose device is in a namespace that is the
// VXLAN's underlay.
func handmadeSealed(ctx context.Context, a, b *lab.Host, mtu int) (way, error) {
	self, err := os.Executable()
	if err != nil {
		return way{}, err
	}
	program, hosts := filepath.Join(filepath.Dir(self), "wireguard-go"), []*lab.Host{a, b}
	var keys [2]string
	for i, h := range hosts {
		key, err := h.Output(ctx, "sh", "-ec", wireguardByHand, "sh", program)
		if err != nil {
			return way{}, fmt.Errorf("start wireguard-go: %w", err)
		}
		keys[i] = strings.TrimSpace(key)
	}
	inner := []netip.Addr{netip.MustParseAddr("fd00:201::1"), netip.MustParseAddr("fd00:201::2")}
	for i, h := range hosts {
		lines := fmt.Sprintf("wg set hand0 peer %s endpoint %s:51820 allowed-ips %s/128\n", keys[1-i], hosts[1-i].Addr(), inner[1-i]) +
			fmt.Sprintf("ip link set hand0 netns hand-wg\nip -n hand-wg addr add %s/64 dev hand0 nodad\nip -n hand-wg link set hand0 mtu 1440 up\n", inner[i]) +
			handmadeSide("-n hand-wg", inner[i], inner[1-i], 1+i, 2-i, mtu)
		if err := h.Run(ctx, "sh", "-ec", lines); err != nil {
			return way{}, fmt.Errorf("make a VXLAN over wireguard-go by hand: %w", err)
		}
	}
	return handmadeWay(a, b), nil
}

const wireguardByHand = `
ip netns add hand-wg
"$1" hand0 >/dev/null 2>&1
umask 077
wg genkey >/tmp/hand.key
wg set hand0 listen-port 51820 private-key /tmp/hand.key
wg pubkey </tmp/hand.key
`

func handmadeWay(a, b *lab.Host) way {
	return way{
		from: a.Path("/run/netns/hand-w"), to: b.Path("/run/netns/hand-w"),
		addr: map[family]netip.Addr{ipv4: netip.MustParseAddr("10.200.0.2"), ipv6: netip.MustParseAddr("fd00:200::2")},
	}
}

// handmadeSide is one host's part; under is ip's option for the underlay's namespace, here and
// there are the workloads' numbers.
func handmadeSide(under string, local, remote netip.Addr, here, there, mtu int) string {
	return fmt.Sprintf(`
ip netns add hand
ip netns add hand-w
ip netns exec hand sh -c 'for f in /proc/sys/net/bridge/bridge-nf-call-*; do test ! -e $f || echo 0 >$f; done'
ip %[6]s link add vx0 netns hand mtu %[5]d type vxlan id 4242 dstport 4789 local %[1]s nolearning
ip -n hand link add br0 mtu %[5]d type bridge forward_delay 0 mcast_snooping 0
ip -n hand link add e1 mtu %[5]d type veth peer name eth0 mtu %[5]d address 02:42:00:00:00:0%[3]d netns hand-w
ip -n hand link set e1 master br0 up
ip -n hand link set vx0 master br0 up
ip -n hand link set br0 up
ip -n hand-w link set lo up
ip -n hand-w addr add 10.200.0.%[3]d/24 dev eth0
ip -n hand-w addr add fd00:200::%[3]d/64 dev eth0 nodad
ip -n hand-w link set eth0 up
ip -n hand-w neigh add 10.200.0.%[4]d lladdr 02:42:00:00:00:0%[4]d dev eth0
ip -n hand-w neigh add fd00:200::%[4]d lladdr 02:42:00:00:00:0%[4]d dev eth0
bridge -n hand fdb add 02:42:00:00:00:0%[4]d dev vx0 dst %[2]s self master static
`, local, remote, here, there, mtu, under)
}
