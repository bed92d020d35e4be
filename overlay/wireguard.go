package overlay

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/netip"
)

// WireGuard is what a node says of its WireGuard devices. It has two: while traffic goes by one,
// the key of the other can be replaced.
type WireGuard struct {
	Kind    string    `json:"kind"` // what makes the devices: "kernel" or "wireguard-go"
	Tunnels [2]Tunnel `json:"tunnels"`
}

// Tunnel is one WireGuard device of a node, for its peers.
type Tunnel struct {
	Key     WireGuardKey `json:"key"`
	Port    uint16       `json:"port"`              // UDP, at the node's data-path address
	Leaving bool         `json:"leaving,omitempty"` // its key is about to be replaced; traffic goes by the other device
}

// WireGuardKey is a Curve25519 public key. It marshals as WireGuard's tools print it.
type WireGuardKey [32]byte

func (k WireGuardKey) String() string               { return base64.StdEncoding.EncodeToString(k[:]) }
func (k WireGuardKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

func (k *WireGuardKey) UnmarshalText(b []byte) error {
	raw, err := base64.StdEncoding.DecodeString(string(b))
	if err != nil || len(raw) != len(k) {
		return Errorf(Invalid, "%.64q is no WireGuard key", b)
	}
	copy(k[:], raw)
	return nil
}

// InnerAddr is a node's address inside WireGuard, the VTEP of its encrypted networks: in a ULA /48
// (RFC 4193) of the cluster's, the host part from the node's ID.
func InnerAddr(cluster string, node NodeID) netip.Addr {
	net := sha256.Sum256([]byte("heddle wireguard\n" + cluster))
	host, _ := hex.DecodeString(string(node)) // a node ID is hexadecimal
	a := [16]byte{0xfd}
	copy(a[1:6], net[:])
	copy(a[6:], host)
	return netip.AddrFrom16(a)
}
