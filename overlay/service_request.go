package overlay

import (
	"maps"
	"slices"
	"strings"
)

// ServiceRequest asks for a service.
type ServiceRequest struct {
	Network string `json:"network"` // name, ID or the beginning of an ID
	ServiceSpec
}

// ProtoPort is a port of one protocol.
type ProtoPort struct {
	Proto string `json:"proto"` // "tcp" or "udp"
	Port  uint16 `json:"port"`
}

// ServiceUpdate changes what can change in a service. Its name, network, mode and addresses stay.
// What is dropped goes before the rest comes, so that both together replace.
type ServiceUpdate struct {
	Ports       []ServicePort     `json:"ports,omitempty"`       // to add
	DropPorts   []ProtoPort       `json:"dropPorts,omitempty"`   // to take away
	Publish     []Publish         `json:"publish,omitempty"`     // to add
	DropPublish []ProtoPort       `json:"dropPublish,omitempty"` // to take away, by the port of the hosts
	Selector    map[string]string `json:"selector,omitzero"`     // instead of the old; nil leaves that, an empty one selects nothing
	Health      *Health           `json:"health,omitempty"`      // instead of the old; nil leaves that, a zero one ends the probes
	Labels      map[string]string `json:"labels,omitempty"`      // to set
	DropLabels  []string          `json:"dropLabels,omitempty"`  // to take away
}

// Validate checks an update before it is sent and again where it arrives. Whether it fits the
// service is found by Apply.
func (u ServiceUpdate) Validate() error {
	if len(u.Ports)+len(u.DropPorts)+len(u.Publish)+len(u.DropPublish)+len(u.Labels)+len(u.DropLabels) == 0 && u.Selector == nil && u.Health == nil {
		return Errorf(Invalid, "the update of the service changes nothing; say what it should change")
	}
	for _, p := range u.Ports {
		if err := p.validate(); err != nil {
			return err
		}
	}
	if u.Health != nil && u.Health.Kind == HealthCmd {
		return commandHealth()
	}
	if u.Health != nil && u.Health.Kind != "" {
		if err := u.Health.ValidateHealth(); err != nil {
			return err
		}
	}
	if err := ValidatePublish(u.Publish, PublishIngress, PublishLocal); err != nil {
		return err
	}
	if err := validateLabels(u.Selector); err != nil {
		return err
	}
	return validateLabels(u.Labels)
}

// Apply is the spec after the update, checked. The old one is left as it is.
func (u ServiceUpdate) Apply(s ServiceSpec) (ServiceSpec, error) {
	s.Ports, s.Publish, s.Labels = slices.Clone(s.Ports), slices.Clone(s.Publish), cloned(s.Labels)
	for _, d := range u.DropPorts {
		n := len(s.Ports)
		s.Ports = slices.DeleteFunc(s.Ports, func(p ServicePort) bool { return ProtoPort{p.Proto, p.Port} == d })
		if len(s.Ports) == n {
			return s, Errorf(NotFound, "service %q has no port %d/%s; `heddle service inspect %s` lists its ports", s.Name, d.Port, d.Proto, s.Name)
		}
	}
	for _, d := range u.DropPublish {
		n := len(s.Publish)
		s.Publish = slices.DeleteFunc(s.Publish, func(p Publish) bool { return ProtoPort{p.Proto, p.Port} == d })
		if len(s.Publish) == n {
			return s, Errorf(NotFound, "service %q does not publish port %d/%s; `heddle service inspect %s` lists what it does", s.Name, d.Port, d.Proto, s.Name)
		}
	}
	s.Ports, s.Publish = append(s.Ports, u.Ports...), append(s.Publish, u.Publish...)
	if u.Selector != nil {
		s.Selector = u.Selector
	}
	if u.Health != nil {
		s.Health = *u.Health
	}
	for _, k := range u.DropLabels {
		delete(s.Labels, k)
	}
	maps.Copy(s.Labels, u.Labels)
	if len(s.Labels) == 0 {
		s.Labels = nil
	}
	if len(s.Selector) == 0 {
		s.Selector = nil
	}
	return s, s.Validate()
}

// ServiceName is what a service is found by.
type ServiceName struct {
	ID        ServiceID
	Name      string
	NetworkID NetworkID
	Network   string // its name
}

// FindService resolves ref among services: NETWORK/NAME, NAME where only one network has it, an
// ID, or a unique prefix of an ID.
func FindService[T any](ref string, all []T, name func(T) ServiceName) (T, error) {
	var zero T
	if network, own, qualified := strings.Cut(ref, "/"); qualified {
		for _, s := range all {
			if n := name(s); n.Name == own && (n.Network == network || string(n.NetworkID) == network) {
				return s, nil
			}
		}
		return zero, Errorf(NotFound, "there is no service %q in network %q; `heddle service ls` lists what there is", own, network)
	}
	var in []string
	for _, s := range all {
		if n := name(s); n.Name == ref {
			in = append(in, n.Network+"/"+n.Name)
		}
	}
	if len(in) > 1 {
		slices.Sort(in)
		return zero, Errorf(Invalid, "%d networks have a service %q; write NETWORK/NAME, which is one of %s", len(in), ref, strings.Join(in, ", "))
	}
	return Find("service", ref, all, func(s T) (string, string) { n := name(s); return string(n.ID), n.Name })
}
