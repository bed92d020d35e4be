package pki

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// verify checks the CA's signature and returns what the certificate says and whose key it is.
func verify(leaf, ca *x509.Certificate) (Subject, ed25519.PublicKey, error) {
	if err := ca.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature); err != nil {
		return Subject{}, nil, overlay.Errorf(overlay.Denied, "the certificate was not signed by this cluster's CA; it is of another cluster")
	}
	pub, ok := leaf.PublicKey.(ed25519.PublicKey)
	if !ok || leaf.IsCA {
		return Subject{}, nil, overlay.Errorf(overlay.Denied, "the certificate is not one of a node")
	}
	s, err := SubjectOf(leaf)
	return s, pub, err
}

// checkDates forgives an hour of skew.
func checkDates(leaf *x509.Certificate, now time.Time) error {
	if now.Before(leaf.NotBefore.Add(-Skew)) {
		return overlay.Errorf(overlay.Denied, "the manager's certificate is not valid before %s; set this host's clock, or the manager's", leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	if now.After(leaf.NotAfter.Add(Skew)) {
		return overlay.Errorf(overlay.Denied, "the manager's certificate expired at %s; set this host's clock, or the manager's", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// leafOf is the certificate that the other side of a connection showed.
func leafOf(cs tls.ConnectionState) (*x509.Certificate, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, overlay.Errorf(overlay.Denied, "the other side showed no certificate")
	}
	return cs.PeerCertificates[0], nil
}

// PeerSubject is who the other side of a verified connection is.
func PeerSubject(cs tls.ConnectionState) (Subject, error) {
	leaf, err := leafOf(cs)
	if err != nil {
		return Subject{}, err
	}
	return SubjectOf(leaf)
}

// Peer is the node at the other side of a verified connection.
func Peer(cs tls.ConnectionState) (overlay.NodeID, error) {
	s, err := PeerSubject(cs)
	return s.Node, err
}

// RevokedBy judges certificates by the newest facts: those of removed nodes, and a manager's
// that was signed before the node became a worker.
func RevokedBy(facts func() *overlay.Facts) func(Subject) bool {
	return func(s Subject) bool {
		f := facts()
		if f == nil {
			return false
		}
		if _, gone := f.Removals[s.Node]; gone {
			return true
		}
		row, known := f.Nodes[s.Node]
		return known && s.Role == overlay.Manager && row.Role == overlay.Worker && row.Index > s.Revision
	}
}
