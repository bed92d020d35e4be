package overlay

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
)

const (
	// MinVNI and MaxVNI bound the VNIs that heddle gives out: the upper half of the 24 bits of
	// RFC 7348, so that other users of the VXLAN port on a host keep theirs.
	MinVNI = 1 << 23
	MaxVNI = 1<<24 - 1

	DriverOverlay = "overlay" // of a cluster
	DriverBridge  = "bridge"  // of one node
	DriverHost    = "host"    // the host's own namespace, as it is; of one node
	DriverNone    = "none"    // a namespace with a loopback alone; of one node

	minOverlayMTU = 1280 // RFC 8200, section 5
	maxOverlayMTU = 65485
)

// Subnet is one IP subnet of a network.
type Subnet struct {
	Prefix  netip.Prefix          `json:"prefix"`
	Gateway netip.Addr            `json:"gateway"`        // the anycast address of every participant's bridge
	Range   netip.Prefix          `json:"range,omitzero"` // the part that leases come from; all of Prefix where it is not set
	Aux     map[string]netip.Addr `json:"aux,omitempty"`  // addresses that are never leased
}

// NetworkSpec is what an operator asks for.
type NetworkSpec struct {
	Name      string            `json:"name"`
	Driver    string            `json:"driver"`
	IPv4      bool              `json:"ipv4"` // has an IPv4 subnet, from the pool where Subnets names none
	IPv6      bool              `json:"ipv6"`
	Subnets   []Subnet          `json:"subnets,omitempty"` // a Gateway that is not set is the first usable address
	Internal  bool              `json:"internal,omitempty"`
	Encrypted bool              `json:"encrypted,omitempty"` // what travels between nodes; level 3
	Labels    map[string]string `json:"labels,omitempty"`
	Options   map[string]string `json:"options,omitempty"`
}

// Network is a spec that the managers have accepted.
type Network struct {
	ID NetworkID `json:"id"`
	NetworkSpec
	VNI     uint32 `json:"vni"`
	Created uint64 `json:"created"` // Raft index
}

// NamespaceName is the name under /run/netns of the network's namespace on a participant.
func (n Network) NamespaceName() string { return "heddle-" + n.ID.Short() }

// SubnetOf is the network's subnet that has the address.
func (n Network) SubnetOf(a netip.Addr) (Subnet, bool) {
	for _, s := range n.Subnets {
		if s.Prefix.Contains(a) {
			return s, true
		}
	}
	return Subnet{}, false
}

// MTU is the value of `-o mtu`, or 0 where the network follows its underlay.
func (s NetworkSpec) MTU() int {
	n, _ := strconv.Atoi(s.Options["mtu"])
	return n
}

// Mingles says whether workloads of the network reach each other: `-o icc=false` keeps those of a
// bridge network apart.
func (s NetworkSpec) Mingles() bool { return s.Options["icc"] != "false" }

// dockerOptions are Docker's names of options.
var dockerOptions = map[string]string{
	"com.docker.network.driver.mtu":        "mtu",
	"com.docker.network.bridge.enable_icc": "icc",
}

// Plain are options by heddle's own names, where they have Docker's. Of one that has both the own counts.
func Plain(options map[string]string) map[string]string {
	if options == nil {
		return nil
	}
	out := map[string]string{}
	for k, v := range options {
		name, docker := dockerOptions[k]
		if _, both := options[name]; docker && both {
			continue
		}
		if !docker {
			name = k
		}
		out[name] = v
	}
	return out
}

// Scope is "node" for a driver whose networks are a single node's, else "cluster".
func (s NetworkSpec) Scope() string {
	if s.Driver == DriverBridge || s.Bare() {
		return "node"
	}
	return "cluster"
}

// Bare says whether the network gives its workloads neither interface nor address.
func (s NetworkSpec) Bare() bool { return s.Driver == DriverHost || s.Driver == DriverNone }

// Validate checks a spec before it is sent and again where it arrives. It says nothing about
// names or subnets in use, which only who keeps the network knows: the managers, or the node.
func (s NetworkSpec) Validate() error {
	if err := ValidateName("network", s.Name); err != nil {
		return err
	}
	switch s.Driver {
	case DriverOverlay:
	case DriverBridge:
		if s.Encrypted {
			return Errorf(Invalid, "network %q stays on its node, where nothing is to be encrypted; leave out --encrypted, or use -d overlay", s.Name)
		}
	case DriverHost, DriverNone:
		if s.IPv4 || s.IPv6 || len(s.Subnets) > 0 || len(s.Options) > 0 || s.Internal || s.Encrypted {
			return Errorf(Invalid, "driver %s gives workloads no addresses and changes nothing; network %q can have a name and labels alone", s.Driver, s.Name)
		}
		return validateLabels(s.Labels)
	default:
		return Errorf(Invalid, "network driver %q is unknown; use -d overlay, bridge, host or none", s.Driver)
	}
	if !s.IPv4 && !s.IPv6 {
		return Errorf(Invalid, "network %q has neither IPv4 nor IPv6; leave out --ipv4=false or add --ipv6", s.Name)
	}
	if err := validateLabels(s.Labels); err != nil {
		return err
	}
	if err := s.validateOptions(); err != nil {
		return err
	}
	for i, n := range s.Subnets {
		if err := n.validate(); err != nil {
			return err
		}
		if n.Prefix.Addr().Is4() && !s.IPv4 {
			return Errorf(Invalid, "subnet %s is IPv4, but the network has --ipv4=false; drop one of them", n.Prefix)
		}
		for _, o := range s.Subnets[:i] {
			if o.Prefix.Overlaps(n.Prefix) {
				return Errorf(Invalid, "subnets %s and %s of network %q overlap; give it subnets that do not", o.Prefix, n.Prefix, s.Name)
			}
		}
	}
	return nil
}

func (s NetworkSpec) validateOptions() error {
	for k, v := range s.Options {
		switch {
		case k == "mtu":
			if n, err := strconv.Atoi(v); err != nil || n < minOverlayMTU || n > maxOverlayMTU {
				return Errorf(Invalid, "option mtu=%q is no MTU; use %d to %d", v, minOverlayMTU, maxOverlayMTU)
			}
		case k == "icc" && s.Driver == DriverBridge:
			if v != "true" && v != "false" {
				return Errorf(Invalid, "option icc=%q is neither true nor false; with false, workloads of the network do not reach each other", v)
			}
		case s.Driver == DriverBridge:
			return Errorf(Invalid, "network option %q is unknown; the bridge driver has mtu and icc", k)
		default:
			return Errorf(Invalid, "network option %q is unknown; the %s driver has mtu", k, s.Driver)
		}
	}
	return nil
}

func (s Subnet) validate() error {
	p := s.Prefix
	if !p.IsValid() || p.Addr().Is4In6() {
		return Errorf(Invalid, "a subnet is malformed; write it as 10.20.0.0/16 or fd00:20::/64")
	}
	if p.Masked() != p {
		return Errorf(Invalid, "subnet %s has host bits; write %s", p, p.Masked())
	}
	bits := p.Addr().BitLen() - p.Bits()
	if bits < 2 || (p.Addr().Is4() && p.Bits() < 8) || (p.Addr().Is6() && p.Bits() < 16) {
		return Errorf(Invalid, "subnet %s is too small or too large; use /8 to /30, or /16 to /126 for IPv6", p)
	}
	if a := p.Addr(); a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() {
		return Errorf(Invalid, "subnet %s is reserved for other uses; take a private one like 10.20.0.0/16", p)
	}
	if s.Gateway.IsValid() && !usable(p, s.Gateway) {
		return Errorf(Invalid, "gateway %s is no usable address of subnet %s", s.Gateway, p)
	}
	if s.Range.IsValid() && (s.Range.Bits() < p.Bits() || !p.Contains(s.Range.Addr())) {
		return Errorf(Invalid, "ip-range %s is not inside subnet %s", s.Range, p)
	}
	for name, a := range s.Aux {
		if !usable(p, a) {
			return Errorf(Invalid, "aux-address %s=%s is no usable address of subnet %s", name, a, p)
		}
	}
	return nil
}

// usable says whether a host may have the address: not the first of the prefix (network, or
// subnet-router anycast of RFC 4291) and not the IPv4 broadcast address.
func usable(p netip.Prefix, a netip.Addr) bool {
	return p.Contains(a) && a != p.Masked().Addr() && (a.Is6() || a != LastAddr(p))
}

// LastAddr is the highest address of the prefix.
func LastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

const maxLabels = 64

func validateLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return Errorf(Invalid, "%d labels are too many; use at most %d", len(labels), maxLabels)
	}
	for k, v := range labels {
		if k == "" || len(k) > 128 || len(v) > 256 {
			return Errorf(Invalid, "label %.40q is not valid; use a key of 1 to 128 and a value of at most 256 characters", k)
		}
	}
	return nil
}

// ParsePrefix reads a subnet as a user types it.
func ParsePrefix(option, s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, Errorf(Invalid, "%s %q is no subnet; write it as 10.20.0.0/16 or fd00:20::/64", option, s)
	}
	return p, nil
}

// ParseAddr reads an address as a user types it.
func ParseAddr(option, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, Errorf(Invalid, "%s %q is no IP address; write it as 10.20.0.5 or fd00:20::5", option, s)
	}
	return a.Unmap(), nil
}

// Families lists what the network carries, for lists and messages.
func (s NetworkSpec) Families() []string {
	var f []string
	if s.IPv4 {
		f = append(f, "IPv4")
	}
	if s.IPv6 {
		f = append(f, "IPv6")
	}
	return slices.Clip(f)
}

func (n Network) String() string { return fmt.Sprintf("%s (%s)", n.Name, n.ID.Short()) }
