// Package plan turns one node's view into everything that it wants from the kernel.
//
// It is pure: the same view gives the same configuration. A driver is a function here, not
// an object: it differs from the others only in which links, addresses and entries it wants.
package plan

import (
	"net/netip"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

// View is what a node knows when it plans.
type View struct {
	Self         overlay.NodeID
	DataPathPort uint16
	Underlay     netip.Addr // this host's own address for the data path; zero: as its record says
	Networks     map[overlay.NetworkID]overlay.Network
	Participants map[overlay.NetworkID][]overlay.NodeID
	Local        []Endpoint                            // this node's own endpoints
	Remote       map[overlay.NetworkID][]overlay.Claim // other nodes' live endpoints
	Partial      map[overlay.NetworkID]bool            // Remote is not yet known to be complete
	Linger       map[overlay.NetworkID]bool            // the last local endpoint went a moment ago
	MTU          map[overlay.NetworkID]int             // in bytes, where it is not yet what [MTU] says
	Nodes        map[overlay.NodeID]overlay.NodeRecord // what nodes say of themselves, this one included
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
}

// NamespaceOwner owns a namespace that heddle makes for a workload: it serves all the
// workload's endpoints, so that none of them can own it.
func NamespaceOwner(workload string) datapath.Owner { return datapath.Owner("workload/" + workload) }

// Build makes the whole wanted configuration. A network has kernel objects on a node while the
// node has endpoints in it, and a moment longer: to take them down and make them again for each
// of many short-lived workloads would cost those 20 ms and more.
func Build(v View) datapath.Config {
	c := datapath.Config{Filter: datapath.Filter{Port: v.DataPathPort, MinVNI: overlay.MinVNI}}
	byNet := map[overlay.NetworkID][]Endpoint{}
	for _, e := range v.Local {
		byNet[e.Network] = append(byNet[e.Network], e)
	}
	for id, lingers := range v.Linger {
		if _, busy := byNet[id]; lingers && !busy {
			byNet[id] = nil
		}
	}
	made, rank := map[string]bool{}, ranks(v)
	for id, eps := range byNet {
		n, ok := v.Networks[id]
		if !ok || !v.Nodes[v.Self].DataPath().IsValid() {
			continue // the facts that describe it are still on their way
		}
		for _, e := range eps {
			if e.Make != "" && !made[e.Make] {
				made[e.Make] = true
				c.Namespaces = append(c.Namespaces, datapath.Namespace{Name: e.Make, Owner: NamespaceOwner(e.Make)})
			}
		}
		vxlan(&c, v, n, eps)
		for _, e := range eps {
			leave(&c, n, e, rank[e.ID])
		}
		c.Filter.Partial = c.Filter.Partial || v.Partial[id]
	}
	if len(c.Filter.Allowed) == 0 && len(c.Links) == 0 {
		c.Filter = datapath.Filter{} // nothing to guard
	}
	return c
}
