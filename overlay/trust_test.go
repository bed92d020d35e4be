package overlay

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func wantErr(t *testing.T, err error, kind Kind, part string) {
	t.Helper()
	if part == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	if err == nil || KindOf(err) != kind || !strings.Contains(err.Error(), part) {
		t.Errorf("error %v (%s), want %q (%s)", err, KindOf(err), part, kind)
	}
}

func TestCheckRecord(t *testing.T) {
	for _, tc := range []struct {
		name   string
		record func(*Record)
		lease  func(*Lease)
		signer [2]string // of record and lease
		trust  func(*Trust)
		kind   Kind
		part   string
	}{
		{name: "sound"},
		{name: "tombstone", record: func(r *Record) { *r = tombstone() }},
		{name: "signed by another node", signer: [2]string{"b", "signing"}, kind: Denied, part: "wrong signature"},
		{name: "lease by a node", signer: [2]string{"a", "a"}, kind: Denied, part: "no signing key"},
		{name: "lease by a key that is not certified", signer: [2]string{"a", "other"}, kind: Denied, part: "no signing key"},
		{name: "outside the lease", record: func(r *Record) { r.IPs[0] = addr("10.1.0.10") }, kind: Denied, part: "10.1.0.10 is outside the lease"},
		{name: "IPv4 inside IPv6", record: func(r *Record) { r.IPs[0] = addr("::ffff:10.1.0.2") }, kind: Denied, part: "outside the lease"},
		{name: "other owner", record: func(r *Record) { r.Owner = nodeB }, kind: Denied, part: "not of the lease's node"},
		{name: "other network", record: func(r *Record) { r.Network = NetworkID(strings.Repeat("2", 32)) }, kind: Denied, part: "not of the lease's node"},
		{name: "other cluster", record: func(r *Record) { r.Cluster = "beef" }, kind: Denied, part: "cluster beef"},
		{name: "other epoch of the lease", lease: func(l *Lease) { l.Epoch = 2 }, kind: Denied, part: "epoch 2"},
		{name: "later version", record: func(r *Record) { r.V = 2 }, kind: Unread, part: "record version 2"},
		{name: "later version of the lease", lease: func(l *Lease) { l.V = 2 }, kind: Unread, part: "lease version 2"},
		{name: "lease without a key", lease: func(l *Lease) { l.Key = nil }, kind: Invalid, part: "no node key"},
		{name: "removed owner", trust: func(t *Trust) { t.Removed[nodeA] = true }, kind: Denied, part: "was removed"},
		{name: "no number", record: func(r *Record) { r.Number = 0 }, kind: Invalid, part: "no number"},
		{name: "no incarnation", record: func(r *Record) { r.Incarnation = 0 }, kind: Invalid, part: "no number"},
		{name: "floor", record: func(r *Record) { *r = floor() }},
		{name: "floor above itself", record: func(r *Record) { r.Floor = r.Number }, kind: Invalid, part: "floor"},
		{name: "malformed endpoint", record: func(r *Record) { r.Endpoint = "../../etc" }, kind: Invalid, part: "malformed ID"},
		{name: "group MAC", record: func(r *Record) { r.MAC[0] = 1 }, kind: Invalid, part: "unicast"},
		{name: "no address", record: func(r *Record) { r.IPs = nil }, kind: Invalid, part: "no address"},
		{name: "address twice", record: func(r *Record) { r.IPs = append(r.IPs, r.IPs[0]) }, kind: Invalid, part: "twice"},
		{name: "malformed name", record: func(r *Record) { r.Workload = "a b" }, kind: Invalid, part: "workload"},
		{name: "malformed alias", record: func(r *Record) { r.Names = append(r.Names, "a\nb") }, kind: Invalid, part: "name"},
		{name: "health of several lines", record: func(r *Record) { r.Health = "unhealthy: \x1b[2J\n" }, kind: Invalid, part: "health"},
		{name: "health without end", record: func(r *Record) { r.Health = strings.Repeat("x", 600) }, kind: Invalid, part: "health"},
		{name: "sick", record: func(r *Record) { r.Health = "unhealthy: …10.0.0.2:80: connection refused" }},
		{name: "tombstone with addresses", record: func(r *Record) { r.Deleted = true }, kind: Invalid, part: "tombstone"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, l, tr := record(), lease(), trusting(t)
			if tc.record != nil {
				tc.record(&r)
			}
			if tc.lease != nil {
				tc.lease(&l)
			}
			if tc.trust != nil {
				tc.trust(&tr)
			}
			if tc.signer[0] == "" {
				tc.signer = [2]string{"a", "signing"}
			}
			c, err := tr.CheckRecord(signed(t, DomainRecord, tc.signer[0], r), signed(t, DomainLease, tc.signer[1], l))
			wantErr(t, err, tc.kind, tc.part)
			if tc.part == "" && len(c.Granted) != len(r.IPs) {
				t.Errorf("granted at %v", c.Granted)
			}
		})
	}
}

// TestDomainsAreApart takes each statement for each other kind: only its own is believed.
func TestDomainsAreApart(t *testing.T) {
	tr := trusting(t)
	for name, s := range statements(t) {
		for kind, check := range map[string]func(Signed) error{
			"lease":    func(s Signed) error { _, err := tr.CheckLease(s); return err },
			"identity": func(s Signed) error { _, err := tr.CheckIdentity(s); return err },
			"removal":  func(s Signed) error { _, err := tr.CheckRemoval(s); return err },
		} {
			if err := check(s); (err == nil) != (name == kind+"-v1") {
				t.Errorf("%s as %s: %v", name, kind, err)
			}
		}
	}
}

func TestCheckNode(t *testing.T) {
	for _, tc := range []struct {
		name     string
		record   func(*NodeRecord)
		identity func(*Identity)
		signer   string
		kind     Kind
		part     string
	}{
		{name: "sound", signer: "a"},
		{name: "by another", signer: "b", kind: Denied, part: "wrong signature"},
		{name: "another's identity", signer: "b", identity: func(i *Identity) { i.Node, i.Key = nodeB, pub32("b") }, kind: Invalid, part: "not of the identity's node"},
		{name: "without data path", signer: "a", record: func(r *NodeRecord) { r.DataPath4, r.DataPath6 = netip.Addr{}, netip.Addr{} }, kind: Invalid, part: "data-path"},
		{name: "without number", signer: "a", record: func(r *NodeRecord) { r.Number = 0 }, kind: Invalid, part: "number"},
		{name: "of another epoch", signer: "a", record: func(r *NodeRecord) { r.Epoch = 7 }, kind: Denied, part: "epoch 7"},
		{name: "identity without key", signer: "a", identity: func(i *Identity) { i.Key = nil }, kind: Invalid, part: "malformed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, i := nodeRecord(), identity()
			if tc.record != nil {
				tc.record(&r)
			}
			if tc.identity != nil {
				tc.identity(&i)
			}
			_, _, err := trusting(t).CheckNode(SignedNode{signed(t, DomainIdentity, "signing", i), signed(t, DomainNodeRecord, tc.signer, r)})
			wantErr(t, err, tc.kind, tc.part)
		})
	}
}

func TestCheckRing(t *testing.T) {
	for _, tc := range []struct {
		name string
		f    func(*Trust)
		part string
	}{
		{"sound", func(*Trust) {}, ""},
		{"by another CA", func(t *Trust) { t.CA = pub32("x") }, "wrong signature"},
		{"no CA", func(t *Trust) { t.CA = nil }, "wrong signature"},
		{"of another cluster", func(t *Trust) { t.Cluster = "beef" }, "not certified"},
		{"another key", func(t *Trust) { t.Ring[0].Public = pub32("x") }, "not certified"},
		{"another ID", func(t *Trust) { t.Ring[0].ID = "x" }, "not certified"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr := trusting(t)
			tc.f(&tr)
			wantErr(t, tr.CheckRing(), Denied, tc.part)
		})
	}
}

// TestAnyFlip changes one bit anywhere in a statement: nothing of it is believed.
func TestAnyFlip(t *testing.T) {
	tr := trusting(t)
	sound := statements(t)
	rapid.Check(t, func(t *rapid.T) {
		rec, l := sound["record-v1"], sound["lease-v1"]
		s := rapid.SampledFrom([]*Signed{&rec, &l}).Draw(t, "which")
		b := rapid.SampledFrom([]*[]byte{&s.Body, &s.Sig}).Draw(t, "part")
		*b = bytes.Clone(*b)
		i := rapid.IntRange(0, len(*b)*8-1).Draw(t, "bit")
		(*b)[i/8] ^= 1 << (i % 8)
		if _, err := tr.CheckRecord(rec, l); err == nil {
			t.Fatal("believed")
		}
	})
}

func TestUnknownFieldsSurvive(t *testing.T) {
	type later struct {
		Record
		Colour string `json:"colour"`
	}
	s := signed(t, DomainRecord, "a", later{record(), "red"})
	c, err := trusting(t).CheckRecord(s, signed(t, DomainLease, "signing", lease()))
	if err != nil || !bytes.Contains(c.Signed.Body, []byte(`"colour":"red"`)) {
		t.Errorf("%v: %s", err, c.Signed.Body)
	}
}

func TestSignBounds(t *testing.T) {
	big := record()
	big.Labels = map[string]string{"x": strings.Repeat("y", MaxStatement)}
	_, err := Sign(DomainRecord, key32("a"), big)
	wantErr(t, err, Invalid, "at most 16384")
	s := signed(t, DomainRecord, "a", record())
	s.Body = append(s.Body, bytes.Repeat([]byte(" "), MaxStatement)...)
	_, err = trusting(t).CheckRecord(s, signed(t, DomainLease, "signing", lease()))
	wantErr(t, err, Invalid, "too long")
}

// TestBeats checks that any two different claims to one address are ordered one way.
func TestBeats(t *testing.T) {
	a := addr("10.1.0.2")
	claim := func(t *rapid.T, name string) Claim {
		r := record()
		r.Owner = rapid.SampledFrom([]NodeID{nodeA, nodeB}).Draw(t, name+" owner")
		r.Epoch = rapid.Uint64Range(1, 2).Draw(t, name+" epoch")
		r.Incarnation, r.Number = rapid.Uint64Range(1, 2).Draw(t, name+" incarnation"), rapid.Uint64Range(1, 3).Draw(t, name+" number")
		granted := uint64(10) // one index grants an address to one node alone
		if r.Owner == nodeB {
			granted = 20
		}
		return Claim{Record: r, Granted: []uint64{granted + r.Epoch, 1}}
	}
	rapid.Check(t, func(t *rapid.T) {
		x, y, z := claim(t, "x"), claim(t, "y"), claim(t, "z")
		same := x.Record.Owner == y.Record.Owner && x.Record.Version() == y.Record.Version()
		if x.Beats(y, a) == y.Beats(x, a) && !same {
			t.Fatal("both or none wins")
		}
		if x.Record.Owner == y.Record.Owner && y.Record.Owner == z.Record.Owner && x.Beats(y, a) && y.Beats(z, a) && !x.Beats(z, a) {
			t.Fatal("not transitive")
		}
	})
}

// FuzzStatement decodes any body under any signature: no panic, and what is believed was
// signed.
func FuzzStatement(f *testing.F) {
	for _, s := range statements(f) {
		f.Add([]byte(s.Body), s.Sig)
	}
	tr := trusting(f)
	sound := statements(f)
	f.Fuzz(func(t *testing.T, body, sig []byte) {
		for _, key := range []KeyID{KeyIDOf(pub32("signing")), KeyIDOf(pub32("a"))} {
			s := Signed{Key: key, Body: body, Sig: sig}
			_, errL := tr.CheckLease(s)
			_, errI := tr.CheckIdentity(s)
			_, errR := tr.CheckRemoval(s)
			_, errC := tr.CheckRecord(s, sound["lease-v1"])
			_, _, errN := tr.CheckNode(SignedNode{sound["identity-v1"], s})
			known := slices.ContainsFunc([]string{"lease-v1", "identity-v1", "removal-v1", "record-v1", "tombstone-v1", "floor-v1", "node-record-v1"}, func(n string) bool { return bytes.Equal(sound[n].Body, body) })
			if (errL == nil || errI == nil || errR == nil || errC == nil || errN == nil) && !known {
				t.Fatalf("believed %s", body)
			}
		}
		// The same bytes, signed by those who may: decoding meets them too.
		own := Signed{Key: KeyIDOf(pub32("a")), Body: body, Sig: resign(DomainRecord, "a", body)}
		if c, err := tr.CheckRecord(own, sound["lease-v1"]); err == nil {
			for i, ip := range c.Record.IPs {
				if g, ok := lease().Granted(ip); !ok || g != c.Granted[i] {
					t.Fatalf("believed address %s", ip)
				}
			}
			if _, err := json.Marshal(c); err != nil {
				t.Fatal(err)
			}
		}
		l := Signed{Key: KeyIDOf(pub32("signing")), Body: body, Sig: resign(DomainLease, "signing", body)}
		if l, err := tr.CheckLease(l); err == nil {
			l.Granted(addr("10.1.0.2"))
		}
	})
}
