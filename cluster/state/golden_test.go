package state

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

var update = flag.Bool("update", false, "write the golden files anew; only for a format that was never released")

// golden compares with, or writes, a file of testdata.
func golden(t *testing.T, name string, got []byte) {
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
}

// story is a log with each kind of command.
func story() []Command {
	full := CreateNetwork{ID: netID("blue"), Avoid: []netip.Prefix{netip.MustParsePrefix("10.64.0.0/24")}, Spec: overlay.NetworkSpec{
		Name: "blue", Driver: overlay.DriverOverlay, IPv4: true, IPv6: true, Internal: true,
		Labels: map[string]string{"team": "loom"}, Options: map[string]string{"mtu": "1400"},
		Subnets: []overlay.Subnet{{
			Prefix: netip.MustParsePrefix("10.1.0.0/24"), Gateway: addr("10.1.0.254"), Range: netip.MustParsePrefix("10.1.0.128/25"),
			Aux: map[string]netip.Addr{"printer": addr("10.1.0.130")},
		}},
	}}
	sealed := network4("red")
	sealed.Spec.Encrypted = true
	limited := token("mt", overlay.Manager)
	limited.Uses = 1
	return []Command{
		initCmd(),
		CreateToken{token("wt", overlay.Worker)},
		CreateToken{limited},
		join("w1", "wt"),
		join("m2", "mt"),
		join("gone", "wt"),
		join("left", "wt"),
		SetRole{nid("w1"), overlay.Manager},
		SetAvailability{nid("w1"), overlay.Pause},
		SetAvailability{nid("w1"), overlay.Active},
		UpdateNode{Node: nid("w1"), Control: netip.MustParseAddrPort("192.0.2.9:5377"), Gossip: netip.MustParseAddrPort("[2001:db8::9]:5378")},
		full,
		sealed,
		Grant{Network: netID("blue"), Node: nid("w1"), Want: 2, Addrs: []netip.Addr{addr("10.1.0.7")}},
		Grant{Network: netID("blue"), Node: nid("m2")},
		Grant{Network: netID("blue"), Node: nid("gone"), Spare: true, Now: now + 4},
		Grant{Network: netID("blue"), Node: nid("left"), Now: now + 4},
		RemoveNode{Node: nid("left"), Consent: true, Now: now + 4},
		RevokeToken{"mt"},
		RotateTokens{token("wt2", overlay.Worker)},
		RemoveNode{Node: nid("m2")},
		RemoveNetwork{netID("red")},
		Release{giveBack("w1", overlay.Grant{First: addr("10.1.0.128"), Last: addr("10.1.0.128"), Index: 14}), now + 5},
		RemoveNode{Node: nid("gone"), Force: true, Now: now + 6},
		Unfence{nid("m2"), now + 7},
		UpdateNetwork{
			ID: netID("blue"), Labels: map[string]string{"tier": "front"}, DropLabels: []string{"team"},
			Subnets: []overlay.Subnet{{Prefix: netip.MustParsePrefix("10.2.0.0/24")}, {Prefix: netip.MustParsePrefix("fd00:2::/64"), Gateway: addr("fd00:2::9")}},
		},
		UpdateParams{AddPools: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/16")}},
		SetLevel{Level},
		CreateService{servID("web"), netID("blue"), overlay.ServiceSpec{
			Name: "web", Mode: overlay.ModeVIP, VIPs: []netip.Addr{addr("10.1.0.253")}, Ports: []overlay.ServicePort{{Name: "http", Proto: "tcp", Port: 80, Target: 8080}},
			Selector: map[string]string{"tier": "front"}, Labels: map[string]string{"team": "loom"},
			Health:  overlay.Health{Kind: overlay.HealthHTTP, Port: 8081, Path: "/ready", Interval: time.Second, Timeout: time.Second, Rise: 2, Fall: 3},
			Publish: []overlay.Publish{{Port: 80, Target: 8080, Proto: "tcp", Mode: overlay.PublishIngress}, {Addr: addr("192.0.2.1"), Target: 8080, Proto: "udp", Mode: overlay.PublishLocal}},
		}, now + 8},
		CreateService{servID("db"), netID("blue"), overlay.ServiceSpec{Name: "db", Mode: overlay.ModeDNSRR}, now + 8},
		CreateService{servID("gone"), netID("blue"), overlay.ServiceSpec{Name: "gone", Mode: overlay.ModeVIP}, now + 8},
		UpdateService{servID("web"), overlay.ServiceUpdate{
			Ports: []overlay.ServicePort{{Proto: "udp", Port: 53, Target: 5353}}, DropPorts: []overlay.ProtoPort{{Proto: "tcp", Port: 80}},
			Publish: []overlay.Publish{{Target: 5353, Proto: "udp", Mode: overlay.PublishIngress}}, DropPublish: []overlay.ProtoPort{{Proto: "tcp", Port: 80}},
			Selector: map[string]string{}, Health: &overlay.Health{Kind: overlay.HealthTCP, Port: 5353}, Labels: map[string]string{"team": "weft"}, DropLabels: []string{"none"},
		}},
		RemoveService{servID("gone")},
		RemoveNetwork{netID("red")}, // refused
	}
}

// giveBack is a node's signed release of addresses of network blue.
func giveBack(node string, grants ...overlay.Grant) overlay.Signed {
	s, err := overlay.Sign(overlay.DomainRelease, key32(node), overlay.Release{V: 1, Place: initCmd().Place, Network: netID("blue"), Node: nid(node), Grants: grants})
	if err != nil {
		panic(err)
	}
	return s
}

// TestGolden pins the formats "command" and "snapshot" at this build's feature level: it writes
// these bytes, and reads them into the same state.
func TestGolden(t *testing.T) {
	var log bytes.Buffer
	s := New()
	kinds := map[Kind]bool{}
	for i, c := range story() {
		e, err := Encode(Level, "req-"+string(rune('a'+i)), c)
		if err != nil {
			t.Fatal(err)
		}
		log.Write(append(e, '\n'))
		if _, err := s.Apply(uint64(i+1), e); err != nil && i != len(story())-1 {
			t.Fatalf("%s: %v", c.kind(), err)
		}
		kinds[c.kind()] = true
	}
	if len(kinds) != 20 {
		t.Errorf("the story has %d kinds of command", len(kinds))
	}
	golden(t, "commands-level4.jsonl", log.Bytes())
	golden(t, "snapshot-level4.json", snapshot(t, s))
	golden(t, "facts-level4.json", factsText(t, s.FactsFor(nid("w1"))))
	if got := snapshot(t, replay(t, "commands-level4.jsonl")); !bytes.Equal(got, snapshot(t, s)) {
		t.Errorf("what was kept gives %s", got)
	}
}

// replay applies a log that is kept.
func replay(t *testing.T, name string) *State {
	t.Helper()
	s := New()
	for i, e := range kept(t, name) {
		if _, err := s.Apply(uint64(i+1), e); Fatal(err) {
			t.Fatal(err)
		}
	}
	return s
}

func kept(t *testing.T, name string) [][]byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Split(bytes.TrimSpace(b), []byte("\n"))
}

func factsText(t *testing.T, f *overlay.Facts) []byte {
	t.Helper()
	b, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// FuzzApply gives any bytes to two states in different stages of life: they agree, do not
// panic, and a snapshot of what comes out can be restored.
func FuzzApply(f *testing.F) {
	for i, c := range story() {
		e, err := Encode(Level, string(rune('a'+i)), c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(e)
	}
	f.Add([]byte(`{"v":1,"level":1,"kind":"grant","body":{"addrs":["::ffff:10.1.0.1","fe80::1%x"]}}`))
	f.Fuzz(func(t *testing.T, entry []byte) {
		for n := 0; n < len(story()); n += 5 {
			a, b := New(), New()
			for i, c := range story()[:n] {
				e, _ := Encode(Level, "", c)
				a.Apply(uint64(i+1), e)
			}
			if err := b.Restore(bytes.NewReader(snapshot(t, a))); err != nil {
				t.Fatal(err)
			}
			for i := range 2 {
				resA, errA := a.Apply(uint64(100+i), entry)
				resB, errB := b.Apply(uint64(100+i), entry)
				if asJSON(t, resA) != asJSON(t, resB) || (errA == nil) != (errB == nil) {
					t.Fatalf("%v %v, %v %v", resA, errA, resB, errB)
				}
				if Fatal(errA) {
					return
				}
			}
			if x, y := snapshot(t, a), snapshot(t, b); !bytes.Equal(x, y) {
				t.Fatalf("%s\n%s", x, y)
			}
			if err := b.Restore(bytes.NewReader(snapshot(t, a))); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzRestore restores any bytes: two states agree, and what is restored takes commands and
// writes a snapshot that can be restored.
func FuzzRestore(f *testing.F) {
	w := &world{tb: f, s: New()}
	f.Add(snapshot(f, w.s))
	for _, c := range story() {
		w.try(c)
		f.Add(snapshot(f, w.s))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		a, b := New(), New()
		if err := a.Restore(bytes.NewReader(file)); err != nil {
			if !Fatal(err) {
				t.Fatalf("not fatal: %v", err)
			}
			return
		}
		if err := b.Restore(bytes.NewReader(snapshot(t, a))); err != nil {
			t.Fatal(err)
		}
		for i, c := range story() {
			e, _ := Encode(Level, "", c)
			a.Apply(a.t.applied+1, e)
			b.Apply(b.t.applied+1, e)
			if x, y := snapshot(t, a), snapshot(t, b); !bytes.Equal(x, y) {
				t.Fatalf("after %d commands\n%s\n%s", i+1, x, y)
			}
		}
	})
}
