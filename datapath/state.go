package datapath

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// State is what the kernel holds of heddle's objects, by key. A row that is there but not
// as heddle would write it (settings of a namespace changed, an entry in the bridge without
// its half in the VXLAN device) differs from every wanted row, so that it is set again.
type State struct {
	Namespaces map[string]Namespace
	Links      map[LinkKey]LinkState
	Locks      map[LinkKey]Lock
	Addresses  map[AddressKey]Address
	Neighbors  map[NeighborKey]Neighbor
	FDB        map[FDBKey]FDBEntry
	Routes     map[RouteKey]Route
	WGPeers    map[WGPeerKey]WGPeerState
	Filters    map[NS]FilterState
	Egress     Egress // zero also where a part of it is missing
	Entrances  map[NS]EntranceState

	// Behind is the last MAC that was behind an address, whether its entry is there or gone:
	// somebody may remember it. The kernel does not tell; see Remember.
	Behind map[NeighborKey]MAC
	// Served are the namespaces that an earlier life of this process looked after: what stood behind
	// their addresses then is not known. See Inherit.
	Served map[NS]bool
	// Asked is the Endpoint that was last written for a peer. The kernel tells only where it has
	// heard the peer since; see Remember.
	Asked map[WGPeerKey]netip.AddrPort

	settled *Config // see Settle; nil where nothing is known
}

// LinkKey is the key of a link, or with an empty name that of a namespace.
type LinkKey struct {
	NS   NS
	Name string
}

// AddressKey is the key of an address.
type AddressKey struct {
	NS     NS
	Link   string
	Prefix netip.Prefix
}

// NeighborKey is the key of a neighbour entry.
type NeighborKey struct {
	NS   NS
	Link string
	IP   netip.Addr
}

// FDBKey is the key of a forwarding entry.
type FDBKey struct {
	NS   NS
	Link string
	MAC  MAC
}

// RouteKey is the key of a route.
type RouteKey struct {
	NS     NS
	Link   string
	Prefix netip.Prefix
	Metric int
}

// WGPeerKey is the key of a WireGuard peer.
type WGPeerKey struct {
	NS   NS
	Link string
	Key  PublicKey
}

// WGPeerState is a peer as it is: Endpoint is where WireGuard sends to.
type WGPeerState struct {
	WGPeer
	Live bool // a session stands
}

// LinkState is a link and whether it is up, with its far end.
type LinkState struct {
	Link
	Up bool
}

// FilterState is the allow-set that is loaded. Port 0 means a broken one.
type FilterState struct {
	Port    uint16
	MinVNI  uint32
	Allowed map[Allow]bool
}

// Damaged stands as the VTEP of a forwarding entry that must be deleted before it is set.
var Damaged = netip.IPv4Unspecified()

// Key is the link's key.
func (l Link) Key() LinkKey { return LinkKey{l.NS, l.Name} }

// Key is the far end's key.
func (p Peer) Key() LinkKey { return LinkKey{p.NS, p.Name} }

// Key is the address's key.
func (a Address) Key() AddressKey { return AddressKey{a.NS, a.Link, a.Prefix} }

// Key is the entry's key.
func (n Neighbor) Key() NeighborKey { return NeighborKey{n.NS, n.Link, n.IP} }

// Key is the entry's key.
func (f FDBEntry) Key() FDBKey { return FDBKey{f.NS, f.Link, f.MAC} }

// Key is the route's key.
func (r Route) Key() RouteKey { return RouteKey{r.NS, r.Link, r.Prefix, r.Metric} }

// ID is the peer's key among all devices' peers.
func (p WGPeer) ID() WGPeerKey { return WGPeerKey{p.NS, p.Link, p.Key} }

// NewState is the state of a kernel that holds nothing of heddle's.
func NewState() *State {
	return &State{
		Namespaces: map[string]Namespace{},
		Links:      map[LinkKey]LinkState{},
		Locks:      map[LinkKey]Lock{},
		Addresses:  map[AddressKey]Address{},
		Neighbors:  map[NeighborKey]Neighbor{},
		FDB:        map[FDBKey]FDBEntry{},
		Routes:     map[RouteKey]Route{},
		WGPeers:    map[WGPeerKey]WGPeerState{},
		Filters:    map[NS]FilterState{},
		Entrances:  map[NS]EntranceState{},
		Behind:     map[NeighborKey]MAC{},
		Served:     map[NS]bool{},
		Asked:      map[WGPeerKey]netip.AddrPort{},
	}
}

// Remember takes over from an older state what the kernel does not tell.
func (s *State) Remember(old *State) {
	for _, n := range s.Namespaces {
		if old.Served[n.NS()] {
			s.Served[n.NS()] = true
		}
	}
	for k, mac := range old.Behind {
		if _, known := s.Behind[k]; !known {
			s.Behind[k] = mac
		}
	}
	for k, at := range old.Asked {
		if _, there := s.WGPeers[k]; there {
			s.Asked[k] = at
		}
	}
}

// Inherit notes that nothing is known of what was before this state, the first that is read.
func (s *State) Inherit() {
	for _, n := range s.Namespaces {
		s.Served[n.NS()] = true
	}
}

// Clone is a copy that shares nothing.
func (s *State) Clone() *State {
	c := &State{
		maps.Clone(s.Namespaces), maps.Clone(s.Links), maps.Clone(s.Locks), maps.Clone(s.Addresses), maps.Clone(s.Neighbors), maps.Clone(s.FDB), maps.Clone(s.Routes),
		maps.Clone(s.WGPeers), maps.Clone(s.Filters), s.Egress, maps.Clone(s.Entrances), maps.Clone(s.Behind), maps.Clone(s.Served), maps.Clone(s.Asked), nil,
	}
	for ns, f := range c.Filters {
		f.Allowed = maps.Clone(f.Allowed)
		c.Filters[ns] = f
	}
	return c
}

// String prints the state as sorted lines, without owners of what carries no mark.
func (s *State) String() string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, n := range s.Namespaces {
		add("namespace %s owner %s", n.Name, n.Owner)
		if n.Uplink != "" {
			out[len(out)-1] += " uplink " + n.Uplink
		}
		if n.Names != "" {
			out[len(out)-1] += " names " + n.Names
		}
	}
	for _, l := range s.Links {
		add("%s", l)
	}
	for _, l := range s.Locks {
		add("lock %s", l)
	}
	for k := range s.Addresses {
		add("address %s/%s %s", k.NS, k.Link, k.Prefix)
	}
	for k, n := range s.Neighbors {
		add("neighbor %s/%s %s %s", k.NS, k.Link, k.IP, n.MAC)
	}
	for k, f := range s.FDB {
		add("fdb %s/%s %s", k.NS, k.Link, k.MAC)
		if f.VTEP.IsValid() {
			out[len(out)-1] += " dst " + f.VTEP.String()
		}
	}
	for _, r := range s.Routes {
		add("route %s", r.text())
	}
	for _, p := range s.WGPeers {
		add("wireguard peer %s at %s", p.text(), p.Endpoint)
	}
	if s.Egress != (Egress{}) {
		add("egress %s* %s %s", s.Egress.Uplinks, s.Egress.Pool4, s.Egress.Pool6)
	}
	for ns, e := range s.Entrances {
		add("entrance %s workloads %s services %s", ns, e.Workloads, e.Services)
	}
	for ns, f := range s.Filters {
		add("filter %s port %d vni %d-", ns, f.Port, f.MinVNI)
		for a := range f.Allowed {
			add("filter %s allow %s", ns, a)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n") + "\n"
}

func (l LinkState) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "link %s/%s %s mac %s mtu %d owner %s", l.NS, l.Name, l.Kind, l.MAC, l.MTU, l.Owner)
	if l.Master != "" {
		fmt.Fprintf(&b, " master %s", l.Master)
		for _, f := range []struct {
			on   bool
			name string
		}{{l.Port.Flood, "flood"}, {l.Port.BroadcastFlood, "bcast"}, {l.Port.MulticastFlood, "mcast"}, {l.Port.NeighborSuppress, "suppress"}} {
			if f.on {
				b.WriteString(" +" + f.name)
			}
		}
	}
	if l.Kind == VXLAN {
		fmt.Fprintf(&b, " vni %d port %d local %s", l.VXLAN.VNI, l.VXLAN.Port, l.VXLAN.Local)
		if l.VXLAN.Underlay != (NS{}) {
			fmt.Fprintf(&b, " over %s", l.VXLAN.Underlay)
		}
	}
	if l.Kind == WireGuard {
		fmt.Fprintf(&b, " port %d", l.WireGuard.Port)
	}
	if l.Kind == Veth {
		fmt.Fprintf(&b, " peer %s/%s mac %s mtu %d owner %s", l.Peer.NS, l.Peer.Name, l.Peer.MAC, l.Peer.MTU, l.Peer.Owner)
	}
	if l.Up {
		b.WriteString(" up")
	}
	return b.String()
}

// String is the namespace's name, or its path, or "host".
func (n NS) String() string {
	if n.Path == "" {
		return "host"
	}
	return strings.TrimPrefix(n.Path, "/run/netns/")
}
