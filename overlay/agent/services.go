package agent

import (
	"cmp"
	"slices"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/services"
)

// judge says what stands behind the services of a network. What this node says of its own endpoints
// holds here before others have heard it. In the loop.
func (a *Agent) judge(id overlay.NetworkID, claims []*overlay.Claim, before []*services.Service) []*services.Service {
	in := a.offered(id)
	if len(in.Services) == 0 {
		return nil
	}
	in.Nodes, in.Suspended = a.Facts.Facts().Nodes, a.Peers.Suspended()
	for _, c := range claims {
		if c.Record.Owner != a.Self {
			in.Records = append(in.Records, &c.Record)
		}
	}
	for _, e := range a.endpoints {
		if e.Network == id && e.state == overlay.EndpointReady {
			r := e.record()
			r.Network, r.Owner = id, a.Self
			in.Records = append(in.Records, &r)
		}
	}
	return services.Judge(in, before)
}

// offered are the services of a network, sorted by ID. In the loop.
func (a *Agent) offered(id overlay.NetworkID) services.Input {
	n := a.network(id)
	if f := a.Facts.Facts(); n.offeredBy != f {
		all := a.servicesOf(id, nil)
		slices.SortFunc(all, func(x, y overlay.Service) int { return cmp.Compare(x.ID, y.ID) })
		n.offered, n.offeredBy = services.Input{Services: all, Index: services.NewIndex(all)}, f
	}
	return n.offered
}

// servicesOf are the services of a network, or those that an endpoint is in, sorted by name. In the
// loop.
func (a *Agent) servicesOf(id overlay.NetworkID, e *endpoint) (in []overlay.Service) {
	var r overlay.Record
	if e != nil {
		r = e.record()
	}
	for _, s := range a.Facts.Facts().Services {
		if s.Network == id && (e == nil || s.Selects(&r)) {
			in = append(in, s)
		}
	}
	slices.SortFunc(in, func(x, y overlay.Service) int { return cmp.Compare(x.Name, y.Name) })
	return in
}

// serves says whether others come to an endpoint by more than its own name: by a service, or by
// published ports. In the loop.
func (a *Agent) serves(e *endpoint) bool {
	return len(e.Publish) > 0 || e.Service != "" || len(e.Labels) > 0 && len(a.servicesOf(e.Network, e)) > 0
}

// alone says whether nobody else comes to an endpoint: none takes part in its network, and it has no
// published ports. In the loop.
func (a *Agent) alone(e *endpoint) bool {
	if len(a.network(e.Network).leases) > 1 || len(e.Publish) > 0 {
		return false
	}
	for _, o := range a.endpoints {
		if o != e && o.Network == e.Network && o.state != overlay.EndpointLost {
			return false
		}
	}
	return true
}

// admits refuses new endpoints on a node that is given none. In the loop.
func (a *Agent) admits() error {
	node := a.Facts.Facts().Nodes[a.Self]
	if node.Availability == overlay.Active || node.Availability == "" {
		return nil
	}
	return overlay.Errorf(overlay.Denied, "node %s takes no more endpoints (availability %s); `heddle node update --availability active %s` changes that", node.Name, node.Availability, node.Name)
}
