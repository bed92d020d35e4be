package rows

import (
	"cmp"
	"slices"
	"time"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/services"
)

// Services are services of a network with what stands behind them, sorted by name. Claims of nodes
// that are not among nodes are left out. suspended are the nodes that who answers takes for dead.
func Services(n overlay.Network, all []overlay.Service, nodes map[overlay.NodeID]overlay.Node, claims []*overlay.Claim, suspended map[overlay.NodeID]time.Time) []overlay.ServiceRow {
	in := services.Input{Services: all, Nodes: nodes, Suspended: suspended}
	for _, c := range claims {
		if _, known := nodes[c.Record.Owner]; known {
			in.Records = append(in.Records, &c.Record)
		}
	}
	out := []overlay.ServiceRow{}
	for _, s := range services.Judge(in, nil) {
		r := overlay.ServiceRow{
			ID: s.ID, Name: s.Name, NetworkID: n.ID, Network: n.Name, Mode: s.Mode, VIPs: s.VIPs, Ports: s.Ports, Publish: s.Publish,
			Selector: s.Selector, Health: s.Health, Labels: s.Labels, Created: s.Created, Updated: s.Updated, Backends: []overlay.BackendRow{},
		}
		for _, b := range s.Backends {
			r.Backends = append(r.Backends, overlay.BackendRow{
				Endpoint: b.Endpoint, Workload: b.Workload, Node: nodes[b.Node].Name, NodeID: b.Node, IPs: b.IPs,
				Used: b.Used, Out: string(b.Out), Detail: b.Detail, Since: b.Since,
			})
		}
		slices.SortFunc(r.Backends, func(a, b overlay.BackendRow) int {
			return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Workload, b.Workload))
		})
		out = append(out, r)
	}
	SortServices(out)
	return out
}

// SortServices sorts services by network and name.
func SortServices(all []overlay.ServiceRow) {
	slices.SortFunc(all, func(a, b overlay.ServiceRow) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.Name, b.Name))
	})
}
