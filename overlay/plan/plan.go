// Package plan turns one node's view into everything that it wants from the kernel.
//
// It is pure: the same view gives the same configuration. A driver is a function here, not
// an object: it differs from the others only in which links, addresses and entries it wants.
package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/services"
)

// View is what a node knows when it plans.
type View struct {
	Self         overlay.NodeID
	DataPathPort uint16
	Underlay     netip.Addr // this host's own address for the data path; zero: as its record says
	Networks     map[overlay.NetworkID]overlay.Network
	Participants map[overlay.NetworkID][]overlay.NodeID
	Local        []Endpoint                                // this node's own endpoints
	Remote       map[overlay.NetworkID][]*overlay.Claim    // other nodes' live endpoints
	Partial      map[overlay.NetworkID]bool                // Remote is not yet known to be complete
	Linger       map[overlay.NetworkID]bool                // it stands without a local endpoint: the last one went a moment ago, or a service is on every node
	Services     map[overlay.NetworkID][]*services.Service // judged
	VIPs         map[overlay.NetworkID][]*datapath.VIP     // as Balanced has them
	MTU          map[overlay.NetworkID]int                 // in bytes, where it is not yet what [MTU] says
	Nodes        map[overlay.NodeID]overlay.NodeRecord     // what nodes say of themselves, this one included
	Tunnels      Tunnels
	Numbers      map[overlay.NodeID]uint32  // nodes' numbers in the cluster
	Unsettled    map[overlay.NetworkID]bool // published ports of services stay as they are: backends may be missing in Services
}

// Endpoint is one of this node's own endpoints.
type Endpoint struct {
	ID        overlay.EndpointID
	Network   overlay.NetworkID
	MAC       overlay.MAC
	IPs       []netip.Addr
	Namespace datapath.NS
	Make      string // the name under /run/netns of a namespace that heddle makes for it; "" where it was given one
	IfName    string
	Host      bool // Namespace is the host's own: it keeps its default route
	Priority  int  // of the default route through this endpoint's network; the highest counts
	Publish   []overlay.Publish
	Leaves    bool // it is being detached: nothing new comes by its published ports
}

// NamespaceOwner owns a namespace that heddle makes for a workload: it serves all the
// workload's endpoints, so that none of them can own it.
func NamespaceOwner(workload string) datapath.Owner { return datapath.Owner("workload/" + workload) }

// Build makes the whole wanted configuration. A network has kernel objects on a node while the
// node has endpoints in it, and a moment longer: to take them down and make them again for each
// of many short-lived workloads would cost those 20 ms and more.
func Build(v View) datapath.Config {
	c := datapath.Config{Filters: []datapath.Filter{{Port: v.DataPathPort, MinVNI: overlay.MinVNI}}}
	byNet := map[overlay.NetworkID][]Endpoint{}
	for _, e := range v.Local {
		byNet[e.Network] = append(byNet[e.Network], e)
	}
	for id, lingers := range v.Linger {
		if _, busy := byNet[id]; lingers && !busy {
			byNet[id] = nil
		}
	}
	made, rank, guarded := map[string]bool{}, ranks(v), false
	var sealed []overlay.Network
	published := newPublisher(v, rank)
	for _, id := range slices.Sorted(maps.Keys(byNet)) { // always in one order: what follows is compared with what was wanted before
		eps := slices.SortedFunc(slices.Values(byNet[id]), func(a, b Endpoint) int { return cmp.Compare(a.ID, b.ID) })
		n, ok := v.Networks[id]
		if !ok || n.Driver == overlay.DriverOverlay && !v.Nodes[v.Self].DataPath().IsValid() {
			continue // the facts that describe it are still on their way
		}
		for _, e := range eps {
			if e.Make != "" && !made[e.Make] {
				made[e.Make] = true
				c.Namespaces = append(c.Namespaces, datapath.Namespace{Name: e.Make, Owner: NamespaceOwner(e.Make)})
			}
		}
		if n.Bare() {
			continue
		}
		if n.Encrypted {
			sealed = append(sealed, n)
		}
		switch n.Driver {
		case overlay.DriverBridge:
			bridge(&c, v, n, eps)
		default:
			vxlan(&c, v, n, eps)
			guarded = true
		}
		for _, e := range eps {
			leave(&c, n, e, rank[e.ID])
		}
		if !n.Internal {
			c.Entrances = append(c.Entrances, published.network(&c, datapath.Namespace{Name: n.NamespaceName()}.NS(), n, eps))
		}
		c.Filters[0].Partial = c.Filters[0].Partial || v.Partial[id]
	}
	balance(&c, v, rank)
	if c.Egress != (datapath.Egress{}) {
		c.Egress.Inside = inside(v)
		c.Entrances = append(c.Entrances, published.host)
	}
	if len(sealed) > 0 {
		tunnels(&c, v, sealed)
	}
	if !guarded {
		c.Filters = nil
	}
	return c
}
