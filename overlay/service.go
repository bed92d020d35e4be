package overlay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Service is a named set of endpoints of one network that the managers have accepted. It names
// endpoints; it starts none.
type Service struct {
	ID      ServiceID `json:"id"`
	Network NetworkID `json:"network"`
	ServiceSpec
	Created uint64 `json:"created"` // Raft index
	Updated uint64 `json:"updated"` // Raft index of its last change
}

// ServiceSpec is what an operator asks for. In a Service, VIPs are those that it has and Publish
// has no port open.
type ServiceSpec struct {
	Name     string            `json:"name"` // unique in its network
	Mode     EndpointMode      `json:"mode"`
	VIPs     []netip.Addr      `json:"vips,omitempty"` // at most one of each family; the managers choose those that are not named
	Ports    []ServicePort     `json:"ports,omitempty"`
	Selector map[string]string `json:"selector,omitempty"` // endpoints with all these labels belong to it, besides those that name it
	Health   Health            `json:"health,omitzero"`
	Publish  []Publish         `json:"publish,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
}

// EndpointMode is what a service's name stands for.
type EndpointMode string

const (
	ModeVIP   EndpointMode = "vip"   // one address of each family, balanced where the client is
	ModeDNSRR EndpointMode = "dnsrr" // the addresses of all that are in rotation
)

// ServicePort is a port at a service's address and where its backends listen.
type ServicePort struct {
	Name   string `json:"name,omitempty"` // for SRV
	Proto  string `json:"proto"`          // "tcp" or "udp"
	Port   uint16 `json:"port"`
	Target uint16 `json:"target"`
}

// Publish is a port of hosts that leads to a port of workloads.
type Publish struct {
	Addr   netip.Addr  `json:"addr,omitzero"`  // of the host; zero is all of them, 0.0.0.0 or :: all of a family
	Port   uint16      `json:"port,omitempty"` // 0: whoever decides chooses a free one of DynamicPorts
	Target uint16      `json:"target"`
	Proto  string      `json:"proto"`          // "tcp" or "udp"
	Mode   PublishMode `json:"mode,omitempty"` // of a service's; a workload's are local
}

// PublishMode is on which hosts a service's port is.
type PublishMode string

const (
	PublishIngress PublishMode = "ingress" // every node, wherever the backends are
	PublishLocal   PublishMode = "local"   // nodes where a backend runs; the client's address is kept
)

// FirstDynamicPort and LastDynamicPort bound the published ports that are chosen where none is
// named, as Docker does.
const (
	FirstDynamicPort = 30000
	LastDynamicPort  = 32767
)

// Health is how the node of an endpoint finds out whether it works. The zero value asks for
// nothing: what is attached is healthy.
type Health struct {
	Kind     HealthKind    `json:"kind"`
	Port     uint16        `json:"port,omitempty"` // 0: the target of the service's first tcp port
	Path     string        `json:"path,omitempty"` // of HealthHTTP
	Command  string        `json:"command,omitempty"`
	Interval time.Duration `json:"interval"` // between the ends of probes
	Timeout  time.Duration `json:"timeout"`
	Rise     int           `json:"rise"` // successes in a row after which it is healthy
	Fall     int           `json:"fall"` // failures in a row after which it is not
}

// HealthKind is a way to probe.
type HealthKind string

const (
	HealthTCP  HealthKind = "tcp"  // it takes a connection
	HealthHTTP HealthKind = "http" // GET answers 200 to 399
	HealthCmd  HealthKind = "cmd"  // a command of the endpoint's own node ends with 0; never of a service
)

// DefaultHealth fills in what a Health leaves open.
func (h Health) DefaultHealth() Health {
	if h.Kind == "" {
		return Health{}
	}
	if h.Interval == 0 {
		h.Interval = 500 * time.Millisecond
	}
	if h.Timeout == 0 {
		h.Timeout = 500 * time.Millisecond
	}
	if h.Rise == 0 {
		h.Rise = 1
	}
	if h.Fall == 0 {
		h.Fall = 2
	}
	return h
}

// States of an endpoint as its node states them in Record.Health. Without one it counts as healthy.
const (
	HealthStarting  = "starting"  // not yet found healthy
	HealthHealthy   = "healthy"   //
	HealthUnhealthy = "unhealthy" // with the cause behind a colon
	HealthLeaving   = "leaving"   // it is being detached: no new connections, those that stand go on
)

// SplitHealth takes Record.Health apart: the state, and what its node says of it.
func SplitHealth(health string) (state, detail string) {
	state, detail, _ = strings.Cut(health, ": ")
	return state, detail
}

const (
	maxServicePorts = 64
	maxPublish      = 256
)

// Validate checks a spec before it is sent and again where it arrives. It says nothing about what
// only the managers know: names, addresses and ports in use.
func (s ServiceSpec) Validate() error {
	if err := ValidateName("service", s.Name); err != nil {
		return err
	}
	switch s.Mode {
	case ModeVIP:
	case ModeDNSRR:
		if len(s.VIPs) > 0 {
			return Errorf(Invalid, "service %q has --endpoint-mode dnsrr and --vip; drop one of them", s.Name)
		}
	default:
		return Errorf(Invalid, "endpoint mode %q is unknown; use --endpoint-mode vip or dnsrr", s.Mode)
	}
	for i, a := range s.VIPs {
		if !a.IsValid() || slices.ContainsFunc(s.VIPs[:i], func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			return Errorf(Invalid, "service %q has two addresses of one family; give --vip once for each", s.Name)
		}
	}
	if len(s.Ports) > maxServicePorts {
		return Errorf(Invalid, "%d ports are too many for service %q; use at most %d", len(s.Ports), s.Name, maxServicePorts)
	}
	for i, p := range s.Ports {
		if err := p.validate(); err != nil {
			return err
		}
		for _, o := range s.Ports[:i] {
			if o.Proto == p.Proto && o.Port == p.Port || p.Name != "" && o.Name == p.Name && o.Proto == p.Proto {
				return Errorf(Invalid, "ports %s and %s of service %q are one; drop one of them", o, p, s.Name)
			}
		}
	}
	if err := s.Health.validate(s); err != nil {
		return err
	}
	if err := ValidatePublish(s.Publish, PublishIngress, PublishLocal); err != nil {
		return err
	}
	if err := validateLabels(s.Selector); err != nil {
		return err
	}
	return validateLabels(s.Labels)
}

func (p ServicePort) validate() error {
	if p.Name != "" {
		if err := ValidateName("port", p.Name); err != nil {
			return err
		}
	}
	if p.Port == 0 || p.Target == 0 || p.Proto != "tcp" && p.Proto != "udp" {
		return Errorf(Invalid, "port %s is not valid; write [NAME:]PORT[:TARGET][/tcp|udp] with ports of 1 to 65535", p)
	}
	return nil
}

func (p ServicePort) String() string {
	s := fmt.Sprintf("%d:%d/%s", p.Port, p.Target, p.Proto)
	if p.Name != "" {
		s = p.Name + ":" + s
	}
	return s
}

func (h Health) validate(s ServiceSpec) error {
	switch h.Kind {
	case "":
		return nil
	case HealthCmd:
		return commandHealth()
	case HealthTCP, HealthHTTP:
		if h.Port == 0 && !slices.ContainsFunc(s.Ports, func(p ServicePort) bool { return p.Proto == "tcp" }) {
			return Errorf(Invalid, "service %q has no tcp port to probe; add --port, or --health-port", s.Name)
		}
	}
	return h.ValidateHealth()
}

func commandHealth() error {
	return Errorf(Invalid, "a service's health can't be a command, which would run on other hosts; use attach --health-cmd there")
}

// ValidateHealth checks what does not depend on whose health it is.
func (h Health) ValidateHealth() error {
	switch h.Kind {
	case HealthTCP, HealthCmd:
	case HealthHTTP:
		if !strings.HasPrefix(h.Path, "/") || len(h.Path) > 1024 || strings.ContainsAny(h.Path, " \r\n\t") {
			return Errorf(Invalid, "health path %.40q is not valid; write http:/path", h.Path)
		}
	default:
		return Errorf(Invalid, "health check %q is unknown; use tcp or http:/path", h.Kind)
	}
	d := h.DefaultHealth()
	switch {
	case len(h.Command) > 4096:
		return Errorf(Invalid, "the health command has %d characters; use at most 4096", len(h.Command))
	case d.Interval < 100*time.Millisecond || d.Interval > time.Hour || d.Timeout < 10*time.Millisecond || d.Timeout > time.Minute:
		return Errorf(Invalid, "health interval %s or timeout %s is out of range; use 100ms to 1h, and 10ms to 1m", d.Interval, d.Timeout)
	case d.Rise < 1 || d.Rise > 100 || d.Fall < 1 || d.Fall > 100:
		return Errorf(Invalid, "health thresholds %d and %d are out of range; use 1 to 100", d.Rise, d.Fall)
	}
	return nil
}

// ProbePort is the port that a service's probes go to; 0 where it has none.
func (s ServiceSpec) ProbePort() uint16 {
	if s.Health.Port != 0 {
		return s.Health.Port
	}
	for _, p := range s.Ports {
		if p.Proto == "tcp" {
			return p.Target
		}
	}
	return 0
}

// ValidatePublish checks published ports. modes are those that they may have.
func ValidatePublish(ports []Publish, modes ...PublishMode) error {
	if len(ports) > maxPublish {
		return Errorf(Invalid, "%d published ports are too many; use at most %d", len(ports), maxPublish)
	}
	for i, p := range ports {
		switch {
		case p.Target == 0 || p.Proto != "tcp" && p.Proto != "udp":
			return Errorf(Invalid, "published port %s is not valid; write [IP:]PORT:TARGET[/tcp|udp] with ports of 1 to 65535", p)
		case !slices.Contains(modes, p.Mode):
			return Errorf(Invalid, "publish mode %q is unknown; use mode=ingress or mode=local", p.Mode)
		case p.Addr.IsValid() && p.Mode == PublishIngress:
			return Errorf(Invalid, "published port %s names an address of one host, and ingress is on every node; use mode=local", p)
		}
		for _, o := range ports[:i] {
			if p.Clashes(o) {
				return Errorf(Invalid, "port %d/%s is published twice; drop one of them", p.Port, p.Proto)
			}
		}
	}
	return nil
}

// Clashes says whether two ports can't be on one host.
func (p Publish) Clashes(o Publish) bool {
	return p.Port != 0 && p.Port == o.Port && p.Proto == o.Proto && (p.covers(o.Addr) || o.covers(p.Addr))
}

// covers says whether the port is at an address, or at some of those that it stands for.
func (p Publish) covers(a netip.Addr) bool {
	return !p.Addr.IsValid() || p.Addr == a || p.Addr.IsUnspecified() && p.Addr.Is4() == a.Is4()
}

func (p Publish) String() string {
	s := fmt.Sprintf("%d:%d/%s", p.Port, p.Target, p.Proto)
	if p.Addr.IsValid() {
		s = netip.AddrPortFrom(p.Addr, p.Port).String() + fmt.Sprintf(":%d/%s", p.Target, p.Proto)
	}
	return s
}

// Ingress says whether the service is on every node.
func (s ServiceSpec) Ingress() bool {
	return slices.ContainsFunc(s.Publish, func(p Publish) bool { return p.Mode == PublishIngress })
}

// Selects says whether an endpoint belongs to the service.
func (s ServiceSpec) Selects(r *Record) bool {
	if r.Service == s.Name {
		return true
	}
	for k, v := range s.Selector {
		if r.Labels[k] != v {
			return false
		}
	}
	return len(s.Selector) > 0
}
