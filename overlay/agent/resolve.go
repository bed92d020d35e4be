package agent

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/names"
)

// Resolve answers what the workloads of a network would be told of a name. It asks nobody.
func (a *Agent) Resolve(ctx context.Context, r overlay.ResolveRequest) (reply overlay.ResolveReply, err error) {
	if err := r.Validate(); err != nil {
		return reply, err
	}
	if e := a.do(ctx, func(context.Context) { reply.Addrs, err = a.lookUp(r) }); e != nil {
		return reply, e
	}
	return reply, err
}

// lookUp finds the addresses of a name. In the loop.
func (a *Agent) lookUp(r overlay.ResolveRequest) ([]netip.Addr, error) {
	asker, err := a.askerIn(r.Network)
	if err != nil {
		return nil, err
	}
	network := asker.Zones()[0].Name
	short, _ := names.Below(strings.TrimSuffix(strings.ToLower(r.Name), "."))
	ips, known := asker.Addrs(short)
	switch {
	case len(ips) > 0:
		slices.SortFunc(ips, netip.Addr.Compare)
		return ips, nil
	case known:
		return nil, overlay.Errorf(overlay.Unavailable, "%s has no address in network %s: nothing of that name is in rotation; `heddle node ls` and `heddle endpoint ls` show the states", r.Name, network)
	case asker.Partial():
		return nil, overlay.Errorf(overlay.Unavailable, "%s is not known yet in network %s: this node has not heard from the other participants since it started; try again", r.Name, network)
	}
	return nil, overlay.Errorf(overlay.NotFound, "there is no %s in network %s; `heddle endpoint ls --filter network=%s` lists the workloads", r.Name, network, network)
}

// askerIn asks in a network by name, ID or prefix: one in which this node takes part, or on managers
// any. In the loop.
func (a *Agent) askerIn(ref string) (*names.Asker, error) {
	known := map[overlay.NetworkID]*network{}
	for id, n := range a.networks {
		if _, leased := n.leases[a.Self]; leased {
			known[id] = n
		}
	}
	f := a.Facts.Facts()
	if f.Nodes[a.Self].Role == overlay.Manager { // it observes what it does not take part in
		for id, def := range f.Networks {
			if known[id] == nil {
				known[id] = &network{def: def, synced: true}
			}
		}
	}
	n, err := overlay.Find("network", ref, slices.Collect(maps.Values(known)), func(n *network) (string, string) { return string(n.def.ID), n.def.Name })
	if overlay.KindOf(err) == overlay.NotFound {
		return nil, overlay.Errorf(overlay.NotFound, "network %s has had no workload on this node, which therefore doesn't know its names; ask on a node that has one, or on a manager", ref)
	}
	if err != nil {
		return nil, err
	}
	id := n.def.ID
	if asker := a.table.In(id); asker != nil {
		return asker, nil
	}
	claims := a.Peers.Claims(id)
	in := a.names()
	in.Networks = []names.Network{{Network: n.def, Claims: claims, Services: a.judge(id, claims, nil), Partial: !n.synced}}
	return (*names.Table)(nil).Next(in).In(id), nil
}
