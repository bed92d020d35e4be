package state

import (
	"crypto/ed25519"
	"crypto/x509"
	"maps"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/overlay"
)

func (c Init) apply(t *tables, index uint64) (ref, error) {
	if t.Cluster != "" {
		return ref{}, overlay.Errorf(overlay.Exists, "this is cluster %s already; `heddle leave` it before another `heddle init`", t.Cluster)
	}
	if err := c.validate(); err != nil {
		return ref{}, err
	}
	next := cluster{
		Place: c.Place, Params: c.Params, CA: c.CA, CAKey: c.CAKey, Signing: c.SigningKeys, GossipKeys: c.GossipKeys,
		NextNumber: 1, NextVNI: overlay.MinVNI,
	}
	for _, seed := range c.SigningKeys {
		k, err := overlay.CertifyRingKey(c.CAKey, c.Place, ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))
		if err != nil {
			return ref{}, err
		}
		next.Ring = append(next.Ring, k)
	}
	none := t.cluster
	t.setCluster(next)
	if err := t.takeIn(c.Node, overlay.Manager, "", index); err != nil {
		t.setCluster(none)
		return ref{}, err
	}
	t.level = max(1, c.Level)
	t.changed(key{table: tKeys}, key{table: tLevel})
	return ref{Node: c.Node.ID}, nil
}

func (c Init) validate() error {
	bad := func(format string, args ...any) error {
		return overlay.Errorf(overlay.Invalid, "make a cluster: "+format, args...)
	}
	cert, err := x509.ParseCertificate(c.CA)
	pub := publicOf(c.CAKey)
	switch {
	case c.Cluster == "" || len(c.Cluster) > 64 || c.Epoch == 0:
		return bad("cluster ID %.64q and epoch %d name no cluster", c.Cluster, c.Epoch)
	case err != nil:
		return bad("the CA's certificate can't be read: %w", err)
	case pub == nil || !pub.Equal(cert.PublicKey):
		return bad("the CA's key does not belong to its certificate")
	case len(c.SigningKeys) == 0 || len(c.SigningKeys) > 8 || !allOfLen(c.SigningKeys, ed25519.SeedSize):
		return bad("the signing keys are no 1 to 8 seeds of %d bytes", ed25519.SeedSize)
	case len(c.GossipKeys) == 0 || len(c.GossipKeys) > 8 || !allOfLen(c.GossipKeys, 32):
		return bad("the gossip keys are no 1 to 8 keys of 32 bytes")
	case c.Level < 0 || c.Level > Level:
		return bad("feature level %d is unknown", c.Level)
	case c.Params.DataPathPort == 0:
		return bad("there is no data-path port; use 4789")
	}
	return checkPools(c.Params)
}

// checkPools refuses pools that no subnet can be cut from.
func checkPools(params overlay.Params) error {
	if len(params.Pools) > 64 {
		return overlay.Errorf(overlay.Invalid, "%d address pools are too many; use at most 64", len(params.Pools))
	}
	for _, p := range params.Pools {
		bits, most := params.PoolBits4, 30
		if p.Addr().Is6() {
			bits, most = params.PoolBits6, 126
		}
		if !p.IsValid() || p.Addr().Is4In6() || p != p.Masked() || bits < p.Bits() || bits > most {
			return overlay.Errorf(overlay.Invalid, "address pool %s can't be cut into /%d subnets; use a mask length from the pool's to %d", p, bits, most)
		}
		first := overlay.NetworkSpec{
			Name: "pool", Driver: overlay.DriverOverlay, IPv4: true, IPv6: true,
			Subnets: []overlay.Subnet{{Prefix: netip.PrefixFrom(p.Addr(), bits)}},
		}
		if err := first.Validate(); err != nil {
			return overlay.Errorf(overlay.Invalid, "address pool %s: %w", p, err)
		}
	}
	return nil
}

// publicOf is the public half of a private key, or nil when the key is malformed.
func publicOf(k ed25519.PrivateKey) ed25519.PublicKey {
	if len(k) != ed25519.PrivateKeySize || !k.Equal(ed25519.NewKeyFromSeed(k.Seed())) {
		return nil
	}
	return k.Public().(ed25519.PublicKey)
}

func allOfLen(keys [][]byte, n int) bool {
	return !slices.ContainsFunc(keys, func(k []byte) bool { return len(k) != n })
}

// takeIn makes the row of a node that comes in. The caller has checked its right to.
func (t *tables) takeIn(n NewNode, role overlay.Role, token string, index uint64) error {
	switch {
	case !overlay.ValidID(string(n.ID)) || len(n.Key) != ed25519.PublicKeySize:
		return overlay.Errorf(overlay.Invalid, "node %.32q has a malformed ID or key", string(n.ID))
	case !n.Control.IsValid() || !n.Gossip.IsValid() || n.Control.Port() == 0 || n.Gossip.Port() == 0:
		return overlay.Errorf(overlay.Invalid, "node %.63q says no address where it answers", n.Name)
	}
	if err := overlay.ValidateName("node", n.Name); err != nil {
		return err
	}
	if other, taken := t.byName[n.Name]; taken {
		return overlay.Errorf(overlay.Exists, "a node named %q is in the cluster already (%s); give this host another name (`hostnamectl set-hostname`), or `heddle node rm %s` if the other is gone",
			n.Name, other.Short(), n.Name)
	}
	id, err := t.sign(overlay.DomainIdentity, overlay.Identity{V: 1, Place: t.Place, Node: n.ID, Key: n.Key, Number: t.NextNumber})
	if err != nil {
		return err
	}
	t.nodes.edit()[n.ID] = overlay.Node{
		ID: n.ID, Name: n.Name, Key: n.Key, Number: t.NextNumber, Role: role, Availability: overlay.Active,
		Control: n.Control, Gossip: n.Gossip, Identity: id, Index: index,
	}
	t.members.edit()[n.ID] = member{Name: n.Name, Token: token}
	t.byName[n.Name] = n.ID
	t.NextNumber++
	t.changed(key{table: tNode, node: n.ID}, key{table: tRole, node: n.ID})
	return nil
}

func (c Join) apply(t *tables, index uint64) (ref, error) {
	tok, known := t.tokens.m[t.byHash[string(c.Token)]]
	if !known {
		return ref{}, overlay.Errorf(overlay.Denied, "the join token is unknown here; make one with `heddle token create worker` on a manager")
	}
	if _, out := t.removals.m[c.Node.ID]; out {
		return ref{}, overlay.Errorf(overlay.Denied, "node %s was removed from the cluster and can't come back as it is; run `heddle leave --force` on it and join again", c.Node.ID.Short())
	}
	row, again := t.nodes.m[c.Node.ID]
	if again && !row.Key.Equal(c.Node.Key) {
		return ref{}, overlay.Errorf(overlay.Denied, "node %s is in the cluster with another key; if this host was copied from that one, run `heddle leave --force` here and join again", c.Node.ID.Short())
	}
	if again && t.members.m[row.ID].Token == tok.ID && !tok.Revoked { // a retry, however late
		return ref{Node: row.ID}, nil
	}
	if err := tok.check(c.Now); err != nil {
		return ref{}, err
	}
	if again {
		return ref{Node: row.ID}, nil
	}
	if err := t.takeIn(c.Node, tok.Role, tok.ID, index); err != nil {
		return ref{}, err
	}
	tok.Used++
	t.tokens.edit()[tok.ID] = tok
	t.changed(key{table: tToken})
	return ref{Node: c.Node.ID}, nil
}

// update replaces a node's row by what f makes of it.
func (t *tables) update(id overlay.NodeID, index uint64, f func(*overlay.Node) error) (ref, error) {
	old, ok := t.nodes.m[id]
	if !ok {
		return ref{}, noNode(id)
	}
	row := old
	if err := f(&row); err != nil {
		return ref{}, err
	}
	if row.Role != old.Role {
		t.changed(key{table: tRole, node: id})
	}
	if row.Role != old.Role || row.Availability != old.Availability || row.Control != old.Control || row.Gossip != old.Gossip {
		row.Index = index
		t.nodes.edit()[id] = row
		t.changed(key{table: tNode, node: id})
	}
	return ref{Node: id}, nil
}

// lastManager says whether the cluster has no other manager than this node.
func (t *tables) lastManager(id overlay.NodeID) bool {
	for _, n := range t.nodes.m {
		if n.Role == overlay.Manager && n.ID != id {
			return false
		}
	}
	return t.nodes.m[id].Role == overlay.Manager
}

func (c SetRole) apply(t *tables, index uint64) (ref, error) {
	return t.update(c.Node, index, func(n *overlay.Node) error {
		switch {
		case c.Role != overlay.Manager && c.Role != overlay.Worker:
			return overlay.Errorf(overlay.Invalid, "%.16q is no role; use manager or worker", string(c.Role))
		case c.Role == overlay.Worker && t.lastManager(n.ID):
			return overlay.Errorf(overlay.InUse, "node %s is the last manager; promote another one first", n.Name)
		}
		n.Role = c.Role
		return nil
	})
}

func (c SetAvailability) apply(t *tables, index uint64) (ref, error) {
	return t.update(c.Node, index, func(n *overlay.Node) error {
		switch c.Availability {
		case overlay.Active, overlay.Pause, overlay.Drain:
			n.Availability = c.Availability
			return nil
		}
		return overlay.Errorf(overlay.Invalid, "%.16q is no availability; use active, pause or drain", string(c.Availability))
	})
}

func (c UpdateNode) apply(t *tables, index uint64) (ref, error) {
	return t.update(c.Node, index, func(n *overlay.Node) error {
		for _, a := range []struct {
			to   *netip.AddrPort
			from netip.AddrPort
		}{{&n.Control, c.Control}, {&n.Gossip, c.Gossip}} {
			switch {
			case !a.from.IsValid():
			case a.from.Port() == 0:
				return overlay.Errorf(overlay.Invalid, "address %s of node %s has no port", a.from, n.Name)
			default:
				*a.to = a.from
			}
		}
		return nil
	})
}

func (c RemoveNode) apply(t *tables, index uint64) (ref, error) {
	if _, out := t.removals.m[c.Node]; out {
		return ref{Node: c.Node}, nil
	}
	row, ok := t.nodes.m[c.Node]
	switch {
	case !ok:
		return ref{}, noNode(c.Node)
	case t.lastManager(c.Node):
		return ref{}, overlay.Errorf(overlay.InUse, "node %s is the last manager; promote another one first", row.Name)
	}
	s, err := t.sign(overlay.DomainRemoval, overlay.Removal{V: 1, Place: t.Place, Node: c.Node, Index: index})
	if err != nil {
		return ref{}, err
	}
	if !c.Consent {
		was := t.members.m[c.Node]
		was.Removed, was.Forced = c.Now, c.Force
		t.members.edit()[c.Node] = was
	}
	t.removals.edit()[c.Node] = s
	delete(t.nodes.edit(), c.Node)
	delete(t.byName, row.Name)
	t.changed(key{table: tNode, node: c.Node}, key{table: tRemoval, node: c.Node})
	for _, id := range slices.Sorted(maps.Keys(t.leased[c.Node])) {
		t.vacate(id, c.Node, c.Consent, c.Now)
	}
	return ref{Node: c.Node}, nil
}
