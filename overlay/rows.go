package overlay

import (
	"net/netip"
	"time"
)

// Rows are what lists and inspects show, in the API and as JSON by the CLI. Their field
// names are Docker's where Docker has them.

// NodeRow is a row of `node ls`.
type NodeRow struct {
	ID            NodeID
	Name          string
	Addr          string // of the control port
	Role          Role
	Status        string // "ready", "down" or "unknown", as the answering manager's gossip sees it
	Availability  Availability
	ManagerStatus string // "Leader", "Reachable", "Unreachable", "" for a worker
	Version       string
	Number        uint32
	Encryption    string `json:",omitempty"` // what makes its WireGuard devices: "kernel" or "wireguard-go"
	Self          bool   `json:",omitempty"`
}

// NetworkRow is a row of `network ls` and, whole, `network inspect`. Namespace, Bridge and
// Device are as on the answering node, empty where it is no participant.
type NetworkRow struct {
	ID           NetworkID
	Name         string
	Driver       string
	Scope        string // "cluster" or "node"
	VNI          uint32
	IPAM         IPAMRow
	EnableIPv4   bool
	EnableIPv6   bool
	Internal     bool
	Encrypted    bool
	Labels       map[string]string
	Options      map[string]string
	Participants []ParticipantRow
	Endpoints    []Endpoint
	MTU          int `json:",omitempty"`
	Namespace    string
	Bridge       string
	Device       string
	Notes        []string `json:",omitempty"` // what the operator should know of this network
}

// NetworkUpdate changes what can change in a network.
type NetworkUpdate struct {
	Labels     map[string]string `json:"labels,omitempty"`     // to set
	DropLabels []string          `json:"dropLabels,omitempty"` // to take away
	Subnets    []Subnet          `json:"subnets,omitempty"`    // to add
}

// ClusterUpdate changes what can change in a cluster.
type ClusterUpdate struct {
	AddPools []netip.Prefix `json:"addPools,omitempty"` // of the automatic subnets
}

// IPAMRow has Docker's shape.
type IPAMRow struct {
	Config []IPAMConfigRow
}

type IPAMConfigRow struct {
	Subnet             netip.Prefix
	Gateway            netip.Addr            `json:",omitzero"`
	IPRange            netip.Prefix          `json:",omitzero"`
	AuxiliaryAddresses map[string]netip.Addr `json:",omitempty"`
	Addresses          uint64                // that endpoints may have; math.MaxUint64 stands for more
	Leased             uint64                // of them, to nodes
	InUse              uint64                // of them, by endpoints
}

// ParticipantRow is a node with a lease in the network.
type ParticipantRow struct {
	Node   NodeID
	Name   string
	Leased int // addresses of one family in its lease
}

// ServiceRow is a row of `service ls` and, whole, `service inspect`.
type ServiceRow struct {
	ID        ServiceID
	Name      string
	NetworkID NetworkID
	Network   string // its name
	Mode      EndpointMode
	VIPs      []netip.Addr
	Ports     []ServicePort
	Publish   []Publish // with the ports that were chosen
	Selector  map[string]string
	Health    Health
	Labels    map[string]string
	Created   uint64 // Raft index
	Updated   uint64 // Raft index of its last change
	Backends  []BackendRow
}

// ServiceName is what the row is found by.
func (r ServiceRow) ServiceName() ServiceName {
	return ServiceName{r.ID, r.Name, r.NetworkID, r.Network}
}

// BackendRow is an endpoint behind a service, as who answers judges it.
type BackendRow struct {
	Endpoint EndpointID
	Workload string
	Node     string // its name
	NodeID   NodeID
	IPs      []netip.Addr
	Used     bool      // names lead to it, and new connections
	Out      string    `json:",omitempty"` // why it is out of rotation: "starting", "unhealthy", "leaving", "draining" or "suspended"
	Detail   string    `json:",omitempty"` // what its node says of it
	Since    time.Time `json:",omitzero"`  // of Out or, in rotation, of its health

	// Connections is how many connections and UDP flows the workloads that are on the answering node have
	// begun to it by the service's addresses, since its place in the rules was written there last. What
	// came by a published port does not count. Managers do not know it.
	Connections uint64
}

// TokenRow is a join token without its secret.
type TokenRow struct {
	ID      string
	Role    Role
	Created time.Time
	Expires time.Time `json:",omitzero"` // zero: never
	Uses    int       // left; -1 is any number
}

// TokenRequest asks for a join token.
type TokenRequest struct {
	Role Role           `json:"role"`
	TTL  *time.Duration `json:"ttl,omitempty"`  // nil: 24 h for workers, 1 h for managers; 0: for ever
	Uses *int           `json:"uses,omitempty"` // nil: any number for workers, one for managers; 0: any number
}

// TokenReply has the one copy of the token that there is.
type TokenReply struct {
	Row   TokenRow `json:"row"`
	Token string   `json:"token"`
	Join  string   `json:"join"` // the line to paste on the other host
}

// NodeUpdate changes a node's row.
type NodeUpdate struct {
	Role         Role         `json:"role,omitempty"`
	Availability Availability `json:"availability,omitempty"`
}

// InitRequest makes a cluster of this node. Empty addresses are chosen: the only global
// address of a real device, else an error lists the candidates.
type InitRequest struct {
	AdvertiseAddr  string         `json:"advertiseAddr,omitempty"` // IP or interface
	ListenAddr     string         `json:"listenAddr,omitempty"`    // IP; default all addresses
	DataPathAddr   string         `json:"dataPathAddr,omitempty"`  // IP or interface; default as advertised
	DataPathPort   uint16         `json:"dataPathPort,omitempty"`  // default 4789
	Pools          []netip.Prefix `json:"pools,omitempty"`
	PoolMaskLength int            `json:"poolMaskLength,omitempty"` // of the IPv4 pools
}

// JoinRequest brings this node into a cluster.
type JoinRequest struct {
	Managers      []string     `json:"managers"` // HOST[:PORT]
	Token         string       `json:"token"`
	AdvertiseAddr string       `json:"advertiseAddr,omitempty"`
	ListenAddr    string       `json:"listenAddr,omitempty"`
	DataPathAddr  string       `json:"dataPathAddr,omitempty"`
	Availability  Availability `json:"availability,omitempty"`
}

// MemberReply answers init and join.
type MemberReply struct {
	Node NodeID `json:"node"`
	Role Role   `json:"role"`
	Join string `json:"join,omitempty"` // after init: the line for the other hosts

	Warnings []string `json:"warnings,omitempty"` // what does not work yet, each with what to do
}

// Status is what `heddle status` shows of the answering node.
type Status struct {
	Version   string
	Member    bool
	Cluster   string `json:",omitempty"`
	Node      NodeID `json:",omitempty"`
	Name      string
	Role      Role         `json:",omitempty"`
	Addr      string       `json:",omitempty"`
	DataPath  string       `json:",omitempty"`
	Ports     []PortStatus `json:",omitempty"`
	Revision  uint64
	Managers  []ManagerStatus
	Peers     []PeerStatus
	Networks  int
	Endpoints []Endpoint
	Problems  []string          `json:",omitempty"` // one line each, with what to do
	Counters  map[string]uint64 `json:",omitempty"` // refused records and frames, drift, by kind
}

// Copy is what a node itself holds of the cluster, which may be old: its own networks and, on a
// manager, all.
type Copy struct {
	Revision  uint64
	Age       time.Duration // since a manager was heard of; -1: not since the daemon's start
	Networks  []NetworkRow
	Nodes     []NodeRow
	Endpoints []Endpoint
	Services  []ServiceRow
}

// PortStatus is a port this node listens on.
type PortStatus struct {
	Port  uint16
	Proto string // "tcp", "udp", "tcp+udp"
	Use   string
}

// ManagerStatus is what this node knows of its managers.
type ManagerStatus struct {
	Name      string
	Addr      string
	Leader    bool
	Following bool   // this node's stream of facts comes from it
	Error     string `json:",omitempty"`
}

// PeerStatus is what this node's gossip knows of another node.
type PeerStatus struct {
	Node      NodeID
	Name      string
	Addr      string
	State     string        // "alive", "suspect", "dead", "unknown"
	Suspended time.Time     `json:",omitzero"` // since when its names and service addresses are: it is dead, and answers no probe
	LastProbe time.Time     `json:",omitzero"`
	RTT       time.Duration // of the last probe
}
