// Package datapath holds values that describe kernel objects, wanted and seen, and the
// ordered difference between two such descriptions.
//
// It is pure: the kernel itself is in datapath/kernel. A Config is the whole wanted state of
// one node; setting the same Config twice changes nothing.
package datapath

import (
	"encoding/base64"
	"net"
	"net/netip"
)

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string               { return net.HardwareAddr(m[:]).String() }
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// NS names a network namespace. The zero value is the one that the daemon runs in: the
// host's, which holds the underlay.
type NS struct {
	Path  string // such as /run/netns/heddle-4f1c… or /proc/812/ns/net
	Inode uint64 // the inode it must have, for a namespace that others made; 0 where heddle made it
}

// Owner is what an object is there for: a network's or an endpoint's ID. It is in the
// object's mark in the kernel ("heddle:OWNER"), and errors are reported by it.
type Owner string

// Config is everything wanted from the kernel. Order means nothing; keys are unique.
type Config struct {
	Namespaces []Namespace
	Links      []Link
	Locks      []Lock
	Addresses  []Address
	Neighbors  []Neighbor
	FDB        []FDBEntry
	Routes     []Route
	WGPeers    []WGPeer
	Filters    []Filter
	Egress     Egress
	Entrances  []Entrance // the host's last
	Balancers  []Balancer // for package balance: no State has them, and Diff leaves them alone
}

// Namespace is a namespace that heddle makes, marks and removes: /run/netns/NAME. Loopback
// is up in it, and what br_netfilter would do to bridged frames is off.
type Namespace struct {
	Name  string
	Owner Owner

	// Uplink is the link on which packets are forwarded out of this namespace, and behind
	// whose address they hide (masquerade). Without one nothing is forwarded.
	Uplink string

	// Names are the addresses of this namespace at which workloads ask for names, with commas
	// between. What one of them asks is bounded. Where there is an uplink, and so connections are
	// tracked, questions are not.
	Names string

	// Partial says that the forwarding and neighbour entries of this namespace are not all
	// known yet, as after a start: those that are not wanted stay until they are.
	Partial bool
}

// NS is how links name the namespace.
func (n Namespace) NS() NS { return NS{Path: "/run/netns/" + n.Name} }

// Kind is the kind of a link.
type Kind string

const (
	Bridge    Kind = "bridge"
	VXLAN     Kind = "vxlan"
	Veth      Kind = "veth"      // with its far end, which is made by the same request
	WireGuard Kind = "wireguard" // by the kernel, or where it has none by a process
)

// Link is a network device that heddle makes in place: never created elsewhere and moved.
// Key: (NS, Name).
type Link struct {
	NS        NS
	Name      string
	Owner     Owner
	Kind      Kind
	MAC       MAC // zero for Kind WireGuard
	MTU       int
	Master    string        // the bridge in the same namespace that it is a port of; "" is none
	Port      PortFlags     // of a bridge port
	VXLAN     VXLANAttr     // Kind VXLAN
	WireGuard WireGuardAttr // Kind WireGuard
	Peer      Peer          // Kind Veth: the far end
}

// VXLANAttr are the attributes of a VXLAN device (RFC 7348). Learning is always off.
type VXLANAttr struct {
	VNI      uint32
	Port     uint16     // UDP
	Local    netip.Addr // outer source address
	Underlay NS         // where its outer packets travel, for good: the host's, or that of WireGuard devices
}

// WireGuardAttr are the attributes of a WireGuard device. Its UDP socket is in the host's
// namespace, wherever the device is.
type WireGuardAttr struct {
	Key  PrivateKey
	Port uint16 // UDP
}

// PrivateKey is a Curve25519 private key. It never prints itself.
type PrivateKey [32]byte

func (PrivateKey) String() string   { return "(private key)" }
func (PrivateKey) GoString() string { return "(private key)" }

// PublicKey is a Curve25519 public key.
type PublicKey [32]byte

func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// WGPeer is a peer of a WireGuard device. Key: (NS, Link, Key).
type WGPeer struct {
	NS    NS
	Link  string
	Key   PublicKey
	Owner Owner

	// Endpoint is where the peer is looked for. Once WireGuard has heard the peer elsewhere, that
	// stands until another Endpoint is wanted, or the peer is silent.
	Endpoint netip.AddrPort

	Address   netip.Addr // the one inner address that is the peer's, both ways
	Keepalive bool       // a session is kept up though nothing is sent
}

// Peer is the far end of a veth, in the workload's namespace. A link of that name that is
// not ours is an error, never changed.
type Peer struct {
	NS    NS
	Name  string
	MAC   MAC
	MTU   int
	Owner Owner
}

// PortFlags are the flags of a bridge port (bridge(8)). Learning is always off.
type PortFlags struct {
	Flood            bool // unknown unicast goes out here
	BroadcastFlood   bool
	MulticastFlood   bool
	NeighborSuppress bool // answer ARP and ND for what lies behind this port
	Isolated         bool // nothing passes between this port and others that are isolated
}

// Address is an address on a link, without duplicate address detection: leases exclude
// duplicates. Key: (NS, Link, Prefix).
type Address struct {
	NS     NS
	Link   string
	Prefix netip.Prefix
	Owner  Owner
}

// Neighbor is a permanent neighbour entry. Key: (NS, Link, IP).
type Neighbor struct {
	NS    NS
	Link  string
	IP    netip.Addr
	MAC   MAC
	Owner Owner
}

// FDBEntry is a static forwarding entry. With a VTEP it stands in the VXLAN device (self,
// permanent) and in its bridge (master, static), written by one request; without one it
// says which local port has the MAC (master, static). Key: (NS, Link, MAC).
type FDBEntry struct {
	NS    NS
	Link  string
	MAC   MAC
	VTEP  netip.Addr // zero for a local port
	Owner Owner
}

// Nowhere is the link of a route that refuses.
const Nowhere = "lo"

// Route is a unicast route in the main table. Key: (NS, Link, Prefix, Metric). Setting one
// replaces another link's of that prefix and metric. One for a loopback address is a local route, by
// which the kernel takes what was translated to that address from what comes by the link: the loopback's
// own route counts there alone.
type Route struct {
	NS     NS
	Link   string // Nowhere: what is meant can't be reached, and no route of a shorter prefix takes it
	Prefix netip.Prefix
	Via    netip.Addr // the next hop, on the link; zero: what is meant is on the link itself
	Metric int        // lower is better; no other route of that prefix has it
	Owner  Owner
}

// Egress is the host's part in letting workloads out: what comes from uplinks is forwarded, and
// hides behind the host's addresses. Where forwarding was off, what others would forward through
// it is dropped. The zero value wants none of it.
type Egress struct {
	Uplinks string       // how the host's ends of uplinks begin
	Inside  string       // links by which the host itself is in networks, with commas between: nothing leaves a network by them into another
	Pool4   netip.Prefix // their addresses
	Pool6   netip.Prefix
}

// Port is a port that this host must be reached at.
type Port struct {
	Proto string // "tcp" or "udp"
	Port  uint16

	// Where packets for it come in, as far as that is known: of what other addresses and links get
	// nobody speaks then.
	At   netip.Addr
	Link string
}

// Filter is the allow-set of an underlay: VXLAN frames to Port with a VNI of MinVNI or more are
// let in, and not tracked, when (outer source, VNI) is in Allowed; others with such a VNI
// are dropped and counted. Frames with a lower VNI are not judged. MinVNI is a power of two.
// Key: NS.
type Filter struct {
	NS      NS // the host's, or one that heddle made
	Owner   Owner
	Port    uint16
	MinVNI  uint32
	Allowed []Allow

	// Partial says that Allowed may lack members: those that are there and not wanted stay.
	Partial bool
}

// Allow is one member of the allow-set.
type Allow struct {
	Source netip.Addr
	VNI    uint32
}
