// Package own keeps the networks of a single node, which need no cluster: what managers are for a
// cluster's networks, it is for those. To an agent it is facts, control and peers.
//
// A node's own leases and records are signed by itself. Nobody else ever reads them.
package own

import (
	"crypto/ed25519"
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/agent"
	"github.com/heddle-net/heddle/overlay/ipam"
	"github.com/heddle-net/heddle/overlay/rows"
)

// Pool4 is where IPv4 subnets come from that nobody names, each a /24. It is beside that of clusters.
var Pool4 = netip.MustParsePrefix("10.96.0.0/12")

const (
	bits4 = 24
	bits6 = 64
)

// State is what lasts.
type State struct {
	V        int       `json:"v"`
	Revision uint64    `json:"revision"` // counts changes
	Networks []Network `json:"networks"`
}

// Network is one network, with the addresses that the agent may use.
type Network struct {
	overlay.Network
	Grants []overlay.Grant `json:"grants,omitempty"`
}

// Store keeps the state on the node's disk.
type Store interface {
	SaveOwn(State) error
	LoadOwn() (State, error)
}

// Config is what Networks work with. All fields are required.
type Config struct {
	Self   overlay.NodeID
	Name   string // of the node
	Key    ed25519.PrivateKey
	Store  Store
	Routes func() ([]netip.Prefix, error) // the destinations that the host routes
	Random func([]byte)                   // fills the slice with random bytes
}

// Networks are a node's own networks. It is safe for concurrent use.
type Networks struct {
	Config
	changed chan struct{} // size 1: the facts
	said    chan struct{} // size 1: the claims

	mu       sync.Mutex
	state    State
	facts    *overlay.Facts
	claims   map[overlay.NetworkID]map[overlay.EndpointID]*overlay.Claim
	revision uint64 // of claims
}

// Open loads the networks that the node has.
func Open(c Config) (*Networks, error) {
	n := &Networks{Config: c, changed: make(chan struct{}, 1), said: make(chan struct{}, 1), claims: map[overlay.NetworkID]map[overlay.EndpointID]*overlay.Claim{}}
	s, err := c.Store.LoadOwn()
	if err != nil {
		return nil, err
	}
	n.facts, err = n.factsOf(s)
	n.state = s
	return n, err
}

// Create makes a network.
func (n *Networks) Create(spec overlay.NetworkSpec) (overlay.NetworkRow, error) {
	if spec.Driver == overlay.DriverOverlay {
		return overlay.NetworkRow{}, overlay.Errorf(overlay.NotMember, "driver %s needs a cluster, and this node is in none; make one with `heddle init`, join one with `heddle join HOST --token T`, or use -d bridge", spec.Driver)
	}
	routes, err := n.Routes()
	if err != nil {
		return overlay.NetworkRow{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, err := n.find(spec.Name); err == nil {
		return overlay.NetworkRow{}, overlay.Errorf(overlay.Exists, "network %q is there already; choose another name, or remove it with `heddle network rm %s`", spec.Name, spec.Name)
	}
	if spec, err = n.complete(spec, routes); err != nil {
		return overlay.NetworkRow{}, err
	}
	var id [16]byte
	n.Random(id[:])
	next := n.next()
	made := Network{Network: overlay.Network{ID: overlay.NewID[overlay.NetworkID](id), NetworkSpec: spec, Created: next.Revision}}
	next.Networks = append(next.Networks, made)
	if err := n.become(next); err != nil {
		return overlay.NetworkRow{}, err
	}
	return n.row(made), nil
}

// complete is the spec with subnets and gateways, beside what the host routes and what other networks
// have.
func (n *Networks) complete(spec overlay.NetworkSpec, routes []netip.Prefix) (overlay.NetworkSpec, error) {
	var used ipam.Set
	for _, o := range n.state.Networks {
		for _, s := range o.Subnets {
			used.Add(ipam.PrefixRange(s.Prefix))
		}
	}
	return ipam.Complete(spec, func(v4 bool, beside []netip.Prefix) (netip.Prefix, error) {
		pool, bits, example := Pool4, bits4, "10.20.0.0/16"
		if !v4 {
			pool, bits, example = n.pool6(), bits6, "fd00:20::/64"
		}
		p, ok := ipam.NextSubnet([]netip.Prefix{pool}, v4, bits, &used, slices.Concat(beside, routes))
		if !ok {
			return p, overlay.Errorf(overlay.Exhausted, "no subnet of %s is free beside what this host routes; name one with --subnet %s", pool, example)
		}
		return p, nil
	})
}

// pool6 is the node's own ULA prefix (RFC 4193), from its ID, which is random.
func (n *Networks) pool6() netip.Prefix {
	b := [16]byte{0: 0xfd}
	_, _ = hex.Decode(b[1:6], []byte(n.Self[:10])) // an ID is 32 hex digits
	return netip.PrefixFrom(netip.AddrFrom16(b), 48)
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// Remove removes a network that nothing is attached to.
func (n *Networks) Remove(ref string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	i, err := n.find(ref)
	if err != nil {
		return err
	}
	gone := n.state.Networks[i]
	if eps := n.row(gone).Endpoints; len(eps) > 0 {
		var names []string
		for _, e := range eps[:min(len(eps), 5)] {
			names = append(names, e.Name)
		}
		return overlay.Errorf(overlay.InUse, "network %s has %d workloads (%s); detach them first", gone.Name, len(eps), strings.Join(names, ", "))
	}
	next := n.next()
	next.Networks = slices.Delete(next.Networks, i, i+1)
	if err := n.become(next); err != nil {
		return err
	}
	delete(n.claims, gone.ID)
	return nil
}

// Row is a network's row.
func (n *Networks) Row(ref string) (overlay.NetworkRow, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i, err := n.find(ref)
	if err != nil {
		return overlay.NetworkRow{}, err
	}
	return n.row(n.state.Networks[i]), nil
}

// Rows are all networks' rows, sorted by name.
func (n *Networks) Rows() []overlay.NetworkRow {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := []overlay.NetworkRow{}
	for _, o := range n.state.Networks {
		all = append(all, n.row(o))
	}
	slices.SortFunc(all, func(a, b overlay.NetworkRow) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func (n *Networks) row(o Network) overlay.NetworkRow {
	return rows.Network(o.Network, n.facts.Nodes, n.facts.Leases[o.ID], slices.Collect(maps.Values(n.claims[o.ID])))
}

func (n *Networks) find(ref string) (int, error) {
	all := make([]int, len(n.state.Networks))
	for i := range all {
		all[i] = i
	}
	return overlay.Find("network", ref, all, func(i int) (id, name string) {
		return string(n.state.Networks[i].ID), n.state.Networks[i].Name
	})
}

// next is a copy of the state, for a change.
func (n *Networks) next() State {
	return State{V: 1, Revision: n.state.Revision + 1, Networks: slices.Clone(n.state.Networks)}
}

// become makes a state the one that counts, once it is on the disk.
func (n *Networks) become(s State) error {
	f, err := n.factsOf(s)
	if err != nil {
		return err
	}
	if err := n.Store.SaveOwn(s); err != nil {
		return err
	}
	n.state, n.facts = s, f
	signal(n.changed)
	return nil
}

// factsOf is a state as an agent takes it: a cluster of one node, whose managers are itself.
func (n *Networks) factsOf(s State) (*overlay.Facts, error) {
	f := &overlay.Facts{
		V: 1, Revision: s.Revision, Level: overlay.Level,
		Nodes:    map[overlay.NodeID]overlay.Node{n.Self: {ID: n.Self, Name: n.Name, Number: 1, Key: n.Key.Public().(ed25519.PublicKey), Availability: overlay.Active}},
		Networks: map[overlay.NetworkID]overlay.Network{}, Leases: map[overlay.NetworkID]map[overlay.NodeID]overlay.Signed{},
	}
	for _, o := range s.Networks {
		lease, err := overlay.Sign(overlay.DomainLease, n.Key, overlay.Lease{V: 1, Network: o.ID, Node: n.Self, Key: f.Nodes[n.Self].Key, Index: s.Revision, Grants: o.Grants})
		if err != nil {
			return nil, overlay.Errorf(overlay.Exhausted, "network %s is in use by too many separate runs of addresses; detach workloads, or use another network: %w", o.Name, err)
		}
		f.Networks[o.ID] = o.Network
		f.Leases[o.ID] = map[overlay.NodeID]overlay.Signed{n.Self: lease}
	}
	return f, nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Facts are the networks as an agent takes them.
func (n *Networks) Facts() *overlay.Facts {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.facts
}

// Changed signals newer facts.
func (n *Networks) Changed() <-chan struct{} { return n.changed }

var _ agent.Facts = (*Networks)(nil)
