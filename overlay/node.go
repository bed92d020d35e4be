package overlay

import (
	"crypto/ed25519"
	"net/netip"
)

type Role string

const (
	Manager Role = "manager"
	Worker  Role = "worker"
)

type Availability string

const (
	Active Availability = "active"
	Pause  Availability = "pause"
	Drain  Availability = "drain"
)

// Node is the managers' row about a node.
type Node struct {
	ID           NodeID            `json:"id"`
	Name         string            `json:"name"` // unique in the cluster
	Key          ed25519.PublicKey `json:"key"`
	Number       uint32            `json:"number"` // from 1, unique, never given to another node while this one is known
	Role         Role              `json:"role"`
	Availability Availability      `json:"availability"`
	Control      netip.AddrPort    `json:"control"`  // where its control port answers
	Gossip       netip.AddrPort    `json:"gossip"`   // where its gossip port answers
	Identity     Signed            `json:"identity"` // an Identity
	Index        uint64            `json:"index"`    // Raft index of the row's last change
}

// Identity binds a node ID to its key and number, for good. It is signed by the cluster
// signing key and travels with what the node says.
type Identity struct {
	V int `json:"v"`
	Place
	Node   NodeID            `json:"node"`
	Key    ed25519.PublicKey `json:"key"`
	Number uint32            `json:"number"`
}

// Removal says that a node is out of the cluster for good. It is signed by the cluster
// signing key; any member passes it on.
type Removal struct {
	V int `json:"v"`
	Place
	Node  NodeID `json:"node"`
	Index uint64 `json:"index"` // Raft index of the removal
}

// NodeRecord is what a node says of itself, signed by its own key. FDB destinations, the
// allow-set and MTUs come from it alone.
type NodeRecord struct {
	V int `json:"v"`
	Place
	Node      NodeID         `json:"node"`
	Number    uint64         `json:"number"` // of this record; a higher one replaces a lower
	Name      string         `json:"name"`
	Control   netip.AddrPort `json:"control"`
	Gossip    netip.AddrPort `json:"gossip"`
	DataPath4 netip.Addr     `json:"data4,omitzero"` // VTEP for plain networks
	DataPath6 netip.Addr     `json:"data6,omitzero"`
	MTU       int            `json:"mtu"`                 // of the link that has the data-path address, in bytes
	Routes    []netip.Prefix `json:"routes,omitempty"`    // what its host routes, the widest, at most MaxRoutes
	WireGuard *WireGuard     `json:"wireguard,omitempty"` // nil where the node can't encrypt
	Hello     Hello          `json:"hello"`
}

// MaxRoutes bounds what a node record says of a host's routes.
const MaxRoutes = 64

// DataPath is the record's VTEP address: the IPv4 one where there is one.
func (r NodeRecord) DataPath() netip.Addr {
	if r.DataPath4.IsValid() {
		return r.DataPath4
	}
	return r.DataPath6
}

// SignedNode is a node record with the identity that its signature is checked against.
type SignedNode struct {
	Identity Signed `json:"identity"`
	Record   Signed `json:"record"`
}

// Params are the facts of a cluster that are fixed at init.
type Params struct {
	DataPathPort uint16         `json:"dataPathPort"` // UDP, for VXLAN of plain networks
	Pools        []netip.Prefix `json:"pools"`        // IPv4 and IPv6 pools of the automatic subnets
	PoolBits4    int            `json:"poolBits4"`    // prefix length of an automatic IPv4 subnet
	PoolBits6    int            `json:"poolBits6"`
	DataPath6    bool           `json:"dataPath6,omitempty"` // VXLAN of plain networks travels over IPv6
}
