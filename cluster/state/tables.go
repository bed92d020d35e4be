package state

import (
	"crypto/ed25519"
	"maps"
	"net/netip"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/ipam"
)

// tables are the rows. Rows are replaced, never changed, so that readers may keep them.
type tables struct {
	applied  uint64 // index of the newest entry
	revision uint64 // index of the newest entry that changed a row
	level    int    // the cluster's feature level
	cluster
	nodes    cow[overlay.NodeID, overlay.Node]
	removals cow[overlay.NodeID, overlay.Signed]
	networks cow[overlay.NetworkID, *network]
	tokens   cow[string, Token]
	services cow[overlay.ServiceID, *overlay.Service]
	members  cow[overlay.NodeID, member] // of nodes that are, and that were
	done     outcomes

	// What follows from the rows above, for look-ups.
	signer  ed25519.PrivateKey // of Signing[0]
	byName  map[string]overlay.NodeID
	byHash  map[string]string // token hash to ID
	netName map[string]overlay.NetworkID
	vnis    map[uint32]bool
	subnets ipam.Set // of all networks
	leased  map[overlay.NodeID]map[overlay.NetworkID]bool
	pools   map[overlay.NetworkID]*pool

	servName map[serviceName]overlay.ServiceID
	ports    map[overlay.ProtoPort]map[overlay.ServiceID]overlay.PublishMode // that services publish
	ingress  map[overlay.NetworkID]int                                       // services of it that are published on every node; none is no entry

	changes []key // of the command that is being applied
}

// cluster is what there is one of.
type cluster struct {
	overlay.Place
	Params     overlay.Params     `json:"params"`
	CA         []byte             `json:"ca"`
	CAKey      ed25519.PrivateKey `json:"caKey"`
	Signing    [][]byte           `json:"signingKeys"` // seeds; the first signs
	Ring       []overlay.RingKey  `json:"ring"`
	GossipKeys [][]byte           `json:"gossipKeys"`
	NextNumber uint32             `json:"nextNumber"` // of a node
	NextVNI    uint32             `json:"nextVNI"`    // where the search for a free one begins
}

// member is what the state keeps of a node for itself.
type member struct {
	Name  string `json:"name"`
	Token string `json:"token,omitempty"` // ID of the token that it joined by
	// Of a node that was removed without its consent:
	Removed int64 `json:"removed,omitempty"` // Unix seconds
	Forced  bool  `json:"forced,omitempty"`
}

// network is a network's row.
type network struct {
	def     overlay.Network
	leases  map[overlay.NodeID]overlay.Signed
	fenced  map[overlay.NodeID][]overlay.Grant // of nodes that were removed without their consent
	resting []rest                             // in the order of their coming
}

// rest is a run of addresses that were given back a moment ago, for as long as others may
// still remember who had them.
type rest struct {
	First netip.Addr `json:"first"`
	Last  netip.Addr `json:"last"`
	Until int64      `json:"until"` // Unix seconds
}

// restTime is how long addresses rest, in seconds, unless nothing else is left.
const restTime = 60

// pool is the addresses of a network that are not free: reserved, leased, fenced, resting or a
// service's.
type pool struct {
	used     ipam.Set
	held     map[overlay.NodeID][]overlay.Grant
	vips     map[netip.Addr]overlay.ServiceID
	services map[overlay.ServiceID]bool // all of the network's
}

// subnets are the network's subnets of a family.
func (n *network) subnets(v4 bool) (out []overlay.Subnet) {
	for _, s := range n.def.Subnets {
		if s.Prefix.Addr().Is4() == v4 {
			out = append(out, s)
		}
	}
	return out
}

func newTables() *tables {
	return &tables{
		level: 1,
		nodes: newCow[overlay.NodeID, overlay.Node](), removals: newCow[overlay.NodeID, overlay.Signed](),
		networks: newCow[overlay.NetworkID, *network](), tokens: newCow[string, Token](),
		members: newCow[overlay.NodeID, member](), done: outcomes{byReq: map[string]int{}},
		byName: map[string]overlay.NodeID{}, byHash: map[string]string{}, netName: map[string]overlay.NetworkID{},
		vnis: map[uint32]bool{}, leased: map[overlay.NodeID]map[overlay.NetworkID]bool{}, pools: map[overlay.NetworkID]*pool{},
		services: newCow[overlay.ServiceID, *overlay.Service](), servName: map[serviceName]overlay.ServiceID{},
		ports: map[overlay.ProtoPort]map[overlay.ServiceID]overlay.PublishMode{}, ingress: map[overlay.NetworkID]int{},
	}
}

// apply does a command, or refuses it and leaves all rows as they are.
func (t *tables) apply(c Command, index uint64) (ref, error) {
	if _, first := c.(*Init); !first && t.Cluster == "" {
		return ref{}, overlay.Errorf(overlay.NotMember, "there is no cluster yet; make one with `heddle init`")
	}
	return c.apply(t, index)
}

// changed notes the rows that a command has changed.
func (t *tables) changed(k ...key) { t.changes = append(t.changes, k...) }

// sign states body under the cluster's signing key.
func (t *tables) sign(d overlay.Domain, body any) (overlay.Signed, error) {
	return overlay.Sign(d, t.signer, body)
}

// setCluster takes over the one-off rows, which were checked.
func (t *tables) setCluster(c cluster) {
	t.cluster, t.signer = c, nil
	if len(c.Signing) > 0 {
		t.signer = ed25519.NewKeyFromSeed(c.Signing[0])
	}
}

// cow is a map that its readers share until its next change.
type cow[K comparable, V any] struct {
	m      map[K]V
	shared bool
}

func newCow[K comparable, V any]() cow[K, V] { return cow[K, V]{m: map[K]V{}} }

// share is the map for readers.
func (c *cow[K, V]) share() map[K]V {
	c.shared = true
	return c.m
}

// edit is the map for a change.
func (c *cow[K, V]) edit() map[K]V {
	if c.shared {
		c.m, c.shared = maps.Clone(c.m), false
	}
	return c.m
}
