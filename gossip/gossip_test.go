package gossip

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/heddle-net/heddle/gossip/table"
	"github.com/heddle-net/heddle/overlay"
)

const (
	nodeA = overlay.NodeID("aa000000000000000000000000000000")
	nodeB = overlay.NodeID("bb000000000000000000000000000000")
	nodeC = overlay.NodeID("cc000000000000000000000000000000")
	blue  = overlay.NetworkID("11000000000000000000000000000000")
	web   = overlay.EndpointID("e1000000000000000000000000000000")
)

var (
	place = overlay.Place{Cluster: "c1", Epoch: 1}
	caKey = seed("ca")
	sign  = seed("signing")
)

func seed(s string) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed([]byte((s + strings.Repeat(".", 32))[:32]))
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func trust(t testing.TB) overlay.Trust {
	k, err := overlay.CertifyRingKey(caKey, place, public(sign))
	if err != nil {
		t.Fatal(err)
	}
	return overlay.Trust{Place: place, CA: public(caKey), Ring: []overlay.RingKey{k}}
}

func state(t testing.TB, d overlay.Domain, key ed25519.PrivateKey, body any) overlay.Signed {
	t.Helper()
	s, err := overlay.Sign(d, key, body)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func lease(t testing.TB, node overlay.NodeID) overlay.Signed {
	first := map[overlay.NodeID]string{nodeA: "10.0.0.2", nodeB: "10.0.0.18"}[node]
	a := netip.MustParseAddr(first)
	return state(t, overlay.DomainLease, sign, overlay.Lease{
		V: 1, Place: place, Network: blue, Node: node, Key: public(seed(string(node))), Index: 3,
		Grants: []overlay.Grant{{First: a, Last: a.Next().Next().Next(), Index: 3}},
	})
}

func endpoint(t testing.TB, owner overlay.NodeID, number uint64, ip string, labels map[string]string) overlay.Signed {
	return state(t, overlay.DomainRecord, seed(string(owner)), overlay.Record{
		V: 1, Place: place, Network: blue, Owner: owner, Endpoint: web, Workload: "web",
		Incarnation: 1, Number: number, MAC: overlay.MAC{2, 0, 0, 0, 0, 1}, IPs: []netip.Addr{netip.MustParseAddr(ip)}, Labels: labels,
	})
}

// tlsOf makes TLS configurations in which a peer is the name in its certificate.
func tlsOf(t testing.TB, id overlay.NodeID) (server func(...string) *tls.Config, client func(overlay.NodeID, ...string) *tls.Config) {
	key := seed(string(id))
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: string(id)}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, public(key), key)
	if err != nil {
		t.Fatal(err)
	}
	base := &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true,
	}
	with := func(alpns ...string) *tls.Config { c := base.Clone(); c.NextProtos = alpns; return c }
	return with, func(_ overlay.NodeID, alpns ...string) *tls.Config { return with(alpns...) }
}

// node starts a node on loopback, whose kernel is always up to date when kernel is true.
func node(t testing.TB, id overlay.NodeID, kernel bool) *Node {
	t.Helper()
	server, client := tlsOf(t, id)
	tr := trust(t)
	n, err := New(Config{
		Self: id, Bind: netip.MustParseAddrPort("127.0.0.1:0"), Advertise: netip.MustParseAddrPort("127.0.0.1:0"), Label: "c1",
		Keys: [][]byte{make([]byte, 32)}, Server: server, Client: client, Trust: func() overlay.Trust { return tr }, Log: slog.New(slog.DiscardHandler),
		Peer: func(cs tls.ConnectionState) (overlay.NodeID, error) {
			return overlay.NodeID(cs.PeerCertificates[0].Subject.CommonName), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	self := overlay.SignedNode{
		Identity: state(t, overlay.DomainIdentity, sign, overlay.Identity{V: 1, Place: place, Node: id, Key: public(seed(string(id))), Number: 1}),
		Record: state(t, overlay.DomainNodeRecord, seed(string(id)), overlay.NodeRecord{
			V: 1, Place: place, Node: id, Number: 1, Name: string(id[:2]),
			Gossip: n.Advertised(), DataPath4: netip.MustParseAddr("127.0.0.1"), MTU: 1500,
		}),
	}
	if err := n.SetSelf(self); err != nil {
		t.Fatal(err)
	}
	n.SetParticipants(map[overlay.NetworkID][]overlay.NodeID{blue: {nodeA, nodeB}}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = n.Run(ctx) }()
	if kernel {
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-n.Changed():
					n.Applied(n.Revision())
				}
			}
		}()
	}
	t.Cleanup(func() { cancel(); <-done })
	return n
}

// pair is two nodes in contact.
func pair(t testing.TB, kernel bool) (a, b *Node) {
	t.Helper()
	a, b = node(t, nodeA, true), node(t, nodeB, kernel)
	if err := b.Join(t.Context(), []netip.AddrPort{a.Advertised()}); err != nil {
		t.Fatal(err)
	}
	soon(t, "the nodes know each other", func() bool { return len(a.Nodes()) == 2 && len(b.Nodes()) == 2 })
	return a, b
}

func soon(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.After(10 * time.Second); !ok(); {
		select {
		case <-end:
			t.Fatalf("not in time: %s", what)
		case <-tick.C:
		}
	}
}

// What a node says of itself goes out while it goes on: whatever membership does with it, nobody
// waits.
func TestSayingIsNotWaitedFor(t *testing.T) {
	a, b := pair(t, true)
	r := a.Nodes()[nodeA]
	for r.Number = 2; r.Number <= 20; r.Number++ {
		begin := time.Now()
		s := overlay.SignedNode{Identity: a.SignedNodes()[nodeA].Identity, Record: state(t, overlay.DomainNodeRecord, seed(string(nodeA)), r)}
		if err := a.SetSelf(s); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Fatalf("SetSelf took %s", took)
		}
	}
	soon(t, "b has the newest", func() bool { return b.Nodes()[nodeA].Number == 20 })
}

// A node that membership never heard of, and that answers nowhere, is not waited for.
func TestANodeThatAnswersNowhereIsDead(t *testing.T) {
	a := node(t, nodeA, true)
	b := node(t, nodeB, true)
	at := b.Advertised()
	a.AddNodes([]overlay.SignedNode{b.SignedNodes()[nodeB]})
	if s := a.Peers()[0].State; s != "unknown" {
		t.Errorf("before anybody looked it is %s", s)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Seek(t.Context(), nodeB, []netip.AddrPort{at}); err == nil {
		t.Error("it was found")
	}
	if s := a.Peers()[0].State; s != "dead" {
		t.Errorf("it is %s", s)
	}
	silent, err := a.Publish(t.Context(), blue, []overlay.Signed{endpoint(t, nodeA, 1, "10.0.0.2", nil)}, lease(t, nodeA))
	if err != nil || len(silent) > 0 {
		t.Errorf("silent %v, %v", silent, err)
	}
	if err := a.Refresh(t.Context(), []overlay.NodeID{nodeA, nodeB}); err == nil || !strings.Contains(err.Error(), "node bb") {
		t.Errorf("it counts as one that hosts nothing: %v", err)
	}
}

func TestAPushIsAcknowledgedWhenItStands(t *testing.T) {
	a, b := pair(t, true)
	var took []time.Duration
	for i := range 50 {
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		silent, err := a.Publish(ctx, blue, []overlay.Signed{endpoint(t, nodeA, uint64(i+1), "10.0.0.2", nil)}, lease(t, nodeA))
		cancel()
		if err != nil || len(silent) > 0 {
			t.Fatalf("silent %v, %v", silent, err)
		}
		took = append(took, time.Since(begin))
		if c := b.Claims(blue); len(c) != 1 || c[0].Record.Number != uint64(i+1) {
			t.Fatalf("acknowledged, but b has %v", c)
		}
	}
	slices.Sort(took)
	t.Logf("publish until acknowledged: p50 %s, max %s", took[25], took[49])
}

// A record that does not fit in a packet goes as a stream.
func TestALargePush(t *testing.T) {
	a, b := pair(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	silent, err := a.Publish(ctx, blue, []overlay.Signed{endpoint(t, nodeA, 1, "10.0.0.2", map[string]string{"k": strings.Repeat("v", 4000)})}, lease(t, nodeA))
	if err != nil || len(silent) > 0 || len(b.Claims(blue)) != 1 {
		t.Errorf("silent %v, %v, b has %v", silent, err, b.Claims(blue))
	}
}

// Of many records those that are held are not checked again, and the others are.
func TestManyRecordsComeTwice(t *testing.T) {
	_, b := pair(t, true)
	all := table.Batch{Owner: nodeA}
	for i := range 2 * bulkSize {
		r := overlay.Record{
			V: 1, Place: place, Network: blue, Owner: nodeA, Endpoint: overlay.EndpointID(fmt.Sprintf("%032x", i+1)), Workload: "w", Incarnation: 1, Number: uint64(i + 1), Deleted: true,
		}
		all.Claims = append(all.Claims, overlay.Claim{Signed: state(t, overlay.DomainRecord, seed(string(nodeA)), r), Lease: lease(t, nodeA)})
	}
	half, whole := all, all
	half.Claims = all.Claims[:bulkSize]
	whole.UpTo = overlay.Version{Incarnation: 1, Number: 2 * bulkSize}
	for _, come := range []struct {
		batch table.Batch
		want  uint64
	}{{half, bulkSize}, {half, bulkSize}, {whole, 2 * bulkSize}, {whole, 2 * bulkSize}} {
		b.takeBatch(blue, pack(come.batch))
		if n := b.Counters()["records accepted"]; n != come.want {
			t.Errorf("%d records were checked and accepted, want %d", n, come.want)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if m := b.table.Mark(blue, nodeA); m != whole.UpTo {
		t.Errorf("b holds all up to %v", m)
	}
}

// Who has not put a record into its kernel does not acknowledge it, and is named.
func TestSilentNodesAreNamed(t *testing.T) {
	a, b := pair(t, false)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	silent, err := a.Publish(ctx, blue, []overlay.Signed{endpoint(t, nodeA, 1, "10.0.0.2", nil)}, lease(t, nodeA))
	if err != nil || !slices.Equal(silent, []overlay.NodeID{nodeB}) {
		t.Errorf("silent %v, %v; want b", silent, err)
	}
	soon(t, "b has the record all the same", func() bool { return len(b.Claims(blue)) == 1 })
}

// A participant that nobody has heard of yet is named, and told as soon as it is there.
func TestAParticipantThatHasNotSaidWhereItIs(t *testing.T) {
	a := node(t, nodeA, true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	silent, err := a.Publish(ctx, blue, []overlay.Signed{endpoint(t, nodeA, 1, "10.0.0.2", nil)}, lease(t, nodeA))
	if err != nil || !slices.Equal(silent, []overlay.NodeID{nodeB}) {
		t.Errorf("silent %v, %v; want b", silent, err)
	}
	b := node(t, nodeB, true)
	if err := b.Join(t.Context(), []netip.AddrPort{a.Advertised()}); err != nil {
		t.Fatal(err)
	}
	soon(t, "b has the record", func() bool { return len(b.Claims(blue)) == 1 })
}

// Introduce tells those that membership has not brought together.
func TestIntroduce(t *testing.T) {
	a, b := pair(t, true)
	c := node(t, nodeC, true)
	c.AddNodes([]overlay.SignedNode{a.SignedNodes()[nodeA]})
	if err := c.Introduce(t.Context(), nodeA); err != nil {
		t.Fatal(err)
	}
	soon(t, "b knows c", func() bool { _, ok := b.Nodes()[nodeC]; return ok })
	if len(c.Nodes()) != 3 {
		t.Errorf("c knows %d nodes", len(c.Nodes()))
	}
}

// An own claim to an address that another gave up is a change, even before the other's
// tombstone is here: what stood for the other must go.
func TestAnAddressChangesHands(t *testing.T) {
	a, b := pair(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := a.Publish(ctx, blue, []overlay.Signed{endpoint(t, nodeA, 1, "10.0.0.2", nil)}, lease(t, nodeA)); err != nil {
		t.Fatal(err)
	}
	before := b.Revision()
	ip := netip.MustParseAddr("10.0.0.2")
	later := state(t, overlay.DomainLease, sign, overlay.Lease{
		V: 1, Place: place, Network: blue, Node: nodeB, Key: public(seed(string(nodeB))), Index: 9, Grants: []overlay.Grant{{First: ip, Last: ip, Index: 9}},
	})
	if _, err := b.Publish(ctx, blue, []overlay.Signed{endpoint(t, nodeB, 1, "10.0.0.2", nil)}, later); err != nil {
		t.Fatal(err)
	}
	if c := b.Claims(blue); len(c) != 1 || c[0].Record.Owner != nodeB {
		t.Errorf("b has %v", c)
	}
	if b.Revision() == before {
		t.Error("nobody was told that a's claim does not stand any more")
	}
}

// What was said before a node took part reaches it by an exchange.
func TestSync(t *testing.T) {
	a := node(t, nodeA, true)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Publish(ended, blue, []overlay.Signed{endpoint(t, nodeA, 1, "10.0.0.2", nil)}, lease(t, nodeA)); err != nil {
		t.Fatal(err)
	}
	b := node(t, nodeB, true)
	if err := b.Join(t.Context(), []netip.AddrPort{a.Advertised()}); err != nil {
		t.Fatal(err)
	}
	if err := b.Sync(t.Context(), blue, lease(t, nodeB)); err != nil {
		t.Fatal(err)
	}
	if len(b.Claims(blue)) != 1 {
		t.Errorf("after Sync b has %v", b.Claims(blue))
	}
}

// A manager asks nodes for what they host; who does not answer is an error.
func TestRefresh(t *testing.T) {
	a, b := pair(t, true)
	b.SetParticipants(map[overlay.NetworkID][]overlay.NodeID{blue: {nodeA}}, []overlay.NodeID{nodeB})
	a.SetParticipants(map[overlay.NetworkID][]overlay.NodeID{blue: {nodeA}}, nil) // does not know that b is one
	if _, err := a.Publish(t.Context(), blue, []overlay.Signed{endpoint(t, nodeA, 1, "10.0.0.2", nil)}, lease(t, nodeA)); err != nil {
		t.Fatal(err)
	}
	if err := b.Refresh(t.Context(), []overlay.NodeID{nodeA, nodeB}); err != nil {
		t.Fatal(err)
	}
	if c := b.Claims(blue); len(c) != 1 {
		t.Errorf("b has %v", c)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Refresh(t.Context(), []overlay.NodeID{nodeA}); err == nil {
		t.Error("a, which is closed, answered")
	}
}

// What is not genuine changes nothing and is counted.
func TestRefusedRecords(t *testing.T) {
	good := endpoint(t, nodeA, 1, "10.0.0.2", nil)
	forged := good
	forged.Sig = slices.Clone(good.Sig)
	forged.Sig[0] ^= 1
	stranger := state(t, overlay.DomainLease, seed("stranger"), overlay.Lease{V: 1, Place: place, Network: blue, Node: nodeA, Key: public(seed(string(nodeA)))})
	cases := []struct {
		name          string
		stated, lease overlay.Signed
	}{
		{"wrong signature", forged, lease(t, nodeA)},
		{"address outside the lease", endpoint(t, nodeA, 1, "10.0.0.99", nil), lease(t, nodeA)},
		{"another node's lease", endpoint(t, nodeB, 1, "10.0.0.2", nil), lease(t, nodeA)},
		{"lease of no manager", good, stranger},
	}
	n := node(t, nodeB, true)
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			before := n.Counters()["records refused: "+string(overlay.Denied)]
			n.takeParts([]part{{Network: blue, Batches: []batch{{
				Owner: nodeA, UpTo: overlay.Version{Incarnation: 1, Number: 9},
				Leases: []overlay.Signed{tc.lease}, Records: []record{{Signed: tc.stated}},
			}}}})
			if c := n.Claims(blue); len(c) > 0 {
				t.Errorf("it was taken in: %v", c)
			}
			if after := n.Counters()["records refused: "+string(overlay.Denied)]; after != before+1 {
				t.Errorf("refused records counted: %d, want %d", after, before+1)
			}
			if m := n.table.Mark(blue, nodeA); m.Number != 0 {
				t.Errorf("the mark went to %v past a refused record", m)
			}
		})
	}
}

// However much a node holds that another lacks, a frame has room for it, also for one that does not
// ask for more.
func TestAFrameHasRoom(t *testing.T) {
	n := node(t, nodeB, true)
	n.SetParticipants(map[overlay.NetworkID][]overlay.NodeID{blue: {nodeA, nodeB, nodeC}}, nil)
	var claims []overlay.Claim
	under, key := lease(t, nodeA), overlay.KeyIDOf(public(seed(string(nodeA))))
	for i := range 60_000 {
		c := overlay.Claim{Lease: under, Record: overlay.Record{
			V: 1, Place: place, Network: blue, Owner: nodeA, Endpoint: overlay.EndpointID(fmt.Sprintf("%032x", i+1)), Workload: "web", Incarnation: 1, Number: uint64(i + 1), Deleted: true,
		}}
		b, err := json.Marshal(c.Record)
		if err != nil {
			t.Fatal(err)
		}
		c.Signed = overlay.Signed{Key: key, Body: b, Sig: make([]byte, 64)}
		claims = append(claims, c)
	}
	n.mu.Lock()
	n.table.MergeBatch(blue, table.Batch{Owner: nodeA, Claims: claims})
	n.mu.Unlock()
	ask := frame{From: nodeC, Networks: []part{{Network: blue}}}
	for _, room := range []int{maxGive, maxGiveAll} {
		give := n.lacking(ask, room)
		b, err := json.Marshal(give)
		if err != nil {
			t.Fatal(err)
		}
		up := give.Networks[0].Batches[0]
		if len(b) > room || len(b) < room/2 || !give.More || up.UpTo.Number != uint64(len(up.Records)) {
			t.Errorf("with room for %d it gives %d bytes, up to %v in %d records; more: %v", room, len(b), up.UpTo, len(up.Records), give.More)
		}
	}
}

// A manager keeps what it was told of a network before its facts name it, and forgets it when
// they name it no more.
func TestAManagerIsToldBeforeItsFactsKnow(t *testing.T) {
	a, b := pair(t, true)
	managers := []overlay.NodeID{nodeB}
	b.SetParticipants(nil, managers)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if silent, err := a.Publish(ctx, blue, []overlay.Signed{endpoint(t, nodeA, 1, "10.0.0.2", nil)}, lease(t, nodeA)); err != nil || len(silent) > 0 {
		t.Fatalf("silent %v, %v", silent, err)
	}
	for _, step := range []struct {
		networks map[overlay.NetworkID][]overlay.NodeID
		want     int
	}{
		{nil, 1}, // other news
		{map[overlay.NetworkID][]overlay.NodeID{blue: nil}, 1},
		{map[overlay.NetworkID][]overlay.NodeID{blue: {nodeA}}, 1},
		{nil, 0},
	} {
		b.SetParticipants(step.networks, managers)
		if c := b.Claims(blue); len(c) != step.want {
			t.Errorf("with networks %v it has %v", step.networks, c)
		}
	}
}

func TestARemovedNodeIsForgotten(t *testing.T) {
	a, b := pair(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := a.Publish(ctx, blue, []overlay.Signed{endpoint(t, nodeA, 1, "10.0.0.2", nil)}, lease(t, nodeA)); err != nil {
		t.Fatal(err)
	}
	if err := b.AddRemoval(state(t, overlay.DomainRemoval, seed("stranger"), overlay.Removal{V: 1, Place: place, Node: nodeA})); err == nil {
		t.Errorf("a removal that the managers did not sign was taken in")
	}
	if err := b.AddRemoval(state(t, overlay.DomainRemoval, sign, overlay.Removal{V: 1, Place: place, Node: nodeA, Index: 9})); err != nil {
		t.Fatal(err)
	}
	if len(b.Claims(blue)) > 0 || len(b.Nodes()) != 1 {
		t.Errorf("b still has %v, %v", b.Claims(blue), b.Nodes())
	}
}

// Membership may not send anybody elsewhere than a node's own record says.
func TestAMemberAtAnotherAddressThanItsRecord(t *testing.T) {
	a, b := pair(t, true)
	at := b.Advertised()
	meta := delegate{b}.NodeMeta(0)
	newer := slices.Clone(meta)
	newer[len(newer)-1]++
	for _, tc := range []struct {
		name   string
		addr   netip.AddrPort
		meta   []byte
		passes bool
	}{
		{"its own", at, meta, true},
		{"its own, as an IPv6 address", netip.AddrPortFrom(netip.AddrFrom16(at.Addr().As16()), at.Port()), meta, true},
		{"another address", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), at.Port()), meta, false},
		{"another port", netip.AddrPortFrom(at.Addr(), at.Port()+1), meta, false},
		{"another address without a number", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), at.Port()), nil, false},
		{"another address, with a record to come", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), at.Port()), newer, true},
	} {
		before := a.Counters()["members refused: another address than their record"]
		err := delegate{a}.NotifyAlive(&memberlist.Node{Name: string(nodeB), Addr: tc.addr.Addr().AsSlice(), Port: tc.addr.Port(), Meta: tc.meta})
		after := a.Counters()["members refused: another address than their record"]
		if (err == nil) != tc.passes || (after > before) == tc.passes {
			t.Errorf("%s: %v, counted %d", tc.name, err, after-before)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"v":1,"kind":"ask","from":"` + string(nodeA) + `","networks":[{"network":"x","digest":{"y":{"i":1,"n":2}}}]}`))
	f.Add([]byte(`{"v":2,"kind":"push"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, err := decode(b)
		if err == nil && (fr.V != version || !overlay.ValidID(string(fr.From))) {
			t.Errorf("decoded %+v", fr)
		}
	})
}

func TestNoKeys(t *testing.T) {
	if _, err := New(Config{Self: nodeA, Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("gossip starts without a key")
	}
}
