package state

import (
	"crypto/ed25519"
	"net/netip"

	"github.com/heddle-net/heddle/overlay"
)

// Kind names a command in the log. The values are part of the format "command".
type Kind string

const (
	KindInit            Kind = "init"
	KindJoin            Kind = "join"
	KindSetRole         Kind = "set-role"
	KindSetAvailability Kind = "set-availability"
	KindUpdateNode      Kind = "update-node"
	KindRemoveNode      Kind = "remove-node"
	KindCreateToken     Kind = "create-token"
	KindRevokeToken     Kind = "revoke-token"
	KindRotateTokens    Kind = "rotate-tokens"
	KindCreateNetwork   Kind = "create-network"
	KindRemoveNetwork   Kind = "remove-network"
	KindGrant           Kind = "grant"
	KindRelease         Kind = "release"
	KindUpdateNetwork   Kind = "update-network"
	KindUpdateParams    Kind = "update-params"
	KindUnfence         Kind = "acknowledge-removal"
	KindSetLevel        Kind = "set-level"
	KindCreateService   Kind = "create-service"
	KindUpdateService   Kind = "update-service"
	KindRemoveService   Kind = "remove-service"

	// Reserved, so that no other command takes their names: rotate-gossip-key,
	// rotate-signing-key, rotate-ca, recover.
)

// Command is one of the command types below. [Encode] makes an entry of the log of it.
type Command interface {
	kind() Kind
	// apply changes the state, or refuses and leaves it as it is. The index is the entry's.
	apply(t *tables, index uint64) (ref, error)
}

// Init makes the cluster. It is the first command of a log, once. The caller draws the keys
// and makes the CA's certificate. Apply answers a [NodeResult].
type Init struct {
	overlay.Place
	Level       int                `json:"level,omitempty"` // that the cluster begins with; 0 is 1
	Params      overlay.Params     `json:"params"`
	CA          []byte             `json:"ca"`          // the CA's certificate, DER
	CAKey       ed25519.PrivateKey `json:"caKey"`       // its private key, 64 bytes
	SigningKeys [][]byte           `json:"signingKeys"` // seeds, 32 bytes each; the first signs
	GossipKeys  [][]byte           `json:"gossipKeys"`  // 32 bytes each; the first encrypts
	Node        NewNode            `json:"node"`        // the first manager
}

// NewNode is what a node that comes in says of itself.
type NewNode struct {
	ID      overlay.NodeID    `json:"id"`
	Key     ed25519.PublicKey `json:"key"`
	Name    string            `json:"name"`
	Control netip.AddrPort    `json:"control"`
	Gossip  netip.AddrPort    `json:"gossip"`
}

// Join takes a node in, with the role of its token. It is idempotent by (node ID, key): the
// pair that is known gets the same row again and costs the token nothing. Apply answers a
// [NodeResult], whose Revision belongs into the node's certificate.
type Join struct {
	Node  NewNode `json:"node"`
	Token []byte  `json:"token"` // hash of the token, as pki.Token.Hash gives it
	Now   int64   `json:"now"`   // Unix seconds, for the token's expiry
}

// SetRole promotes or demotes a node. The last manager stays one. Apply answers a
// [NodeResult].
type SetRole struct {
	Node overlay.NodeID `json:"node"`
	Role overlay.Role   `json:"role"`
}

// SetAvailability changes what a node is used for. Apply answers a [NodeResult].
type SetAvailability struct {
	Node         overlay.NodeID       `json:"node"`
	Availability overlay.Availability `json:"availability"`
}

// UpdateNode changes where a node answers; a field that is not set stays as it is. Apply
// answers a [NodeResult].
type UpdateNode struct {
	Node    overlay.NodeID `json:"node"`
	Control netip.AddrPort `json:"control,omitzero"`
	Gossip  netip.AddrPort `json:"gossip,omitzero"`
}

// RemoveNode puts a node out of the cluster for good: its ID and key never come back. The
// last manager can't be removed. Apply answers a [RemovalResult].
type RemoveNode struct {
	Node overlay.NodeID `json:"node"`
	// Consent says that the node itself asked and has no endpoints: its addresses rest, then
	// they are free. Without it they are fenced: nobody gets them before Unfence.
	Consent bool `json:"consent"`
	// Force says that the fence may fall by time alone; see View.Fences.
	Force bool  `json:"force,omitempty"`
	Now   int64 `json:"now,omitempty"` // Unix seconds
}

// Unfence lets the addresses of a node rest that was removed without its consent, and then go
// to others: every participant of their networks acts by the removal. Apply answers a
// [RemovalResult].
type Unfence struct {
	Node overlay.NodeID `json:"node"`
	Now  int64          `json:"now"` // Unix seconds
}

// NewToken is a join token without its secret.
type NewToken struct {
	ID      string       `json:"id"`   // for lists; says nothing about the secret
	Hash    []byte       `json:"hash"` // as pki.Token.Hash gives it
	Role    overlay.Role `json:"role"`
	Created int64        `json:"created"` // Unix seconds
	Expires int64        `json:"expires"` // Unix seconds; 0 is never
	Uses    int          `json:"uses"`    // 0 is any number
}

// CreateToken makes a join token valid. Apply answers a [TokenResult].
type CreateToken struct {
	Token NewToken `json:"token"`
}

// RevokeToken makes a join token invalid. Apply answers a [TokenResult].
type RevokeToken struct {
	ID string `json:"id"`
}

// RotateTokens revokes all tokens of the role of the one that replaces them. Apply answers a
// [TokenResult].
type RotateTokens struct {
	Token NewToken `json:"token"`
}

// CreateNetwork accepts a spec: it takes the subnets that the spec leaves open from the
// pools, the gateways, and a VNI. Apply answers a [NetworkResult].
type CreateNetwork struct {
	ID    overlay.NetworkID   `json:"id"` // drawn by the caller
	Spec  overlay.NetworkSpec `json:"spec"`
	Avoid []netip.Prefix      `json:"avoid,omitempty"` // what nodes route: automatic subnets stay out of it
}

// RemoveNetwork removes a network with its leases. The caller has checked that it has no
// endpoints; one with services stays. Apply answers a [NetworkResult] whose Network has nothing but its ID.
type RemoveNetwork struct {
	ID overlay.NetworkID `json:"id"`
}

// UpdateNetwork changes what can change in a network: labels, and subnets that are added. Apply
// answers a [NetworkResult].
type UpdateNetwork struct {
	ID         overlay.NetworkID `json:"id"`
	Labels     map[string]string `json:"labels,omitempty"`     // to set
	DropLabels []string          `json:"dropLabels,omitempty"` // to take away
	Subnets    []overlay.Subnet  `json:"subnets,omitempty"`    // to add; a gateway that is not named is chosen
}

// UpdateParams changes what the cluster was made with: pools that are added. Apply answers a
// [ParamsResult].
type UpdateParams struct {
	AddPools []netip.Prefix `json:"addPools"`
}

// CreateService accepts a spec: it takes the addresses and the published ports that the spec
// leaves open. Apply answers a [ServiceResult].
type CreateService struct {
	ID      overlay.ServiceID   `json:"id"` // drawn by the caller
	Network overlay.NetworkID   `json:"network"`
	Spec    overlay.ServiceSpec `json:"spec"`
	Now     int64               `json:"now"` // Unix seconds: addresses that rest until then are free
}

// UpdateService changes what can change in a service. Apply answers a [ServiceResult].
type UpdateService struct {
	ID     overlay.ServiceID     `json:"id"`
	Update overlay.ServiceUpdate `json:"update"`
}

// RemoveService removes a service; its addresses and ports are free at once. Apply answers a
// [ServiceResult] whose Service has nothing but its ID.
type RemoveService struct {
	ID overlay.ServiceID `json:"id"`
}

// SetLevel raises the cluster's feature level; a lower one changes nothing. Every manager must
// read it. Apply answers a [LevelResult].
type SetLevel struct {
	Level int `json:"level"`
}

// Grant gives addresses of a network to a node and makes the node a participant. Apply
// answers a [GrantResult].
type Grant struct {
	Network overlay.NetworkID `json:"network"`
	Node    overlay.NodeID    `json:"node"`
	// Want is the number of addresses to add of each family, at most MaxWant; fewer are given
	// where fewer are left. 0 leaves it to the state: see ipam.GrantSize.
	Want int `json:"want"`
	// Addrs are wanted by name. With Want 0 a node that has a lease gets these alone.
	Addrs []netip.Addr `json:"addrs,omitempty"`
	// Spare says that no endpoint waits for the addresses: nothing is given, without an error,
	// where few are left.
	Spare bool `json:"spare,omitempty"`
	// Bare makes the node a participant without an address: what is published on every node needs no
	// endpoint there. A node that has a lease keeps it as it is.
	Bare bool  `json:"bare,omitempty"`
	Now  int64 `json:"now,omitempty"` // Unix seconds: addresses that rest until then are free
}

// Release takes back addresses that their holder gives up. They rest before others get them.
// What the holder does not have any more is passed over. Apply answers a [GrantResult] with
// the holder's new lease, which may be empty.
type Release struct {
	Release overlay.Signed `json:"release"` // an overlay.Release
	Now     int64          `json:"now"`     // Unix seconds
}

// MaxWant bounds Grant.Want and len(Grant.Addrs).
const MaxWant = 1024

// NodeResult answers Init, Join, SetRole, SetAvailability and UpdateNode: the node's row.
type NodeResult struct {
	Node     overlay.Node
	Revision uint64 // of the state that the answer was read from
}

// RemovalResult answers RemoveNode and Unfence.
type RemovalResult struct {
	Removal  overlay.Signed
	Revision uint64
}

// TokenResult answers CreateToken, RevokeToken and RotateTokens.
type TokenResult struct {
	Token    Token
	Revision uint64
}

// NetworkResult answers CreateNetwork, UpdateNetwork and RemoveNetwork.
type NetworkResult struct {
	Network  overlay.Network
	Revision uint64
}

// ServiceResult answers CreateService, UpdateService and RemoveService.
type ServiceResult struct {
	Service  overlay.Service
	Revision uint64
}

// ParamsResult answers UpdateParams.
type ParamsResult struct {
	Params   overlay.Params
	Revision uint64
}

// LevelResult answers SetLevel.
type LevelResult struct {
	Level    int
	Revision uint64
}

// GrantResult answers Grant and Release: all that a node needs of a network to take part in it. Leases
// is shared; nobody may change it.
type GrantResult struct {
	Network  overlay.Network
	Lease    overlay.Signed // of the node that asked; also in Leases
	Leases   map[overlay.NodeID]overlay.Signed
	Revision uint64
}

// Token is a join token as the state keeps it.
type Token struct {
	NewToken
	Used    int  `json:"used"`
	Revoked bool `json:"revoked,omitempty"`
}

// Row is the token as lists show it.
func (t Token) Row() overlay.TokenRow {
	r := overlay.TokenRow{ID: t.ID, Role: t.Role, Created: unix(t.Created), Uses: -1}
	if t.Expires != 0 {
		r.Expires = unix(t.Expires)
	}
	if t.Uses > 0 {
		r.Uses = max(0, t.Uses-t.Used)
	}
	return r
}

// Live says whether a node may still join by the token at a time, in Unix seconds.
func (t Token) Live(now int64) bool { return t.check(now) == nil }
