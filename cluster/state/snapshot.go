package state

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"maps"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/ipam"
)

// Snapshot is a captured state. It is immutable. It holds the cluster's secrets.
type Snapshot struct{ f snapshotFile }

// snapshotFile is the format "snapshot". Its level is the cluster's: a build that reads the
// cluster's commands reads its snapshots. What follows from these rows is not in it.
type snapshotFile struct {
	V        int    `json:"v"`
	Level    int    `json:"level"`
	Applied  uint64 `json:"applied"`
	Revision uint64 `json:"revision"`
	cluster
	Nodes    map[overlay.NodeID]overlay.Node        `json:"nodes"`
	Members  map[overlay.NodeID]member              `json:"members"`
	Removals map[overlay.NodeID]overlay.Signed      `json:"removals"`
	Networks map[overlay.NetworkID]snapshotNetwork  `json:"networks"`
	Tokens   map[string]Token                       `json:"tokens"`
	Services map[overlay.ServiceID]*overlay.Service `json:"services,omitempty"`
	Done     []outcome                              `json:"done"` // oldest first
}

type snapshotNetwork struct {
	Network overlay.Network                    `json:"network"`
	Leases  map[overlay.NodeID]overlay.Signed  `json:"leases"`
	Fenced  map[overlay.NodeID][]overlay.Grant `json:"fenced,omitempty"`
	Resting []rest                             `json:"resting,omitempty"`
}

// Snapshot captures the state. Its Write may run while commands are applied.
func (s *State) Snapshot() *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.t
	f := snapshotFile{
		V: 1, Level: t.level, Applied: t.applied, Revision: t.revision, cluster: t.cluster,
		Nodes: t.nodes.share(), Members: t.members.share(), Removals: t.removals.share(), Tokens: t.tokens.share(), Services: t.services.share(),
		Networks: make(map[overlay.NetworkID]snapshotNetwork, len(t.networks.m)), Done: t.done.ordered(),
	}
	for id, n := range t.networks.m {
		f.Networks[id] = snapshotNetwork{n.def, n.leases, n.fenced, n.resting}
	}
	return &Snapshot{f}
}

// Write writes the snapshot: format "snapshot". The same state gives the same bytes.
func (s *Snapshot) Write(w io.Writer) error {
	if err := json.NewEncoder(w).Encode(s.f); err != nil {
		return fmt.Errorf("write the snapshot: %w", err)
	}
	return nil
}

// Restore replaces the state by what Write wrote, all of it or nothing. Every error but that
// of the reader is one for which [Fatal] is true.
func (s *State) Restore(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("read the snapshot: %w", err)
	}
	var head struct{ V, Level int }
	if err := json.Unmarshal(b, &head); err != nil {
		return fatalf("the snapshot can't be read: %w", err)
	}
	if err := readable("snapshot", head.V, head.Level); err != nil {
		return err
	}
	var f snapshotFile
	if err := strict(b, &f); err != nil {
		return fatalf("the snapshot can't be read: %w", err)
	}
	t, err := f.tables()
	if err != nil {
		return fatalf("the snapshot does not hold together: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.t, s.journal = t, journal{floor: t.revision}
	s.announce()
	return nil
}

// tables checks the rows and makes what follows from them.
func (f *snapshotFile) tables() (*tables, error) {
	t := newTables()
	if err := f.check(); err != nil {
		return nil, err
	}
	t.applied, t.revision, t.level = f.Applied, f.Revision, f.Level
	t.setCluster(f.cluster)
	for id, row := range f.Nodes {
		if _, twice := t.byName[row.Name]; twice || row.ID != id {
			return nil, fmt.Errorf("node %s is there twice, or under another ID", row.Name)
		}
		t.nodes.m[id], t.byName[row.Name] = row, id
	}
	maps.Copy(t.members.m, f.Members)
	maps.Copy(t.removals.m, f.Removals)
	for id, tok := range f.Tokens {
		if _, twice := t.byHash[string(tok.Hash)]; twice || tok.ID != id {
			return nil, fmt.Errorf("token %s is there twice, or under another ID", id)
		}
		t.tokens.m[id], t.byHash[string(tok.Hash)] = tok, id
	}
	for id, n := range f.Networks {
		if err := t.restoreNetwork(id, n); err != nil {
			return nil, fmt.Errorf("network %s: %w", n.Network.Name, err)
		}
	}
	for id, s := range f.Services {
		if s == nil {
			return nil, fmt.Errorf("service %s is nothing", id)
		}
		if err := t.restoreService(id, *s); err != nil {
			return nil, fmt.Errorf("service %s: %w", s.Name, err)
		}
	}
	for _, o := range f.Done {
		t.done.add(o)
	}
	return t, nil
}

func (f *snapshotFile) check() error {
	switch pub := publicOf(f.CAKey); {
	case f.Revision > f.Applied:
		return fmt.Errorf("revision %d is above the newest entry %d", f.Revision, f.Applied)
	case len(f.Done) > remembered:
		return fmt.Errorf("%d requests are too many", len(f.Done))
	case f.Cluster == "" && len(f.Signing)+len(f.Nodes)+len(f.Removals)+len(f.Networks)+len(f.Tokens)+len(f.Services) > 0:
		return fmt.Errorf("there are rows, but no cluster")
	case f.Cluster != "" && (pub == nil || len(f.Signing) == 0 || !allOfLen(f.Signing, ed25519.SeedSize)):
		return fmt.Errorf("a key is malformed")
	}
	return nil
}

func (t *tables) restoreNetwork(id overlay.NetworkID, f snapshotNetwork) error {
	n := &network{def: f.Network, leases: clonedAll(f.Leases), fenced: clonedAll(f.Fenced), resting: f.Resting}
	if err := n.def.Validate(); err != nil {
		return err
	}
	if _, twice := t.netName[n.def.Name]; twice || t.vnis[n.def.VNI] || n.def.ID != id {
		return fmt.Errorf("its name or VNI is there twice, or it is under another ID")
	}
	for _, grants := range n.fenced {
		if err := checkGrants(n.def, grants); err != nil {
			return err
		}
	}
	for _, r := range n.resting {
		if err := checkGrants(n.def, []overlay.Grant{{First: r.First, Last: r.Last}}); err != nil {
			return err
		}
	}
	t.networks.m[id] = n
	t.index(id)
	p := t.pools[id]
	for node, s := range n.leases {
		var l overlay.Lease
		if err := s.Decode(overlay.DomainLease, &l); err != nil {
			return err
		}
		if _, member := t.nodes.m[node]; !member || l.Node != node || l.Network != id {
			return fmt.Errorf("the lease of node %s is another's", node.Short())
		}
		if err := checkGrants(n.def, l.Grants); err != nil {
			return err
		}
		for _, g := range l.Grants {
			if p.used.Free(ipam.Range{First: g.First, Last: g.Last}) != (ipam.Range{First: g.First, Last: g.Last}).Len() {
				return fmt.Errorf("%s-%s is leased twice, or reserved", g.First, g.Last)
			}
			p.hold([]overlay.Grant{g})
		}
		p.held[node] = l.Grants
		t.enter(node, id)
	}
	return nil
}

func checkGrants(n overlay.Network, grants []overlay.Grant) error {
	for _, g := range grants {
		s, ok := n.SubnetOf(g.First)
		if !ok || !s.Prefix.Contains(g.Last) || g.Last.Less(g.First) {
			return fmt.Errorf("%s-%s is no run of its addresses", g.First, g.Last)
		}
	}
	return nil
}

// clonedAll is a copy of the map, which is not nil.
func clonedAll[K comparable, V any](m map[K]V) map[K]V {
	out := make(map[K]V, len(m))
	maps.Copy(out, m)
	return out
}
