package state

import (
	"crypto/ed25519"
	"maps"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/overlay"
)

// View is the state at one revision. Its maps are shared: nobody may change them. It holds
// the cluster's secrets, so it never leaves the manager.
type View struct {
	Revision uint64 // Raft index of the newest change; 0 before Init
	overlay.Place
	Level      int // the cluster's feature level
	Params     overlay.Params
	CA         []byte             // certificate, DER
	CAKey      ed25519.PrivateKey // secret
	Ring       []overlay.RingKey
	GossipKeys [][]byte // secret
	Nodes      map[overlay.NodeID]overlay.Node
	Removals   map[overlay.NodeID]overlay.Signed
	Tokens     map[string]Token // by ID; revoked and used ones too

	networks map[overlay.NetworkID]*network
	services map[overlay.ServiceID]*overlay.Service
	members  map[overlay.NodeID]member
}

// Ready says whether the cluster has been made.
func (v *View) Ready() bool { return v.Cluster != "" }

// Network is the row of a network.
func (v *View) Network(id overlay.NetworkID) (overlay.Network, bool) {
	n, ok := v.networks[id]
	if !ok {
		return overlay.Network{}, false
	}
	return n.def, true
}

// Networks are all networks, sorted by name.
func (v *View) Networks() []overlay.Network {
	out := make([]overlay.Network, 0, len(v.networks))
	for _, n := range v.networks {
		out = append(out, n.def)
	}
	slices.SortFunc(out, func(a, b overlay.Network) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Services are all services by ID. They are shared: nobody may change them.
func (v *View) Services() map[overlay.ServiceID]*overlay.Service { return v.services }

// Leases are a network's leases by node; its keys are the participants.
func (v *View) Leases(id overlay.NetworkID) map[overlay.NodeID]overlay.Signed {
	if n, ok := v.networks[id]; ok {
		return n.leases
	}
	return nil
}

// Managers are the nodes with the manager role, sorted by ID.
func (v *View) Managers() []overlay.Node {
	var out []overlay.Node
	for _, id := range slices.Sorted(maps.Keys(v.Nodes)) {
		if v.Nodes[id].Role == overlay.Manager {
			out = append(out, v.Nodes[id])
		}
	}
	return out
}
