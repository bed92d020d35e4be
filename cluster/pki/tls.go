package pki

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"sync/atomic"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// What is spoken on the control port, as TLS application protocols (RFC 7301).
const (
	ALPNJoin = "heddle-join/1" // the one without a client certificate
	ALPNAPI  = "heddle-api/1"
	ALPNRaft = "heddle-raft/1" // managers only
)

// Credentials are this node's identity in TLS. A renewed certificate takes effect with the next
// handshake. It is safe for concurrent use.
type Credentials struct {
	revoked func(Subject) bool
	now     func() time.Time
	current atomic.Pointer[active]
}

type active struct {
	*checked
	cert tls.Certificate
}

// NewCredentials takes the identity of a member. revoked says which certificates of this
// cluster are refused; see RevokedBy.
func NewCredentials(id Identity, revoked func(Subject) bool, now func() time.Time) (*Credentials, error) {
	c := &Credentials{revoked: revoked, now: now}
	return c, c.Set(id)
}

// Set replaces the identity.
func (c *Credentials) Set(id Identity) error {
	ck, err := id.check()
	if err != nil {
		return err
	}
	if !id.Member() {
		return overlay.Errorf(overlay.NotMember, "this node is in no cluster")
	}
	c.current.Store(&active{ck, tls.Certificate{Certificate: [][]byte{id.Cert, id.CA}, PrivateKey: id.Key, Leaf: ck.leaf}})
	return nil
}

// Identity is the identity in use.
func (c *Credentials) Identity() Identity { return c.current.Load().Identity }

// Subject is what this node's own certificate says.
func (c *Credentials) Subject() Subject { return c.current.Load().subject }

// NeedsRenewal says whether half of the life of this node's certificate is over.
func (c *Credentials) NeedsRenewal() bool { return NeedsRenewal(c.current.Load().leaf, c.now()) }

// Removed says whether a node is out of the cluster.
func (c *Credentials) Removed(s Subject) bool { return c.revoked(s.as(false)) }

// Manager says whether the subject counts as a manager here.
func (c *Credentials) Manager(s Subject) bool { return s.Role == overlay.Manager && !c.revoked(s) }

// rules are what a connection asks of the other side, besides a certificate of this cluster.
type rules struct {
	node    overlay.NodeID // "" is any
	manager bool
	epoch   bool // of this epoch
	dates   bool
	removed bool // revoked ones too: whoever answers must look again
}

func (c *Credentials) check(leaf *x509.Certificate, r rules) error {
	me := c.current.Load()
	s, _, err := verify(leaf, me.ca)
	switch {
	case err != nil:
		return err
	case s.Cluster != me.Cluster:
		return overlay.Errorf(overlay.Denied, "node %s is of another cluster", s.Node.Short())
	case r.node != "" && s.Node != r.node:
		return overlay.Errorf(overlay.Denied, "node %s answered where %s was expected", s.Node.Short(), r.node.Short())
	case r.manager && s.Role != overlay.Manager:
		return overlay.Errorf(overlay.Denied, "node %s is no manager", s.Node.Short())
	case r.epoch && s.Epoch != me.subject.Epoch:
		return overlay.Errorf(overlay.Denied, "node %s is of epoch %d of the cluster, this one of epoch %d", s.Node.Short(), s.Epoch, me.subject.Epoch)
	case !r.removed && c.revoked(s.as(r.manager)):
		return overlay.Errorf(overlay.Denied, "the certificate of node %s is revoked", s.Node.Short())
	case r.dates:
		return checkDates(leaf, c.now())
	}
	return nil
}

// as is the subject without its role where that does not matter: a demoted manager is still a
// member.
func (s Subject) as(manager bool) Subject {
	if !manager {
		s.Role = overlay.Worker
	}
	return s
}

func (c *Credentials) verifier(r rules) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		leaf, err := leafOf(cs)
		if err != nil {
			return err
		}
		if cs.NegotiatedProtocol == "" {
			return overlay.Errorf(overlay.Denied, "no protocol was agreed on")
		}
		return c.check(leaf, r)
	}
}

func (c *Credentials) own() *tls.Certificate { return &c.current.Load().cert }

func (c *Credentials) server(r *rules, alpns ...string) *tls.Config {
	t := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             alpns,
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.own(), nil },
	}
	if r != nil {
		t.ClientAuth = tls.RequireAnyClientCert
		t.VerifyConnection = c.verifier(*r)
	}
	return t
}

func (c *Credentials) client(r rules, alpns ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             alpns,
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // VerifyConnection does it, by the cluster's own rules
		VerifyConnection:       c.verifier(r),
		GetClientCertificate:   func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.own(), nil },
	}
}

// Control is the server side of the control port. serves says which protocols have somebody to
// answer at this moment. The API lets removed nodes in, so that its handler can tell them.
func (c *Credentials) Control(serves func(alpn string) bool) *tls.Config {
	configs := map[string]*tls.Config{
		ALPNJoin: c.server(nil, ALPNJoin),
		ALPNAPI:  c.server(&rules{removed: true}, ALPNAPI),
		ALPNRaft: c.server(&rules{manager: true, epoch: true}, ALPNRaft),
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			for _, p := range h.SupportedProtos {
				if t := configs[p]; t != nil && serves(p) {
					return t, nil
				}
			}
			return c.server(&rules{manager: true}, "heddle-none"), nil // ends in "no application protocol"
		},
	}
}

// ForManager is the client side towards a manager's API: node, or any manager with "". This is
// where dates count.
func (c *Credentials) ForManager(node overlay.NodeID) *tls.Config {
	return c.client(rules{node: node, manager: true, dates: true}, ALPNAPI)
}

// ForNode is the client side towards any node's control port, for its hello.
func (c *Credentials) ForNode(node overlay.NodeID) *tls.Config {
	return c.client(rules{node: node}, ALPNAPI)
}

// ForRaft is the client side of a Raft stream. Dates do not count: managers that were all away
// for longer than a certificate lasts must find together before they can renew.
func (c *Credentials) ForRaft(node overlay.NodeID) *tls.Config {
	return c.client(rules{node: node, manager: true, epoch: true}, ALPNRaft)
}

// PeerServer is the server side between nodes, where a peer is its key: any node of the cluster
// that was not removed, whatever the date. See Peer.
func (c *Credentials) PeerServer(alpns ...string) *tls.Config { return c.server(&rules{}, alpns...) }

// PeerClient is the client side between nodes.
func (c *Credentials) PeerClient(node overlay.NodeID, alpns ...string) *tls.Config {
	return c.client(rules{node: node}, alpns...)
}

// ForJoin is the client side of a node in no cluster: it trusts the CA whose digest the token
// has, and nothing else.
func ForJoin(ca [sha256.Size]byte, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{ALPNJoin},
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection: func(cs tls.ConnectionState) error {
			i := slices.IndexFunc(cs.PeerCertificates, func(c *x509.Certificate) bool { return Digest(c.Raw) == ca })
			if i < 1 {
				return ErrOtherCluster
			}
			root, err := parseCA(cs.PeerCertificates[i].Raw)
			if err != nil {
				return err
			}
			s, _, err := verify(cs.PeerCertificates[0], root)
			if err != nil {
				return err
			}
			if s.Role != overlay.Manager {
				return overlay.Errorf(overlay.Denied, "node %s is no manager; join through one", s.Node.Short())
			}
			return checkDates(cs.PeerCertificates[0], now())
		},
	}
}

// ErrOtherCluster says that a manager is not of the token's cluster.
var ErrOtherCluster = overlay.Errorf(overlay.Denied, "the token is of another cluster than this manager; make one there with `heddle token create worker`")
