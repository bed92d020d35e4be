package overlay

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew; only for a format that was never released")

func key32(name string) ed25519.PrivateKey {
	h := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(h[:])
}

func pub32(name string) ed25519.PublicKey { return key32(name).Public().(ed25519.PublicKey) }

var (
	place  = Place{Cluster: "c0ffee", Epoch: 1}
	nodeA  = NodeID(strings.Repeat("a", 32))
	nodeB  = NodeID(strings.Repeat("b", 32))
	blueID = NetworkID(strings.Repeat("1", 32))
	webID  = EndpointID(strings.Repeat("e", 32))
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func lease() Lease {
	return Lease{
		V: 1, Place: place, Network: blueID, Node: nodeA, Key: pub32("a"), Index: 9,
		Grants: []Grant{{addr("10.1.0.2"), addr("10.1.0.9"), 7}, {addr("fd00::2"), addr("fd00::9"), 7}, {addr("10.1.0.20"), addr("10.1.0.20"), 9}},
	}
}

func identity() Identity {
	return Identity{V: 1, Place: place, Node: nodeA, Key: pub32("a"), Number: 3}
}

func nodeRecord() NodeRecord {
	return NodeRecord{
		V: 1, Place: place, Node: nodeA, Number: 5, Name: "a", Control: netip.MustParseAddrPort("192.0.2.1:5377"),
		Gossip: netip.MustParseAddrPort("192.0.2.1:5378"), DataPath4: addr("192.0.2.1"), DataPath6: addr("2001:db8::1"), MTU: 1500,
		Hello: Hello{Version: "0.1.0", Reads: map[string]Range{"record": {1, 1}}},
	}
}

func record() Record {
	return Record{
		V: 1, Place: place, Network: blueID, Endpoint: webID, Owner: nodeA, Incarnation: 1, Number: 4, Workload: "web",
		MAC: MAC{2, 0, 0, 0, 0, 1}, IPs: []netip.Addr{addr("10.1.0.2"), addr("fd00::2")}, Names: []string{"web", "www"}, Service: "shop",
		Labels: map[string]string{"tier": "front"}, Health: "ok", Lease: strings.Repeat("0", 64),
	}
}

func tombstone() Record {
	return Record{V: 1, Place: place, Network: blueID, Endpoint: webID, Owner: nodeA, Incarnation: 1, Number: 5, Deleted: true}
}

func floor() Record {
	r := tombstone()
	r.Number, r.Floor = 9, 5
	return r
}

func release() Release {
	return Release{V: 1, Place: place, Network: blueID, Node: nodeA, Grants: lease().Grants[:1]}
}

func signed(t testing.TB, d Domain, key string, body any) Signed {
	t.Helper()
	s, err := Sign(d, key32(key), body)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func resign(d Domain, key string, body []byte) []byte {
	return ed25519.Sign(key32(key), toSign(d, body))
}

func trusting(t testing.TB) Trust {
	t.Helper()
	k, err := CertifyRingKey(key32("ca"), place, pub32("signing"))
	if err != nil {
		t.Fatal(err)
	}
	return Trust{Place: place, CA: pub32("ca"), Ring: []RingKey{k}, Removed: map[NodeID]bool{}}
}

// statements is one of each kind of signed statement, by the name of its golden file.
func statements(t testing.TB) map[string]Signed {
	return map[string]Signed{
		"lease-v1":       signed(t, DomainLease, "signing", lease()),
		"identity-v1":    signed(t, DomainIdentity, "signing", identity()),
		"removal-v1":     signed(t, DomainRemoval, "signing", Removal{V: 1, Place: place, Node: nodeB, Index: 11}),
		"node-record-v1": signed(t, DomainNodeRecord, "a", nodeRecord()),
		"record-v1":      signed(t, DomainRecord, "a", record()),
		"tombstone-v1":   signed(t, DomainRecord, "a", tombstone()),
		"floor-v1":       signed(t, DomainRecord, "a", floor()),
		"release-v1":     signed(t, DomainRelease, "a", release()),
		"ring-key-v1":    trusting(t).Ring[0].Cert,
	}
}

func golden(t *testing.T, name string, got []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant\n%s", path, got, want)
	}
	return want
}

// TestGoldenStatements pins the bytes of each signed statement, and that what is kept there
// is believed. The body is on a line of its own, readable.
func TestGoldenStatements(t *testing.T) {
	kept := map[string]Signed{}
	for name, s := range statements(t) {
		head, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		file := golden(t, name+".txt", append(append(append([]byte{}, s.Body...), '\n'), append(head, '\n')...))
		_, line, _ := bytes.Cut(file, []byte("\n"))
		var back Signed
		if err := json.Unmarshal(line, &back); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		kept[name] = back
	}
	tr := trusting(t)
	tr.Ring[0].Cert = kept["ring-key-v1"]
	if err := tr.CheckRing(); err != nil {
		t.Error(err)
	}
	if _, err := tr.CheckRemoval(kept["removal-v1"]); err != nil {
		t.Error(err)
	}
	if _, _, err := tr.CheckNode(SignedNode{kept["identity-v1"], kept["node-record-v1"]}); err != nil {
		t.Error(err)
	}
	if _, err := tr.CheckRelease(kept["release-v1"], nodeA, pub32("a")); err != nil {
		t.Error(err)
	}
	for _, r := range []string{"record-v1", "tombstone-v1", "floor-v1"} {
		if _, err := tr.CheckRecord(kept[r], kept["lease-v1"]); err != nil {
			t.Errorf("%s: %v", r, err)
		}
	}
}
