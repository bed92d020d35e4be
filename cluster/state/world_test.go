package state

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// tb is what testing.TB and rapid.T have in common.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
	Fatal(args ...any)
}

// world is a state and the log that made it.
type world struct {
	tb
	s     *State
	index uint64
	log   [][]byte
}

func newWorld(t tb) *world { return &world{tb: t, s: New()} }

// try applies a command at the next index.
func (w *world) try(c Command) (any, error) { return w.tryReq("", c) }

func (w *world) tryReq(req string, c Command) (any, error) {
	w.Helper()
	e, err := Encode(w.s.View().Level, req, c)
	if err != nil {
		w.Fatal(err)
	}
	w.index++
	w.log = append(w.log, e)
	res, err := w.s.Apply(w.index, e)
	if Fatal(err) {
		w.Fatal(err)
	}
	return res, err
}

// do applies commands that must succeed and returns the last one's result.
func (w *world) do(cs ...Command) (res any) {
	w.Helper()
	for _, c := range cs {
		var err error
		if res, err = w.try(c); err != nil {
			w.Fatalf("%s: %v", c.kind(), err)
		}
	}
	return res
}

func snapshot(t tb, s *State) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Snapshot().Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func asJSON(t tb, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// seed is 32 bytes that depend on the name alone.
func seed(name string) []byte { h := sha256.Sum256([]byte(name)); return h[:] }

func key32(name string) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(seed(name)) }

func id[T ~string](name string) T {
	h := sha256.Sum256([]byte(name))
	return T(hex.EncodeToString(h[:16]))
}

func nid(name string) overlay.NodeID       { return id[overlay.NodeID]("node " + name) }
func netID(name string) overlay.NetworkID  { return id[overlay.NetworkID]("network " + name) }
func servID(name string) overlay.ServiceID { return id[overlay.ServiceID]("service " + name) }

func caCert() []byte {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: at, NotAfter: at.AddDate(20, 0, 0), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(nil, c, c, key32("ca").Public(), key32("ca"))
	if err != nil {
		panic(err)
	}
	return der
}

func node(name string) NewNode {
	n := seed(name)[0]
	return NewNode{
		ID: nid(name), Key: key32(name).Public().(ed25519.PublicKey), Name: name,
		Control: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 5377), Gossip: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 5378),
	}
}

func initCmd() Init {
	return Init{
		Place: overlay.Place{Cluster: "c0ffee", Epoch: 1}, Level: Level,
		Params: overlay.Params{
			DataPathPort: 4789, PoolBits4: 24, PoolBits6: 64,
			Pools: []netip.Prefix{netip.MustParsePrefix("10.64.0.0/11"), netip.MustParsePrefix("fd12:3456:789a::/48")},
		},
		CA: caCert(), CAKey: key32("ca"), SigningKeys: [][]byte{seed("signing")}, GossipKeys: [][]byte{seed("gossip")}, Node: node("m1"),
	}
}

const now = 1_800_000_000

func token(name string, role overlay.Role) NewToken {
	return NewToken{ID: name, Hash: seed("token " + name), Role: role, Created: now, Expires: now + 3600}
}

func join(name, tok string) Join {
	return Join{Node: node(name), Token: seed("token " + tok), Now: now + 1}
}

func network4(name string, subnets ...string) CreateNetwork {
	c := CreateNetwork{ID: netID(name), Spec: overlay.NetworkSpec{Name: name, Driver: overlay.DriverOverlay, IPv4: true}}
	for _, s := range subnets {
		c.Spec.Subnets = append(c.Spec.Subnets, overlay.Subnet{Prefix: netip.MustParsePrefix(s)})
	}
	return c
}

// service is a service of network blue with a port.
func service(name string) CreateService {
	return CreateService{ID: servID(name), Network: netID("blue"), Now: now, Spec: overlay.ServiceSpec{
		Name: name, Mode: overlay.ModeVIP, Ports: []overlay.ServicePort{{Proto: "tcp", Port: 80, Target: 8080}},
	}}
}

// published is a service with ports of all nodes.
func published(name string, ports ...uint16) CreateService {
	c := service(name)
	for _, p := range ports {
		c.Spec.Publish = append(c.Spec.Publish, overlay.Publish{Port: p, Target: 8080, Proto: "tcp", Mode: overlay.PublishIngress})
	}
	return c
}

func network46(name string) CreateNetwork {
	c := network4(name)
	c.Spec.IPv6 = true
	return c
}

// cluster3 is a manager m1, workers w1 and w2, and both kinds of token.
func cluster3(t tb) *world {
	w := newWorld(t)
	w.do(initCmd(), CreateToken{token("wt", overlay.Worker)}, CreateToken{token("mt", overlay.Manager)}, join("w1", "wt"), join("w2", "wt"))
	return w
}

func trust(w *world) overlay.Trust {
	f := w.s.FactsFor(nid("m1"))
	return f.Trust()
}

// leaseOf is the node's lease in a network, checked as every receiver checks it.
func (w *world) leaseOf(network, node string) overlay.Lease {
	w.Helper()
	l, err := trust(w).CheckLease(w.s.View().Leases(netID(network))[nid(node)])
	if err != nil {
		w.Fatal(err)
	}
	return l
}

func grantsText(l overlay.Lease) string {
	var out []string
	for _, g := range l.Grants {
		out = append(out, g.First.String()+"-"+g.Last.String())
	}
	return strings.Join(out, " ")
}

func wantErr(t *testing.T, err error, kind overlay.Kind, part string) {
	t.Helper()
	if err == nil || overlay.KindOf(err) != kind || !strings.Contains(err.Error(), part) || Fatal(err) {
		t.Errorf("error %q (%s), want %q (%s)", err, overlay.KindOf(err), part, kind)
	}
}
