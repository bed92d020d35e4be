package state

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/overlay"
)

func changed[T any](c T, f func(*T)) T { f(&c); return c }

// TestRefused tables what each command refuses, and that a refusal changes no row.
func TestRefused(t *testing.T) {
	blue := network4("blue", "10.1.0.0/29")
	for _, tc := range []struct {
		name  string
		setup []Command // on top of cluster3
		cmd   Command
		kind  overlay.Kind
		part  string
	}{
		{"second init", nil, initCmd(), overlay.Exists, "already"},
		{"unknown token", nil, join("x", "nope"), overlay.Denied, "unknown"},
		{"expired token", nil, changed(join("x", "wt"), func(j *Join) { j.Now = now + 3600 }), overlay.Denied, "expired at 2027-01-15T09:00:00Z"},
		{"revoked token", []Command{RevokeToken{"wt"}}, join("x", "wt"), overlay.Denied, "revoked"},
		{"rotated token", []Command{RotateTokens{token("wt2", overlay.Worker)}}, join("x", "wt"), overlay.Denied, "revoked"},
		{"used-up token", []Command{CreateToken{changed(token("one", overlay.Worker), func(n *NewToken) { n.Uses = 1 })}, join("x", "one")}, join("y", "one"), overlay.Denied, "used up (1 of 1 uses)"},
		{"same ID, other key", nil, changed(join("w1", "wt"), func(j *Join) { j.Node.Key = node("w2").Key }), overlay.Denied, "another key"},
		{"a known pair without its token", []Command{CreateToken{changed(token("old", overlay.Worker), func(n *NewToken) { n.Expires = now + 1 })}}, join("w1", "old"), overlay.Denied, "expired"},
		{"a known pair with its token revoked", []Command{RevokeToken{"wt"}}, join("w1", "wt"), overlay.Denied, "revoked"},
		{"same name, other node", nil, changed(join("x", "wt"), func(j *Join) { j.Node.Name = "w1" }), overlay.Exists, "another name"},
		{"bad name", nil, changed(join("x", "wt"), func(j *Join) { j.Node.Name = "a b" }), overlay.Invalid, "not valid"},
		{"bad ID", nil, changed(join("x", "wt"), func(j *Join) { j.Node.ID = "x" }), overlay.Invalid, "malformed"},
		{"no address", nil, changed(join("x", "wt"), func(j *Join) { j.Node.Gossip = netip.AddrPort{} }), overlay.Invalid, "no address"},
		{"a removed node comes back", []Command{RemoveNode{Node: nid("w1")}}, join("w1", "wt"), overlay.Denied, "was removed"},
		{"demote the last manager", nil, SetRole{nid("m1"), overlay.Worker}, overlay.InUse, "last manager"},
		{"no role", nil, SetRole{nid("w1"), "king"}, overlay.Invalid, "no role"},
		{"role of nobody", nil, SetRole{nid("x"), overlay.Worker}, overlay.NotFound, "no node"},
		{"no availability", nil, SetAvailability{nid("w1"), "off"}, overlay.Invalid, "no availability"},
		{"address without port", nil, UpdateNode{Node: nid("w1"), Control: netip.MustParseAddrPort("192.0.2.1:0")}, overlay.Invalid, "no port"},
		{"remove the last manager", nil, RemoveNode{Node: nid("m1")}, overlay.InUse, "last manager"},
		{"remove nobody", nil, RemoveNode{Node: nid("x")}, overlay.NotFound, "no node"},
		{"token ID twice", nil, CreateToken{token("wt", overlay.Worker)}, overlay.Exists, "secret"},
		{"token that is dead at birth", nil, CreateToken{changed(token("n", overlay.Worker), func(n *NewToken) { n.Expires = now })}, overlay.Invalid, "--ttl"},
		{"token without hash", nil, CreateToken{changed(token("n", overlay.Worker), func(n *NewToken) { n.Hash = nil })}, overlay.Invalid, "hash"},
		{"revoke nothing", nil, RevokeToken{"n"}, overlay.NotFound, "no join token"},
		{"network name taken", []Command{blue}, changed(blue, func(c *CreateNetwork) { c.ID = netID("other") }), overlay.Exists, `network "blue" exists`},
		{"network ID taken", []Command{blue}, changed(network4("red"), func(c *CreateNetwork) { c.ID = blue.ID }), overlay.Exists, "taken"},
		{"network ID malformed", nil, changed(network4("red"), func(c *CreateNetwork) { c.ID = "1" }), overlay.Invalid, "no network ID"},
		{"overlap inside", nil, network4("red", "10.1.0.0/24", "10.1.0.128/25"), overlay.Invalid, "overlap"},
		{"all aux", nil, changed(network4("red", "10.1.0.0/30"), func(c *CreateNetwork) {
			c.Spec.Subnets[0].Aux = map[string]netip.Addr{"a": addr("10.1.0.1"), "b": addr("10.1.0.2")}
		}), overlay.Invalid, "no address left for its gateway"},
		{"everything is avoided", nil, changed(network4("red"), func(c *CreateNetwork) { c.Avoid = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }), overlay.Exhausted, "--subnet"},
		{"remove no network", nil, RemoveNetwork{netID("x")}, overlay.NotFound, "no network"},
		{"grant in nothing", nil, Grant{Network: netID("x"), Node: nid("w1")}, overlay.NotFound, "no network"},
		{"grant to nobody", []Command{blue}, Grant{Network: blue.ID, Node: nid("x")}, overlay.NotFound, "no node"},
		{"grant to a removed node", []Command{blue, RemoveNode{Node: nid("w1")}}, Grant{Network: blue.ID, Node: nid("w1")}, overlay.NotFound, "no node"},
		{"grant to a drained node", []Command{blue, SetAvailability{nid("w1"), overlay.Drain}}, Grant{Network: blue.ID, Node: nid("w1")}, overlay.Denied, "availability drain"},
		{"want too much", []Command{blue}, Grant{Network: blue.ID, Node: nid("w1"), Want: MaxWant + 1}, overlay.Invalid, "at a time"},
		{"outside the subnet", []Command{blue}, Grant{Network: blue.ID, Node: nid("w1"), Addrs: []netip.Addr{addr("10.2.0.1")}}, overlay.Invalid, "no subnet"},
		{"no address at all", []Command{blue}, Grant{Network: blue.ID, Node: nid("w1"), Addrs: []netip.Addr{{}}}, overlay.Invalid, "no subnet"},
		{"the gateway", []Command{blue}, Grant{Network: blue.ID, Node: nid("w1"), Addrs: []netip.Addr{addr("10.1.0.1")}}, overlay.Invalid, "gateway"},
		{"broadcast", []Command{blue}, Grant{Network: blue.ID, Node: nid("w1"), Addrs: []netip.Addr{addr("10.1.0.7")}}, overlay.Invalid, "own"},
		{"another's address", []Command{blue, Grant{Network: blue.ID, Node: nid("w2")}}, Grant{Network: blue.ID, Node: nid("w1"), Addrs: []netip.Addr{addr("10.1.0.2")}}, overlay.Exists, "leased to node w2"},
		{"a removed node's address", []Command{blue, Grant{Network: blue.ID, Node: nid("w2")}, RemoveNode{Node: nid("w2")}}, Grant{Network: blue.ID, Node: nid("w1"), Addrs: []netip.Addr{addr("10.1.0.2")}}, overlay.Exists, "leased to node w2, which was removed"},
		{"full", []Command{blue, Grant{Network: blue.ID, Node: nid("w2"), Want: 100}}, Grant{Network: blue.ID, Node: nid("w1")}, overlay.Exhausted, "no IPv4 address left"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := cluster3(t)
			w.do(tc.setup...)
			before := asJSON(t, w.s.FactsFor(nid("m1")))
			_, err := w.try(tc.cmd)
			wantErr(t, err, tc.kind, tc.part)
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			if after := asJSON(t, w.s.FactsFor(nid("m1"))); after != before {
				t.Errorf("the refused command changed %s\nto %s", before, after)
			}
		})
	}
}

func TestInitRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		f    func(*Init)
		part string
	}{
		{"no cluster", func(c *Init) { c.Cluster = "" }, "no cluster"},
		{"no epoch", func(c *Init) { c.Epoch = 0 }, "no cluster"},
		{"no certificate", func(c *Init) { c.CA = nil }, "can't be read"},
		{"other CA key", func(c *Init) { c.CAKey = key32("x") }, "does not belong"},
		{"torn CA key", func(c *Init) { c.CAKey = append(key32("ca")[:32:32], key32("x")[32:]...) }, "does not belong"},
		{"short signing key", func(c *Init) { c.SigningKeys = [][]byte{{1}} }, "signing keys"},
		{"no gossip key", func(c *Init) { c.GossipKeys = nil }, "gossip keys"},
		{"no port", func(c *Init) { c.Params.DataPathPort = 0 }, "4789"},
		{"pool bits", func(c *Init) { c.Params.PoolBits4 = 8 }, "mask length"},
		{"pool of multicast", func(c *Init) { c.Params.Pools[0] = netip.MustParsePrefix("224.0.0.0/11") }, "reserved"},
		{"no pool prefix", func(c *Init) { c.Params.Pools[1] = netip.Prefix{} }, "can't be cut"},
		{"node without a name", func(c *Init) { c.Node.Name = "" }, "name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			_, err := w.try(changed(initCmd(), tc.f))
			wantErr(t, err, overlay.Invalid, tc.part)
			if w.s.View().Ready() {
				t.Error("a refused init made a cluster")
			}
			w.do(initCmd())
		})
	}
	_, err := newWorld(t).try(network4("blue"))
	wantErr(t, err, overlay.NotMember, "heddle init")
}

func TestInit(t *testing.T) {
	w := newWorld(t)
	res := w.do(initCmd()).(NodeResult)
	v := w.s.View()
	if res.Node.Role != overlay.Manager || res.Node.Number != 1 || res.Revision != 1 || v.Revision != 1 || len(v.Managers()) != 1 {
		t.Errorf("%+v", res)
	}
	if err := trust(w).CheckRing(); err != nil {
		t.Error(err)
	}
	id, err := trust(w).CheckIdentity(res.Node.Identity)
	if err != nil || id.Node != nid("m1") || id.Number != 1 || !id.Key.Equal(node("m1").Key) {
		t.Errorf("identity %+v: %v", id, err)
	}
}

func TestJoin(t *testing.T) {
	w := cluster3(t)
	w.do(CreateToken{changed(token("two", overlay.Manager), func(n *NewToken) { n.Uses = 2 })})
	first := w.do(join("m2", "two")).(NodeResult)
	again := w.do(changed(join("m2", "two"), func(j *Join) { j.Now = now + 99999 })).(NodeResult)
	if first.Node.Role != overlay.Manager || first.Node.Number != 4 || asJSON(t, first) != asJSON(t, again) {
		t.Errorf("%+v, then %+v", first, again)
	}
	if used := w.s.View().Tokens["two"].Used; used != 1 {
		t.Errorf("%d uses", used)
	}
	w.do(join("m3", "two"), join("m2", "two")) // used up, and known
	if _, err := w.try(join("m4", "two")); err == nil {
		t.Error("a third use of two")
	}
	row := w.s.View().Tokens["two"].Row()
	if row.Uses != 0 || row.Expires.Unix() != now+3600 || w.s.View().Tokens["wt"].Row().Uses != -1 {
		t.Errorf("%+v", row)
	}
	w.do(RemoveNode{Node: nid("w2"), Consent: true})
	if n := w.do(changed(join("w9", "wt"), func(j *Join) { j.Node.Name = "w2" })).(NodeResult); n.Node.Number != 6 {
		t.Errorf("a number was given twice: %d", n.Node.Number)
	}
}

func TestNodes(t *testing.T) {
	w := cluster3(t)
	up := w.do(SetRole{nid("w1"), overlay.Manager}).(NodeResult)
	if up.Node.Role != overlay.Manager || up.Node.Index != w.index {
		t.Errorf("%+v", up)
	}
	rev := w.s.View().Revision
	w.do(SetRole{nid("w1"), overlay.Manager}, UpdateNode{Node: nid("w1")})
	if got := w.s.View().Revision; got != rev {
		t.Errorf("commands without effect made revision %d of %d", got, rev)
	}
	w.do(SetRole{nid("m1"), overlay.Worker}, RemoveNode{Node: nid("m1"), Consent: true})
	n := w.do(SetAvailability{nid("w2"), overlay.Pause}, UpdateNode{Node: nid("w2"), Gossip: netip.MustParseAddrPort("[2001:db8::1]:7")}).(NodeResult).Node
	if n.Availability != overlay.Pause || n.Gossip.Port() != 7 || n.Control != node("w2").Control {
		t.Errorf("%+v", n)
	}
	first := w.do(RemoveNode{Node: nid("w2")}).(RemovalResult)
	again := w.do(RemoveNode{Node: nid("w2")}).(RemovalResult)
	r, err := w.s.FactsFor(nid("w1")).Trust().CheckRemoval(first.Removal)
	if err != nil || r.Node != nid("w2") || first.Removal.Digest() != again.Removal.Digest() {
		t.Errorf("%+v %v", r, err)
	}
}

func TestTokensAreForgotten(t *testing.T) {
	w := cluster3(t)
	for i := range maxDeadTokens + 10 {
		name := "t" + strings.Repeat("x", i%7) + string(rune('a'+i%26)) + strings.Repeat("y", i/26)
		n := token(name, overlay.Worker)
		n.Created, n.Expires = int64(i+1), int64(i+2)
		w.do(CreateToken{n})
	}
	w.do(CreateToken{token("last", overlay.Worker)})
	if n := len(w.s.View().Tokens); n != maxDeadTokens+3 {
		t.Errorf("%d tokens", n)
	}
	w.do(join("w7", "wt"), join("w8", "last"))
}

func TestCreateNetwork(t *testing.T) {
	w := cluster3(t)
	create := func(c CreateNetwork) overlay.Network { return w.do(c).(NetworkResult).Network }
	for _, tc := range []struct {
		name string
		cmd  CreateNetwork
		want string // subnets with gateways
		vni  uint32
	}{
		{"first", network4("a"), "10.64.0.0/24 10.64.0.1", 0},
		{"both families", network46("b"), "10.64.1.0/24 10.64.1.1 fd12:3456:789a::/64 fd12:3456:789a::1", 1},
		{"equal to another's", network4("c", "10.64.0.0/24"), "10.64.0.0/24 10.64.0.1", 2},
		{"inside the pool", network4("d", "10.64.3.0/25"), "10.64.3.0/25 10.64.3.1", 3},
		{"two subnets", network4("e", "10.9.0.0/30", "10.8.0.0/30"), "10.9.0.0/30 10.9.0.1 10.8.0.0/30 10.8.0.1", 4},
		{"IPv6 implied", network4("f", "fd00::/64"), "fd00::/64 fd00::1 10.64.2.0/24 10.64.2.1", 5},
		{"around what is taken", network4("g"), "10.64.4.0/24 10.64.4.1", 6},
		{"gateway given", changed(network4("h", "10.7.0.0/24"), func(c *CreateNetwork) { c.Spec.Subnets[0].Gateway = addr("10.7.0.254") }), "10.7.0.0/24 10.7.0.254", 7},
		{"around what nodes route", changed(network4("i"), func(c *CreateNetwork) { c.Avoid = []netip.Prefix{netip.MustParsePrefix("10.64.0.0/13")} }), "10.72.0.0/24 10.72.0.1", 8},
	} {
		n := create(tc.cmd)
		var got []string
		for _, s := range n.Subnets {
			got = append(got, s.Prefix.String(), s.Gateway.String())
		}
		if strings.Join(got, " ") != tc.want || n.VNI != overlay.MinVNI+tc.vni || n.Created != w.index {
			t.Errorf("%s: %v VNI +%d", tc.name, got, n.VNI-overlay.MinVNI)
		}
	}
	w.do(RemoveNetwork{netID("a")}) // c has the same subnet
	if n := create(network4("j")); n.Subnets[0].Prefix.String() != "10.64.5.0/24" || n.VNI != overlay.MinVNI+9 {
		t.Errorf("%+v", n)
	}
	w.do(RemoveNetwork{netID("c")})
	if n := create(network4("k")); n.Subnets[0].Prefix.String() != "10.64.0.0/24" {
		t.Errorf("the lowest subnet was not reused: %+v", n)
	}
}

// TestVNIsRotate wraps around at the end of the VNIs.
func TestVNIsRotate(t *testing.T) {
	w := cluster3(t)
	w.do(network4("a"), network4("b"), RemoveNetwork{netID("a")})
	w.s.t.NextVNI = overlay.MaxVNI
	for i, want := range []uint32{overlay.MaxVNI, overlay.MinVNI, overlay.MinVNI + 2} { // b has MinVNI+1
		n := w.do(network4("n" + string(rune('0'+i)))).(NetworkResult).Network
		if n.VNI != want {
			t.Errorf("VNI %d, want %d", n.VNI, want)
		}
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestGrant(t *testing.T) {
	w := cluster3(t)
	w.do(network46("blue"))
	g := w.do(Grant{Network: netID("blue"), Node: nid("w1")}).(GrantResult)
	if g.Network.Name != "blue" || len(g.Leases) != 1 || g.Lease.Digest() != g.Leases[nid("w1")].Digest() || g.Revision != w.index {
		t.Errorf("%+v", g)
	}
	want := func(node, text string) {
		t.Helper()
		l := w.leaseOf("blue", node)
		if got := grantsText(l); got != text || l.Node != nid(node) || l.Network != netID("blue") {
			t.Errorf("%s has %s, want %s", node, got, text)
		}
	}
	want("w1", "10.64.0.2-10.64.0.9 fd12:3456:789a::2-fd12:3456:789a::9")
	ask := func(node string, n int, addrs ...string) {
		t.Helper()
		c := Grant{Network: netID("blue"), Node: nid(node), Want: n}
		for _, a := range addrs {
			c.Addrs = append(c.Addrs, addr(a))
		}
		w.do(c)
	}
	ask("w2", 1, "10.64.0.10", "fd12:3456:789a::ffff")
	want("w2", "10.64.0.10-10.64.0.11 fd12:3456:789a::a-fd12:3456:789a::a fd12:3456:789a::ffff-fd12:3456:789a::ffff")
	ask("w1", 0, "10.64.0.5", "10.64.0.200", "10.64.0.200")
	want("w1", "10.64.0.2-10.64.0.9 fd12:3456:789a::2-fd12:3456:789a::9 10.64.0.200-10.64.0.200")
	if l := w.leaseOf("blue", "w1"); l.Grants[2].Index != w.index || l.Grants[0].Index == w.index || l.Index != w.index {
		t.Errorf("indexes of %+v", l)
	}
	rev := w.s.View().Revision
	ask("w1", 0, "10.64.0.5") // its own
	if w.s.View().Revision != rev {
		t.Error("a grant of nothing made a revision")
	}
	ask("w1", 0)
	want("w1", "10.64.0.2-10.64.0.9 fd12:3456:789a::2-fd12:3456:789a::9 10.64.0.200-10.64.0.200 10.64.0.12-10.64.0.19 fd12:3456:789a::b-fd12:3456:789a::12")
	if g.Leases[nid("w2")].Body != nil {
		t.Error("a result changed after it was given")
	}
	w.do(RemoveNode{Node: nid("w1"), Consent: true})
	ask("w2", 0, "10.64.0.5")
	ask("m1", 2)
	want("m1", "10.64.0.2-10.64.0.3 fd12:3456:789a::2-fd12:3456:789a::3")
}

// TestSmallSubnet uses a /29 to its last address: 8 less network, gateway and broadcast.
func TestSmallSubnet(t *testing.T) {
	for _, consent := range []bool{true, false} {
		w := cluster3(t)
		w.do(network4("blue", "10.1.0.0/29"))
		for i, node := range []string{"w1", "w2", "w1", "m1", "w2"} { // one at a time, as an eighth is less
			w.do(Grant{Network: netID("blue"), Node: nid(node)})
			if n := len(w.leaseOf("blue", node).Grants); n > 2 {
				t.Errorf("grant %d: %d runs", i, n)
			}
		}
		for _, node := range []string{"w1", "w2", "m1"} {
			_, err := w.try(Grant{Network: netID("blue"), Node: nid(node)})
			wantErr(t, err, overlay.Exhausted, "all are leased")
		}
		w.do(RemoveNode{Node: nid("w1"), Consent: consent})
		left := 0
		for ; ; left++ {
			if _, err := w.try(Grant{Network: netID("blue"), Node: nid("m1")}); err != nil {
				break
			}
		}
		if want := map[bool]int{true: 2, false: 0}[consent]; left != want {
			t.Errorf("consent %v: %d more addresses, want %d", consent, left, want)
		}
	}
}

// TestManyAddresses brings the number of addresses of DESIGN's largest node into one lease.
func TestManyAddresses(t *testing.T) {
	w := cluster3(t)
	c := network4("blue", "10.1.0.0/16", "fd12:3456:789a:bcde:1234:5678:9abc:0/112")
	w.do(c)
	for w.s.t.pools[c.ID].held[nid("w1")] == nil || count(w.s.t.pools[c.ID].held[nid("w1")], true) < 4000 {
		w.do(Grant{Network: c.ID, Node: nid("w1")})
	}
	for i := range 1000 { // until the statement is full
		_, err := w.try(Grant{Network: c.ID, Node: nid("w2"), Want: 1, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 200, byte(2 * i)})}})
		if err != nil {
			wantErr(t, err, overlay.Exhausted, "separate runs")
			if i < 50 {
				t.Errorf("only %d runs", i)
			}
			return
		}
	}
	t.Error("a lease has no bound")
}

// A node takes part in a network without an address, also one that is to get no endpoints and where
// none are left, and gets some later like any other.
func TestGrantOfNothing(t *testing.T) {
	w := cluster3(t)
	w.do(network46("blue"))
	w.do(SetAvailability{nid("w1"), overlay.Drain})
	bare := Grant{Network: netID("blue"), Node: nid("w1"), Bare: true}
	g := w.do(bare).(GrantResult)
	if _, in := g.Leases[nid("w1")]; !in || grantsText(w.leaseOf("blue", "w1")) != "" {
		t.Fatalf("it has %q of %+v", grantsText(w.leaseOf("blue", "w1")), g)
	}
	if f := w.s.FactsFor(nid("w1")); len(f.Leases[netID("blue")]) != 1 {
		t.Errorf("it is told of %v", f.Leases)
	}
	rev := w.s.View().Revision
	w.do(bare)
	if w.s.View().Revision != rev {
		t.Error("a second one made a revision")
	}
	w.do(SetAvailability{nid("w1"), overlay.Active})
	w.do(Grant{Network: netID("blue"), Node: nid("w1"), Want: 1})
	want := "10.64.0.2-10.64.0.2 fd12:3456:789a::2-fd12:3456:789a::2"
	w.do(bare)
	if got := grantsText(w.leaseOf("blue", "w1")); got != want {
		t.Errorf("then it has %s, want %s", got, want)
	}
}
