//go:build linux

package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
)

// damages are what somebody does to a network by hand, in its namespace NS on one host, and how to
// see that it is repaired. FAR and ADDR are the MAC and address of an endpoint of another host, PORT
// is the port of one of this host.
var damages = []struct{ do, repaired string }{
	{"bridge -n NS fdb del FAR dev vxlan0 self", "bridge -n NS fdb show dev vxlan0 | grep -q 'FAR dst'"},
	{"bridge -n NS fdb del FAR dev vxlan0 master", "bridge -n NS fdb show dev vxlan0 | grep -q 'FAR master'"},
	{"ip -n NS neigh del ADDR dev br0", "ip -n NS neigh show ADDR nud permanent | grep -q FAR"},
	{"ip -n NS neigh replace ADDR lladdr 02:00:00:00:00:99 dev br0 nud permanent", "ip -n NS neigh show ADDR nud permanent | grep -q FAR"},
	{"ip -n NS link set vxlan0 mtu 1300", "! ip -n NS link show vxlan0 | grep -q 'mtu 1300'"},
	{"ip -n NS link set PORT nomaster", "ip -n NS link show PORT | grep -q 'master br0'"},
	{"ip -n NS link del vxlan0", "ip -n NS neigh show ADDR nud permanent | grep -q FAR && bridge -n NS fdb show dev vxlan0 2>/dev/null | grep -q 'FAR dst'"},
	{"ip -n NS route flush default", "ip -n NS route show default | grep -q uplink"},
	{"nft delete table inet heddle", "nft list chain inet heddle judge 2>/dev/null | grep -q drop"},
	{"nft flush chain inet heddle input", "nft list chain inet heddle input | grep -q goto"},
}

// repair measures from a damage's end until the kernel is as it was.
func (b *bench) repair(ctx context.Context) error {
	undo, err := b.everywhere(ctx, "repair")
	if err != nil {
		return err
	}
	h := b.c.Host(5)
	near, err := endpoint(ctx, client(h), "repair-"+h.Name())
	if err != nil {
		return err
	}
	far, err := endpoint(ctx, client(b.c.Host(4)), "repair-"+b.c.Host(4).Name())
	if err != nil {
		return err
	}
	var rows []cluster.Network
	if err := b.c.JSON(ctx, h, &rows, "network", "inspect", "repair"); err != nil {
		return err
	}
	names := strings.NewReplacer("NS", rows[0].Namespace, "FAR", far.MAC, "ADDR", far.IPv4.Addr().String(), "PORT", "ep-"+near.ID[:12])
	s, err := repeat(b.n, func(i int) (float64, error) {
		d := damages[i%len(damages)]
		ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
		defer cancel()
		line := names.Replace(d.do + " && a=$(date +%s%N) && until " + d.repaired + "; do :; done && echo $((($(date +%s%N) - a) / 1000))")
		out, err := h.Output(ctx, "sh", "-c", line)
		if err != nil {
			return 0, fmt.Errorf("after %s: %w", names.Replace(d.do), err)
		}
		us, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
		return us / 1000, err
	})
	if err != nil {
		return err
	}
	b.add(figure{
		Name: "deleted or changed by hand → repaired", Unit: "ms", Want: []want{atMost(p99, 1000)}, Swarm: "never*",
		Note: "entries, neighbours, links, routes, tables and rules in turn; seen by ip, bridge and nft, whose own time is in it",
	}, s)
	return undo()
}
