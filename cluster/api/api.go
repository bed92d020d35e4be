// Package api is the wire contract with the managers: HTTP/1.1 with JSON over the control port,
// spoken as heddle-api/1 between members and as heddle-join/1 by a node that wants to become one.
//
// Any manager answers; writes and reads that must be current are forwarded to the leader once.
// Errors travel as overlay.Error.
package api

import (
	"context"
	"crypto/ed25519"
	"net/netip"

	"github.com/heddle-net/heddle/overlay"
)

// Caller is who asks, by the certificate of its connection.
type Caller struct {
	Node overlay.NodeID
	Role overlay.Role
}

// Backend is a manager, as the handler needs one. Methods that change something, and those
// called after Verify, run on the leader; they answer with kind Unavailable where another
// manager, or a later try, may do better.
type Backend interface {
	// Leader is the manager that leads as far as this one knows, or "". self says that it is
	// this one, ready to answer.
	Leader() (id overlay.NodeID, self bool)
	// LeaderChanged returns a channel that is closed when Leader may answer otherwise.
	LeaderChanged() <-chan struct{}
	// Verify returns when this manager knows that it leads and its state is current.
	Verify(context.Context) error

	Networks(context.Context) ([]overlay.NetworkRow, error)
	Network(ctx context.Context, ref string) (overlay.NetworkRow, error)
	CreateNetwork(context.Context, overlay.NetworkSpec) (overlay.NetworkRow, error)
	UpdateNetwork(ctx context.Context, ref string, u overlay.NetworkUpdate) (overlay.NetworkRow, error)
	RemoveNetwork(ctx context.Context, ref string) error
	UpdateCluster(context.Context, overlay.ClusterUpdate) (overlay.Params, error)
	Endpoints(context.Context) ([]overlay.Endpoint, error)

	Services(context.Context) ([]overlay.ServiceRow, error)
	Service(ctx context.Context, ref string) (overlay.ServiceRow, error)
	CreateService(context.Context, overlay.ServiceRequest) (overlay.ServiceRow, error)
	UpdateService(ctx context.Context, ref string, u overlay.ServiceUpdate) (overlay.ServiceRow, error)
	RemoveService(ctx context.Context, ref string) error

	Nodes(context.Context) ([]overlay.NodeRow, error)
	UpdateNode(ctx context.Context, ref string, u overlay.NodeUpdate) (overlay.NodeRow, error)
	RemoveNode(ctx context.Context, by Caller, ref string, force bool) error

	Tokens(context.Context) ([]overlay.TokenRow, error)
	CreateToken(context.Context, overlay.TokenRequest) (overlay.TokenReply, error)
	RotateTokens(context.Context, overlay.TokenRequest) (overlay.TokenReply, error)
	RevokeToken(ctx context.Context, id string) error

	Join(context.Context, JoinRequest) (JoinReply, error)
	// Terms and DialBack are for a node with a valid token, on the manager that it asks. Without
	// a blocked port the request goes on to Join.
	Terms(context.Context, TermsRequest) (Terms, error)
	DialBack(ctx context.Context, r JoinRequest, source netip.Addr) (JoinReply, error)
	Grant(ctx context.Context, node overlay.NodeID, r GrantRequest) (GrantReply, error)
	Renew(ctx context.Context, node overlay.NodeID) (Certificate, error)
	Leave(ctx context.Context, node overlay.NodeID) error
	UpdateSelf(ctx context.Context, node overlay.NodeID, a Addresses) (overlay.Node, error)
	// Release takes back addresses of a node's lease; the statement says whose.
	Release(ctx context.Context, node overlay.NodeID, s overlay.Signed) (GrantReply, error)
	ManagerReady(ctx context.Context, node overlay.NodeID, r Ready) error

	Source // what watch streams are made of
}

// Holder answers what managers ask of any node, about its leases.
type Holder interface {
	// Release gives up addresses that idle.
	Release(context.Context, overlay.ReleaseRequest) (overlay.ReleaseReply, error)
	// Forgot returns without error when nothing in this node's kernel leads to a removed node
	// any more.
	Forgot(context.Context, overlay.NodeID) error
}

// Source is a state that can be followed.
type Source interface {
	// FactsFor is what a node may see.
	FactsFor(overlay.NodeID) *overlay.Facts
	// Since is the difference between what the node could see at a revision and now; false
	// means that only the whole helps.
	Since(revision uint64, node overlay.NodeID) (overlay.Delta, bool)
	// Changed returns a channel that is closed when the state is newer than the revision.
	Changed(revision uint64) <-chan struct{}
	// Beat is how fresh the state is.
	Beat() Beat
}

// Beat tells how fresh a manager's state is.
type Beat struct {
	Leader overlay.NodeID `json:"leader,omitempty"` // "" when it knows of none
	Commit uint64         `json:"commit"`           // its Raft commit index
	Age    int64          `json:"age"`              // ms since it heard of the leader; 0 on the leader, -1 when it never did
}

// JoinRequest is what a node that wants to become a member says (format "join").
type JoinRequest struct {
	V       int               `json:"v"`
	Node    overlay.NodeID    `json:"node"`
	Key     ed25519.PublicKey `json:"key"`
	Name    string            `json:"name"`
	Control netip.AddrPort    `json:"control"`
	Gossip  netip.AddrPort    `json:"gossip"`
	Secret  []byte            `json:"secret"` // the token's
	Hello   overlay.Hello     `json:"hello"`

	// What a manager dials back before it takes the node in; see package cluster. With an empty
	// Probe it does not.
	Probe    []byte         `json:"probe,omitempty"` // drawn by the node
	DataPath netip.AddrPort `json:"dataPath,omitzero"`
}

// TermsRequest is what a node asks Terms with.
type TermsRequest struct {
	Secret []byte `json:"secret"` // the token's
}

// Terms are what a node must know of a cluster before it can join (format "join").
type Terms struct {
	V            int    `json:"v"`
	DataPathPort uint16 `json:"dataPathPort"`
	DataPath6    bool   `json:"dataPath6,omitempty"` // VXLAN travels over IPv6
}

// Blocked is a port of a joining node that the manager which it asked does not reach.
type Blocked struct {
	Proto string         `json:"proto"` // "tcp" or "udp"
	Addr  netip.AddrPort `json:"addr"`
	Err   string         `json:"err"`
}

// Certificate is a node certificate and what it belongs to.
type Certificate struct {
	overlay.Place
	Cert []byte `json:"cert"` // DER
	CA   []byte `json:"ca"`   // DER
}

// JoinReply makes a node a member.
type JoinReply struct {
	V     int           `json:"v"`
	Node  overlay.Node  `json:"node"`
	Facts overlay.Facts `json:"facts"`
	Hello overlay.Hello `json:"hello"`
	Certificate

	// A node that is not reached is not taken in, and gets these alone.
	Blocked []Blocked  `json:"blocked,omitempty"`
	Manager string     `json:"manager,omitempty"` // the name of the manager that dialled
	Source  netip.Addr `json:"source,omitzero"`   // where the request came from, as that manager saw it
}

// GrantRequest asks for addresses of a network: Want more of each family, and those named.
type GrantRequest struct {
	Network string       `json:"network"` // name, ID or prefix
	Want    int          `json:"want,omitempty"`
	Addrs   []netip.Addr `json:"addrs,omitempty"`
	Spare   bool         `json:"spare,omitempty"` // for the reserve: nobody is pressed for it
	Bare    bool         `json:"bare,omitempty"`  // none: the node takes part without an address
}

// GrantReply is a network with all its leases at a revision.
type GrantReply struct {
	Network  overlay.Network                   `json:"network"`
	Leases   map[overlay.NodeID]overlay.Signed `json:"leases"`
	Revision uint64                            `json:"revision"`
}

// Addresses are where a node answers; what is not set stays as it is.
type Addresses struct {
	Control netip.AddrPort `json:"control,omitzero"`
	Gossip  netip.AddrPort `json:"gossip,omitzero"`
}

// Ready says that a node with the manager role runs Raft, and how much of the log it has.
type Ready struct {
	Last uint64 `json:"last"`
}

// Paths of the API that only nodes use. The others are those of the local API.
const (
	pathHello   = "/v1/hello"
	pathWatch   = "/v1/watch"
	pathJoin    = "/v1/join"
	pathTerms   = "/v1/join/terms"
	pathGrant   = "/v1/grant"
	pathRenew   = "/v1/renew"
	pathLeave   = "/v1/leave"
	pathSelf    = "/v1/self"
	pathRelease = "/v1/release"
	pathReady   = "/v1/manager-ready"

	pathHolderRelease = "/v1/holder/release" // these two on every node
	pathHolderForgot  = "/v1/holder/forgot"
)

// nobody stands for a joining node, which is no member yet, in headerFor.
const nobody overlay.NodeID = "joiner"

// Headers between managers, honoured from managers alone, and the ID of a request, by which a
// retry is recognised.
const (
	headerFor     = "X-Heddle-For"     // NODE ROLE of the original caller
	headerRequest = "X-Heddle-Request" // at most 64 bytes
)

type requestKey struct{}

// WithRequest gives the request ID to what a handler calls.
func WithRequest(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestKey{}, id)
}

// RequestOf is the ID of the request that ctx belongs to, or "".
func RequestOf(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}
