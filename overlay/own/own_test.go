package own

import (
	"crypto/ed25519"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/overlay"
)

const self = overlay.NodeID("aa0102030405000000000000000000ff")

// disk keeps a state in memory.
type disk struct{ State }

func (d *disk) SaveOwn(s State) error   { d.State = s; return nil }
func (d *disk) LoadOwn() (State, error) { return d.State, nil }

func open(t *testing.T, d *disk, routes ...string) *Networks {
	t.Helper()
	drawn := byte(0)
	n, err := Open(Config{
		Self: self, Name: "a", Key: ed25519.NewKeyFromSeed(make([]byte, 32)), Store: d,
		Routes: func() (all []netip.Prefix, _ error) {
			for _, r := range routes {
				all = append(all, netip.MustParsePrefix(r))
			}
			return all, nil
		},
		Random: func(b []byte) { drawn++; b[0], b[1] = byte(len(d.Networks)), drawn },
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func spec(name string, subnets ...string) overlay.NetworkSpec {
	s := overlay.NetworkSpec{Name: name, Driver: overlay.DriverBridge, IPv4: true, IPv6: true}
	for _, p := range subnets {
		s.Subnets = append(s.Subnets, overlay.Subnet{Prefix: netip.MustParsePrefix(p)})
	}
	return s
}

// mustCreate makes a network and answers its subnets.
func mustCreate(t *testing.T, n *Networks, s overlay.NetworkSpec) (id overlay.NetworkID, subnets string) {
	t.Helper()
	row, err := n.Create(s)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, c := range row.IPAM.Config {
		all = append(all, c.Subnet.String()+" by "+c.Gateway.String())
	}
	return row.ID, strings.Join(all, ", ")
}

func TestSubnetsAreChosen(t *testing.T) {
	n := open(t, &disk{}, "10.96.0.0/24", "10.96.2.0/25")
	for _, tt := range []struct {
		spec overlay.NetworkSpec
		want string
	}{
		{spec("one"), "10.96.1.0/24 by 10.96.1.1, fdaa:102:304::/64 by fdaa:102:304::1"},
		{spec("two"), "10.96.3.0/24 by 10.96.3.1, fdaa:102:304:1::/64 by fdaa:102:304:1::1"},
		{spec("three", "10.20.0.0/16"), "10.20.0.0/16 by 10.20.0.1, fdaa:102:304:2::/64 by fdaa:102:304:2::1"},
	} {
		if _, got := mustCreate(t, n, tt.spec); got != tt.want {
			t.Errorf("%s has %s, want %s", tt.spec.Name, got, tt.want)
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	n := open(t, &disk{})
	mustCreate(t, n, spec("one"))
	cluster, tight := spec("blue"), spec("tight", "10.20.0.0/30")
	cluster.Driver = overlay.DriverOverlay
	tight.Subnets[0].Aux = map[string]netip.Addr{"a": netip.MustParseAddr("10.20.0.1"), "b": netip.MustParseAddr("10.20.0.2")}
	for _, tt := range []struct {
		spec overlay.NetworkSpec
		kind overlay.Kind
		says string
	}{
		{spec("one"), overlay.Exists, "heddle network rm one"},
		{cluster, overlay.NotMember, "-d bridge"},
		{tight, overlay.Invalid, "gateway"},
		{spec("no name"), overlay.Invalid, "no name"},
	} {
		if _, err := n.Create(tt.spec); overlay.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %v and %q", tt.spec.Name, err, tt.kind, tt.says)
		}
	}
}

// What is granted is never granted again, also after a restart, until it is released.
func TestGrants(t *testing.T) {
	d := &disk{}
	n := open(t, d)
	id, _ := mustCreate(t, n, spec("one", "10.20.0.0/29", "fd00:20::/64"))
	has := func(n *Networks) (all []string) {
		f := n.Facts()
		var l overlay.Lease
		if err := f.Leases[id][self].Decode(overlay.DomainLease, &l); err != nil {
			t.Fatal(err)
		}
		for _, g := range l.Grants {
			if g.First.Is4() {
				all = append(all, g.First.String()+"-"+g.Last.String())
			}
		}
		return all
	}
	grant := func(want int, addrs ...string) error {
		var named []netip.Addr
		for _, a := range addrs {
			named = append(named, netip.MustParseAddr(a))
		}
		_, err := Control{n}.Grant(t.Context(), "one", want, named)
		return err
	}
	for _, tt := range []struct {
		want int
		addr []string
		has  string
		kind overlay.Kind
	}{
		{1, nil, "10.20.0.2-10.20.0.2", ""},
		{0, []string{"10.20.0.5"}, "10.20.0.2-10.20.0.2 10.20.0.5-10.20.0.5", ""},
		{0, []string{"10.20.0.5"}, "10.20.0.2-10.20.0.2 10.20.0.5-10.20.0.5", ""},
		{0, []string{"10.20.0.1"}, "10.20.0.2-10.20.0.2 10.20.0.5-10.20.0.5", overlay.Invalid},
		{0, []string{"10.21.0.1"}, "10.20.0.2-10.20.0.2 10.20.0.5-10.20.0.5", overlay.Invalid},
		{3, nil, "10.20.0.2-10.20.0.2 10.20.0.5-10.20.0.5 10.20.0.3-10.20.0.4 10.20.0.6-10.20.0.6", ""},
		{1, nil, "10.20.0.2-10.20.0.2 10.20.0.5-10.20.0.5 10.20.0.3-10.20.0.4 10.20.0.6-10.20.0.6", overlay.Exhausted},
	} {
		if err := grant(tt.want, tt.addr...); overlay.KindOf(err) != tt.kind && (err != nil || tt.kind != "") {
			t.Errorf("grant %d %v: %v, want %q", tt.want, tt.addr, err, tt.kind)
		}
		if got := strings.Join(has(n), " "); got != tt.has {
			t.Errorf("after %d %v the node has %s, want %s", tt.want, tt.addr, got, tt.has)
		}
	}
	before := has(n)
	if n = open(t, d); !slices.Equal(has(n), before) {
		t.Errorf("a restart has %s, want %s", has(n), before)
	}
	back := n.state.Networks[0].Grants[:1]
	s, err := overlay.Sign(overlay.DomainRelease, n.Key, overlay.Release{V: 1, Network: id, Node: self, Grants: back})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (Control{n}).Release(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(has(n), "10.20.0.2-10.20.0.2") {
		t.Error("what was released is granted still")
	}
}

// A network goes when nothing is attached to it.
func TestRemove(t *testing.T) {
	n := open(t, &disk{})
	id, _ := mustCreate(t, n, spec("one"))
	state := func(number uint64, deleted bool) {
		s, err := overlay.Sign(overlay.DomainRecord, n.Key, overlay.Record{V: 1, Network: id, Endpoint: "e1", Owner: self, Incarnation: 1, Number: number, Workload: "web", Names: []string{"web"}, Deleted: deleted})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (Peers{n}).Publish(t.Context(), id, []overlay.Signed{s}, overlay.Signed{}); err != nil {
			t.Fatal(err)
		}
	}
	state(1, false)
	if err := n.Remove("one"); overlay.KindOf(err) != overlay.InUse || !strings.Contains(err.Error(), "web") {
		t.Errorf("a network with a workload is removed: %v", err)
	}
	state(2, true)
	if err := n.Remove("one"); err != nil {
		t.Error(err)
	}
	if _, err := n.Row("one"); overlay.KindOf(err) != overlay.NotFound {
		t.Errorf("a network that was removed is found: %v", err)
	}
}
