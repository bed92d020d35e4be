//go:build linux

package cluster

import "net/netip"

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
	IPv4, IPv6                          netip.Prefix
	Interface, Namespace                string
}

type Status struct {
	Member   bool
	Role     string
	Revision uint64
	Ports    []struct {
		Port       int
		Proto, Use string
	}
	Managers []struct {
		Name              string
		Leader, Following bool
	}
	Peers     []struct{ Name, State, LastProbe string }
	Endpoints []Endpoint
	Problems  []string
	Counters  map[string]uint64
}
