package overlay

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

// Domain separates the kinds of signed statement, so that a signature over one can't be
// passed off as another. It is part of what is signed, and names the format.
type Domain string

const (
	DomainLease      Domain = "lease"       // by the cluster signing key
	DomainIdentity   Domain = "identity"    // by the cluster signing key
	DomainRemoval    Domain = "removal"     // by the cluster signing key
	DomainNodeRecord Domain = "node-record" // by the node's key
	DomainRecord     Domain = "record"      // by the owner's node key
	DomainRelease    Domain = "release"     // by the key of the lease's node
	DomainRingKey    Domain = "ring-key"    // by the CA's key
)

// Range is a range of format versions, both ends included.
type Range struct {
	Min int `json:"min"`
	Max int `json:"max"`
}

func (r Range) Has(v int) bool { return r.Min <= v && v <= r.Max }
func (r Range) String() string { return fmtRange(r.Min, r.Max) }

// Hello is what peers tell each other first: who they are and which versions of each
// format they read.
type Hello struct {
	Version string           `json:"version"` // of the build, for people
	Reads   map[string]Range `json:"reads"`
}

// Reads are the versions of every wire and disk format that this build reads.
func Reads() map[string]Range {
	one := Range{1, 1}
	return map[string]Range{
		string(DomainLease): one, string(DomainIdentity): one, string(DomainRemoval): one,
		string(DomainNodeRecord): one, string(DomainRecord): one, string(DomainRelease): one, string(DomainRingKey): one,
		"command": one, "snapshot": one, "facts": one, "api": one, "join": one,
		"gossip": one, "local": one, "disk": one, "level": {1, Level},
		"floor": one, // of a record; earlier builds pass it on and do not look at it
	}
}

// Floors says whether a build goes by the floor of a record.
func (h Hello) Floors() bool { return h.Reads["floor"].Has(1) }

// CheckVersion refuses a version of a format that this build does not read, by name.
func CheckVersion(format string, v int) error {
	if r := Reads()[format]; !r.Has(v) {
		return Errorf(Unread, "format %s version %d is unknown here (this build reads %s); upgrade heddle on this node", format, v, r)
	}
	return nil
}

// MaxStatement bounds the body of a statement in bytes.
const MaxStatement = 16 << 10

// Signed is a statement as it travels: the exact bytes that were signed, so that relays
// pass on fields they do not know. Body is a JSON object with its version in "v".
type Signed struct {
	Key  KeyID  `json:"key"`
	Body []byte `json:"body"`
	Sig  []byte `json:"sig"`
}

// KeyID is the first 8 bytes of the SHA-256 of an Ed25519 public key, in hex.
type KeyID string

func KeyIDOf(pub ed25519.PublicKey) KeyID {
	sum := sha256.Sum256(pub)
	return KeyID(hex.EncodeToString(sum[:8]))
}

// Digest names a statement by the SHA-256 of its body, in hex.
func (s Signed) Digest() string {
	sum := sha256.Sum256(s.Body)
	return hex.EncodeToString(sum[:])
}

func toSign(d Domain, body []byte) []byte {
	return append([]byte("heddle "+string(d)+"\n"), body...)
}

// Sign states body, which is marshalled here, under the key. Ed25519 is deterministic: the
// same statement and key give the same bytes everywhere.
func Sign(d Domain, key ed25519.PrivateKey, body any) (Signed, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return Signed{}, Errorf(Internal, "encode %s: %w", d, err)
	}
	if len(b) > MaxStatement {
		return Signed{}, Errorf(Invalid, "%s has %d bytes; at most %d are allowed, so use fewer labels or names", d, len(b), MaxStatement)
	}
	pub := key.Public().(ed25519.PublicKey)
	return Signed{Key: KeyIDOf(pub), Body: b, Sig: ed25519.Sign(key, toSign(d, b))}, nil
}

// verify checks the signature and the version, then decodes the body into v.
func (s Signed) verify(d Domain, pub ed25519.PublicKey, v any) error {
	if len(s.Body) > MaxStatement {
		return Errorf(Invalid, "%s of %d bytes is too long", d, len(s.Body))
	}
	if len(pub) != ed25519.PublicKeySize || !ed25519.Verify(pub, toSign(d, s.Body), s.Sig) {
		return Errorf(Denied, "%s: wrong signature", d)
	}
	return s.Decode(d, v)
}

// Decode reads the body without checking the signature: for statements that were checked
// when they came in.
func (s Signed) Decode(d Domain, v any) error {
	var head struct {
		V int `json:"v"`
	}
	if err := json.Unmarshal(s.Body, &head); err != nil {
		return Errorf(Invalid, "%s: %w", d, err)
	}
	if err := CheckVersion(string(d), head.V); err != nil {
		return err
	}
	if err := json.Unmarshal(s.Body, v); err != nil {
		return Errorf(Invalid, "%s: %w", d, err)
	}
	return nil
}

// Place says which cluster, and which life of it, a statement belongs to. The epoch grows
// when a cluster is recovered after the loss of its quorum.
type Place struct {
	Cluster string `json:"cluster"`
	Epoch   uint64 `json:"epoch"`
}
