package overlay

import "net/netip"

// ResolveRequest asks for the addresses of a name in a network, from the host.
type ResolveRequest struct {
	Name    string `json:"name"`    // as a workload of the network writes it
	Network string `json:"network"` // name, ID or prefix
}

// ResolveReply are the addresses, sorted; there is at least one.
type ResolveReply struct {
	Addrs []netip.Addr `json:"addrs"`
}

// Validate checks what can be checked without the network.
func (r ResolveRequest) Validate() error {
	switch {
	case r.Name == "" || len(r.Name) > 254: // RFC 1035, section 2.3.4, with the last dot
		return Errorf(Invalid, "%.40q is no name; use 1 to 253 characters", r.Name)
	case r.Network == "":
		return Errorf(Invalid, "%q is to be found in which network? add --network N", r.Name)
	}
	return nil
}
