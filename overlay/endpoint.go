package overlay

import (
	"cmp"
	"net/netip"
	"time"
)

// Endpoint is a row of `endpoint ls`: one workload's place in one network. Interface and
// Namespace are known on the endpoint's own node alone.
type Endpoint struct {
	ID          EndpointID        `json:"ID"`
	Name        string            `json:"Name"`
	Node        NodeID            `json:"NodeID"`
	NodeName    string            `json:"Node"`
	NetworkID   NetworkID         `json:"NetworkID"`
	NetworkName string            `json:"Network"`
	IPv4        netip.Prefix      `json:"IPv4,omitzero"`
	IPv6        netip.Prefix      `json:"IPv6,omitzero"`
	MAC         MAC               `json:"MAC"`
	State       EndpointState     `json:"State"`
	Interface   string            `json:"Interface,omitempty"`
	Namespace   string            `json:"Namespace,omitempty"`
	Aliases     []string          `json:"Aliases,omitempty"`
	Service     string            `json:"Service,omitempty"`
	Health      string            `json:"Health,omitempty"`
	Publish     []Publish         `json:"Publish,omitempty"` // on its own node alone
	Labels      map[string]string `json:"Labels,omitempty"`
}

// EndpointState is where an endpoint is in its life.
type EndpointState string

const (
	EndpointPending EndpointState = "pending" // asked for, not yet answered
	EndpointReady   EndpointState = "ready"   // in the kernel, and told to the participants
	EndpointLost    EndpointState = "lost"    // its namespace is gone; the address is kept for the name
	EndpointFailed  EndpointState = "failed"  // the kernel refuses something it needs; retried
)

// AttachRequest asks for an endpoint. A repeated request for the same workload and network
// with the same target returns the endpoint there is.
type AttachRequest struct {
	Name    string            `json:"name"`
	Network string            `json:"network"` // name, ID or prefix
	IP      netip.Addr        `json:"ip,omitzero"`
	IP6     netip.Addr        `json:"ip6,omitzero"`
	MAC     MAC               `json:"mac,omitzero"`
	Aliases []string          `json:"aliases,omitempty"`
	Service string            `json:"service,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	IfName  string            `json:"ifname,omitempty"`  // "" is the first free eth0, eth1, …
	Netns   string            `json:"netns,omitempty"`   // path of a namespace; without any target, where the workload is already, else /run/netns/NAME is made
	PID     int               `json:"pid,omitempty"`     // the namespace of a process
	Session int               `json:"session,omitempty"` // a process whose end detaches the workload; 0 is none
	Host    bool              `json:"host,omitempty"`    // the host itself is the workload
	Connect bool              `json:"connect,omitempty"` // where the workload is already, which must be somewhere

	// GwPriority chooses among the networks of a workload: the default route goes through the one
	// with the highest, of several with the same through the one whose name is first.
	GwPriority int `json:"gwPriority,omitempty"`

	Publish []Publish `json:"publish,omitempty"` // ports of this host that lead to the workload
	Health  Health    `json:"health,omitzero"`   // of this endpoint alone; a command runs as this node's root
}

// RouteRank orders the default routes of a workload that is in several networks, and the networks in
// which its questions for names are answered.
type RouteRank struct {
	Priority int
	Network  string // its name
	Endpoint EndpointID
}

// Compare is negative where r comes first: the highest priority does, then the first network by name.
func (r RouteRank) Compare(o RouteRank) int {
	return cmp.Or(cmp.Compare(o.Priority, r.Priority), cmp.Compare(r.Network, o.Network), cmp.Compare(r.Endpoint, o.Endpoint))
}

// MaxGrace bounds the grace of a DetachRequest.
const MaxGrace = 10 * time.Minute

// DetachRequest takes a workload off one network, or off all with Network "".
type DetachRequest struct {
	Name    string `json:"name"`
	Network string `json:"network,omitempty"` // name, ID or the beginning of an ID

	// Grace is how long connections may last, once all others send a service's endpoint nothing new;
	// without connections it goes at once. Nil is 10 s.
	Grace *time.Duration `json:"grace,omitempty"`
}

// Validate checks the grace.
func (r DetachRequest) Validate() error {
	if r.Grace != nil && (*r.Grace < 0 || *r.Grace > MaxGrace) {
		return Errorf(Invalid, "--grace %s is out of range; use 0 to %s", *r.Grace, MaxGrace)
	}
	return nil
}

// DetachReply answers a detach that is done.
type DetachReply struct {
	Silent []string `json:"silent,omitempty"` // participants that have not acknowledged in time that it leaves
}

// AttachReply answers an attach that stands: the interface is up and its addresses usable.
type AttachReply struct {
	Endpoint Endpoint `json:"endpoint"`
	Silent   []string `json:"silent,omitempty"`   // participants that have not acknowledged in time
	Warnings []string `json:"warnings,omitempty"` // what stands in the workload's way on this host, each with what to type
}

// Validate checks what can be checked without the network.
func (r AttachRequest) Validate() error {
	if err := ValidateName("workload", r.Name); err != nil {
		return err
	}
	if r.Network == "" {
		return Errorf(Invalid, "attach %q to which network? add --network N", r.Name)
	}
	for _, a := range r.Aliases {
		if err := ValidateName("alias", a); err != nil {
			return err
		}
	}
	if r.Service != "" {
		if err := ValidateName("service", r.Service); err != nil {
			return err
		}
	}
	switch {
	case len(r.Aliases) > 32:
		return Errorf(Invalid, "%d aliases are too many; use at most 32", len(r.Aliases))
	case r.Netns != "" && r.PID != 0:
		return Errorf(Invalid, "--netns and --pid both name a namespace; use one of them")
	case r.Host && (r.Netns != "" || r.PID != 0), r.Connect && (r.Host || r.Netns != "" || r.PID != 0):
		return Errorf(Invalid, "--host, --netns and --pid each say where the workload is; use one of them")
	case r.PID < 0:
		return Errorf(Invalid, "--pid %d is no process", r.PID)
	case r.IP.IsValid() && !r.IP.Is4():
		return Errorf(Invalid, "--ip %s is not IPv4; use --ip6 for it", r.IP)
	case r.IP6.IsValid() && !r.IP6.Is6():
		return Errorf(Invalid, "--ip6 %s is not IPv6; use --ip for it", r.IP6)
	case !r.MAC.IsZero() && !r.MAC.IsUnicast():
		return Errorf(Invalid, "--mac %s is a group address; clear the lowest bit of its first byte", r.MAC)
	case len(r.IfName) > 15 || !ifNameOK(r.IfName):
		return Errorf(Invalid, "--ifname %q is no interface name; use at most 15 letters, digits, '_', '.' and '-'", r.IfName)
	}
	if r.Health.Kind != "" {
		if err := r.Health.ValidateHealth(); err != nil {
			return err
		}
		if r.Health.Kind != HealthCmd && r.Health.Port == 0 && r.Service == "" {
			return Errorf(Invalid, "%s is to be probed at which port? add --health-port", r.Name)
		}
	}
	if err := ValidatePublish(r.Publish, ""); err != nil {
		return err
	}
	return validateLabels(r.Labels)
}

func ifNameOK(s string) bool {
	return s == "" || (nameForm.MatchString(s) && s != "lo" && s != "all" && s != "default")
}
