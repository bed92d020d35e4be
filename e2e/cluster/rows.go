//go:build linux

package cluster

import (
	"net/netip"
	"time"
)

// Rows as the command line prints them with --format json; fields that no scenario needs
// are left out.

type Node struct {
	ID, Name, Addr, Role, Status, Availability, ManagerStatus, Version string
}

type Network struct {
	ID, Name, Driver, Scope   string
	VNI                       uint32
	Namespace, Bridge, Device string
	EnableIPv6                bool
	MTU                       int
	IPAM                      struct {
		Config []struct{ Subnet netip.Prefix }
	}
	Participants []struct{ Name string }
	Endpoints    []Endpoint
}

type Endpoint struct {
	ID, Name, Node, Network, MAC, State string
	Health                              string
	NodeID, NetworkID                   string
	IPv4, IPv6                          netip.Prefix
	Interface, Namespace                string
}

// Service is a row of service ls.
type Service struct {
	ID, Name, Network, Mode string
	VIPs                    []netip.Addr
	Ports                   []struct {
		Name, Proto  string
		Port, Target int
	}
	Publish []struct {
		Proto, Mode  string
		Port, Target int
	}
	Selector, Labels map[string]string
	Health           struct{ Kind, Interval string }
	Backends         []Backend
}

// Backend is a row of service ps.
type Backend struct {
	Workload, Node, Out, Detail string
	Used                        bool
	Since                       time.Time
	Connections                 int
}

type Status struct {
	Member   bool
	Cluster  string
	Node     string // its ID
	Name     string
	Role     string
	DataPath string
	Revision uint64
	Ports    []struct {
		Port       int
		Proto, Use string
	}
	Managers []struct {
		Name              string
		Leader, Following bool
	}
	Peers     []struct{ Name, State, LastProbe, Suspended string }
	Endpoints []Endpoint
	Problems  []string
	Counters  map[string]uint64
}

type Diagnosis struct {
	Drift    []struct{ What, Where, Found, Do string }
	Repaired map[string]int
	Findings []Finding
}

type Finding struct{ Name, Verdict, Found, Mend string }
