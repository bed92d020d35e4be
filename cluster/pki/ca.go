package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

const (
	caLife   = 20 * 365 * 24 * time.Hour
	certLife = 90 * 24 * time.Hour

	// Skew is how far two clocks may differ where dates count at all.
	Skew = time.Hour
)

// Subject is what a certificate says about the node that holds it.
type Subject struct {
	overlay.Place
	Node     overlay.NodeID
	Role     overlay.Role
	Revision uint64 // of the managers' state when it was signed; a later change of the role revokes it
}

func (s Subject) uri() *url.URL {
	q := url.Values{"epoch": {strconv.FormatUint(s.Epoch, 10)}, "rev": {strconv.FormatUint(s.Revision, 10)}}
	return &url.URL{Scheme: "heddle", Host: s.Cluster, Path: "/" + string(s.Role) + "/" + string(s.Node), RawQuery: q.Encode()}
}

// SubjectOf reads the subject of a certificate. It checks the form, not the signature.
func SubjectOf(cert *x509.Certificate) (Subject, error) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "heddle" {
		return Subject{}, overlay.Errorf(overlay.Denied, "the certificate is not one of a heddle node")
	}
	u := cert.URIs[0]
	role, node, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	q := u.Query()
	s := Subject{Place: overlay.Place{Cluster: u.Host}, Node: overlay.NodeID(node), Role: overlay.Role(role)}
	var err1, err2 error
	s.Epoch, err1 = strconv.ParseUint(q.Get("epoch"), 10, 64)
	s.Revision, err2 = strconv.ParseUint(q.Get("rev"), 10, 64)
	if err1 != nil || err2 != nil || s.Cluster == "" || !overlay.ValidID(node) || (s.Role != overlay.Manager && s.Role != overlay.Worker) {
		return Subject{}, overlay.Errorf(overlay.Denied, "the certificate's subject %q is malformed", u)
	}
	return s, nil
}

// CA is a cluster's certificate authority.
type CA struct {
	Cert *x509.Certificate
	Key  ed25519.PrivateKey
}

// NewCA makes the CA of a cluster: self-signed, valid for 20 years.
func NewCA(cluster string, now time.Time) (CA, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return CA{}, fmt.Errorf("make the CA's key: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "heddle " + cluster},
		NotBefore:             now.Add(-Skew),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, pub, key)
	if err != nil {
		return CA{}, fmt.Errorf("make the CA's certificate: %w", err)
	}
	return LoadCA(der, key)
}

// LoadCA is the CA of a certificate and its key.
func LoadCA(der []byte, key ed25519.PrivateKey) (CA, error) {
	cert, err := parseCA(der)
	if err != nil {
		return CA{}, err
	}
	if len(key) != ed25519.PrivateKeySize || !cert.PublicKey.(ed25519.PublicKey).Equal(key.Public()) {
		return CA{}, overlay.Errorf(overlay.Internal, "the CA's key does not belong to its certificate")
	}
	return CA{cert, key}, nil
}

func parseCA(der []byte) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, overlay.Errorf(overlay.Denied, "the CA's certificate can't be read: %w", err)
	}
	if _, ok := cert.PublicKey.(ed25519.PublicKey); !ok || !cert.IsCA {
		return nil, overlay.Errorf(overlay.Denied, "the CA's certificate is not that of a heddle cluster")
	}
	return cert, nil
}

// Sign makes the certificate of a node from its public key alone: valid for 90 days, from an
// hour back.
func (c CA) Sign(s Subject, pub ed25519.PublicKey, now time.Time) ([]byte, error) {
	if len(pub) != ed25519.PublicKeySize || !overlay.ValidID(string(s.Node)) {
		return nil, overlay.Errorf(overlay.Invalid, "sign a certificate: malformed node ID or key")
	}
	t := &x509.Certificate{
		SerialNumber: serial(),
		NotBefore:    now.Add(-Skew),
		NotAfter:     now.Add(certLife),
		URIs:         []*url.URL{s.uri()},
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, c.Cert, pub, c.Key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of node %s: %w", s.Node.Short(), err)
	}
	return der, nil
}

// Digest names a CA in join tokens: the SHA-256 of its certificate.
func Digest(caDER []byte) [sha256.Size]byte { return sha256.Sum256(caDER) }

// NeedsRenewal says whether half of the certificate's life is over.
func NeedsRenewal(cert *x509.Certificate, now time.Time) bool {
	return now.After(cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 2))
}

// serial draws 127 random bits, so that the number is positive (RFC 5280, section 4.1.2.2).
func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] &= 0x7f
	b[15] |= 1
	return new(big.Int).SetBytes(b[:])
}
