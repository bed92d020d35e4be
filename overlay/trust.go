package overlay

import (
	"crypto/ed25519"
	"slices"
	"strings"
	"unicode"
)

// RingKey is a public half of a cluster signing key, certified by the CA: CASig is the CA
// key's signature over the statement RingKeyBody under DomainRingKey.
type RingKey struct {
	ID     KeyID             `json:"id"`
	Public ed25519.PublicKey `json:"public"`
	Cert   Signed            `json:"cert"` // a RingKeyBody signed by the CA
}

// RingKeyBody is what the CA states about a signing key.
type RingKeyBody struct {
	V int `json:"v"`
	Place
	Public ed25519.PublicKey `json:"public"`
}

// Trust is what a node checks the statements of others against. It is a value: a change
// makes a new one.
type Trust struct {
	Place
	CA      ed25519.PublicKey
	Ring    []RingKey
	Removed map[NodeID]bool
}

// CertifyRingKey makes the CA's statement about a signing key.
func CertifyRingKey(ca ed25519.PrivateKey, p Place, pub ed25519.PublicKey) (RingKey, error) {
	s, err := Sign(DomainRingKey, ca, RingKeyBody{V: 1, Place: p, Public: pub})
	return RingKey{ID: KeyIDOf(pub), Public: pub, Cert: s}, err
}

// CheckRing refuses a ring with a key that the CA did not certify for this cluster.
func (t Trust) CheckRing() error {
	for _, k := range t.Ring {
		var b RingKeyBody
		if err := k.Cert.verify(DomainRingKey, t.CA, &b); err != nil {
			return err
		}
		if b.Place != t.Place || !b.Public.Equal(k.Public) || KeyIDOf(k.Public) != k.ID {
			return Errorf(Denied, "signing key %s is not certified for this cluster", k.ID)
		}
	}
	return nil
}

// bySigningKey checks a statement of the managers.
func (t Trust) bySigningKey(d Domain, s Signed, v any) error {
	for _, k := range t.Ring {
		if k.ID == s.Key {
			return s.verify(d, k.Public, v)
		}
	}
	return Errorf(Denied, "%s: signed by %q, which is no signing key of this cluster", d, s.Key)
}

func (t Trust) here(d Domain, p Place) error {
	if p != t.Place {
		return Errorf(Denied, "%s: of cluster %s epoch %d, not of this one (%s epoch %d)", d, short(p.Cluster), p.Epoch, short(t.Cluster), t.Epoch)
	}
	return nil
}

func (t Trust) member(d Domain, n NodeID) error {
	if t.Removed[n] {
		return Errorf(Denied, "%s: node %s was removed from the cluster", d, n.Short())
	}
	return nil
}

// CheckLease checks the managers' signature over a lease and that its node was not removed.
func (t Trust) CheckLease(s Signed) (Lease, error) {
	var l Lease
	if err := t.bySigningKey(DomainLease, s, &l); err != nil {
		return Lease{}, err
	}
	if err := t.here(DomainLease, l.Place); err != nil {
		return Lease{}, err
	}
	if len(l.Key) != ed25519.PublicKeySize {
		return Lease{}, Errorf(Invalid, "lease: no node key")
	}
	return l, t.member(DomainLease, l.Node)
}

// CheckRecord checks an endpoint record against the lease that it came with: the owner's
// signature, and that every address lies in the lease. A tombstone needs the lease for the
// owner's key alone. Whatever else is needed to judge the record is in these two statements,
// so that they can be checked in any order of arrival.
func (t Trust) CheckRecord(rec, lease Signed) (Claim, error) {
	l, err := t.CheckLease(lease)
	if err != nil {
		return Claim{}, err
	}
	return t.CheckRecordUnder(rec, lease, l)
}

// CheckRecordUnder is CheckRecord for a lease that CheckLease has passed already.
func (t Trust) CheckRecordUnder(rec, lease Signed, l Lease) (Claim, error) {
	var r Record
	if err := rec.verify(DomainRecord, l.Key, &r); err != nil {
		return Claim{}, err
	}
	if err := t.here(DomainRecord, r.Place); err != nil {
		return Claim{}, err
	}
	if r.Owner != l.Node || r.Network != l.Network {
		return Claim{}, Errorf(Denied, "record: not of the lease's node and network")
	}
	if err := r.validate(); err != nil {
		return Claim{}, err
	}
	if err := t.member(DomainRecord, r.Owner); err != nil {
		return Claim{}, err
	}
	c := Claim{Record: r, Signed: rec, Lease: lease}
	for _, ip := range r.IPs {
		i, ok := l.Granted(ip)
		if !ok {
			return Claim{}, Errorf(Denied, "record: address %s is outside the lease of node %s", ip, r.Owner.Short())
		}
		c.Granted = append(c.Granted, i)
	}
	return c, nil
}

// CheckRelease checks a release against the key of the node whose lease it is about.
func (t Trust) CheckRelease(s Signed, node NodeID, key ed25519.PublicKey) (Release, error) {
	var r Release
	if err := s.verify(DomainRelease, key, &r); err != nil {
		return Release{}, err
	}
	if err := t.here(DomainRelease, r.Place); err != nil {
		return Release{}, err
	}
	if r.Node != node {
		return Release{}, Errorf(Denied, "release: of another node's lease")
	}
	for _, g := range r.Grants {
		if !g.First.IsValid() || g.First.BitLen() != g.Last.BitLen() || g.Last.Less(g.First) || g.First.Zone() != "" || g.Last.Zone() != "" {
			return Release{}, Errorf(Invalid, "release: %s-%s is no run of addresses", g.First, g.Last)
		}
	}
	return r, nil
}

// maxHealth bounds what a record says of an endpoint's health, in bytes. People are shown it.
const maxHealth = 512

func (r Record) validate() error {
	switch {
	case !ValidID(string(r.Endpoint)) || !ValidID(string(r.Network)) || !ValidID(string(r.Owner)):
		return Errorf(Invalid, "record: malformed ID")
	case r.Number == 0 || r.Incarnation == 0:
		return Errorf(Invalid, "record: no number")
	case r.Floor >= r.Number:
		return Errorf(Invalid, "record: a floor that is not below it")
	case r.Deleted && (len(r.IPs) > 0 || len(r.Names) > 0):
		return Errorf(Invalid, "record: a tombstone with addresses or names")
	case !r.Deleted && (!r.MAC.IsUnicast() || len(r.IPs) == 0):
		return Errorf(Invalid, "record: no unicast MAC or no address")
	case !r.Deleted && ValidateName("workload", r.Workload) != nil:
		return Errorf(Invalid, "record: malformed workload name")
	case len(r.Health) > maxHealth || strings.ContainsFunc(r.Health, unicode.IsControl):
		return Errorf(Invalid, "record: malformed health")
	}
	for i, ip := range r.IPs {
		if slices.Contains(r.IPs[:i], ip) {
			return Errorf(Invalid, "record: address %s is there twice", ip)
		}
	}
	for _, n := range r.Names {
		if ValidateName("workload", n) != nil {
			return Errorf(Invalid, "record: malformed name %.64q", n)
		}
	}
	return nil
}

// CheckIdentity checks the managers' statement of a node's key.
func (t Trust) CheckIdentity(s Signed) (Identity, error) {
	var id Identity
	if err := t.bySigningKey(DomainIdentity, s, &id); err != nil {
		return Identity{}, err
	}
	if err := t.here(DomainIdentity, id.Place); err != nil {
		return Identity{}, err
	}
	if len(id.Key) != ed25519.PublicKeySize || !ValidID(string(id.Node)) {
		return Identity{}, Errorf(Invalid, "identity: malformed")
	}
	return id, t.member(DomainIdentity, id.Node)
}

// CheckNode checks a node record against the identity that it came with.
func (t Trust) CheckNode(s SignedNode) (NodeRecord, Identity, error) {
	id, err := t.CheckIdentity(s.Identity)
	if err != nil {
		return NodeRecord{}, Identity{}, err
	}
	var r NodeRecord
	if err := s.Record.verify(DomainNodeRecord, id.Key, &r); err != nil {
		return NodeRecord{}, Identity{}, err
	}
	if err := t.here(DomainNodeRecord, r.Place); err != nil {
		return NodeRecord{}, Identity{}, err
	}
	if r.Node != id.Node || r.Number == 0 || !r.DataPath().IsValid() {
		return NodeRecord{}, Identity{}, Errorf(Invalid, "node record: not of the identity's node, or without number or data-path address")
	}
	return r, id, nil
}

// CheckRemoval checks the managers' statement that a node is out.
func (t Trust) CheckRemoval(s Signed) (Removal, error) {
	var r Removal
	if err := t.bySigningKey(DomainRemoval, s, &r); err != nil {
		return Removal{}, err
	}
	return r, t.here(DomainRemoval, r.Place)
}
