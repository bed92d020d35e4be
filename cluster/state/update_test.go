package state

import (
	"net/netip"
	"testing"

	"github.com/heddle-net/heddle/overlay"
)

func TestUpdateNetwork(t *testing.T) {
	w := cluster3(t)
	blue := network4("blue", "10.1.0.0/30")
	blue.Spec.Labels = map[string]string{"team": "a", "old": ""}
	w.do(blue, network4("red"), Grant{Network: blue.ID, Node: nid("w1")}, UpdateNetwork{
		ID: blue.ID, Labels: map[string]string{"team": "b"}, DropLabels: []string{"old", "never"},
		Subnets: []overlay.Subnet{{Prefix: netip.MustParsePrefix("10.2.0.0/29"), Aux: map[string]netip.Addr{"router": addr("10.2.0.2")}}},
	})
	n := w.s.View().networks[blue.ID].def
	if len(n.Labels) != 1 || n.Labels["team"] != "b" || len(n.Subnets) != 2 || n.Subnets[1].Gateway != addr("10.2.0.1") {
		t.Fatalf("the network is %+v", n)
	}
	if f := w.s.FactsFor(nid("w1")); len(f.Networks[blue.ID].Subnets) != 2 {
		t.Error("its participant is not told")
	}
	if f := w.s.FactsFor(nid("w2")); len(f.Networks) != 0 {
		t.Error("a node that takes no part is told of it")
	}

	// One of /30 was left for w1; the second subnet has addresses for w2, but not the reserved.
	g := grantOf(t, w, Grant{Network: blue.ID, Node: nid("w2"), Want: 4})
	for _, r := range g {
		if !netip.MustParsePrefix("10.2.0.0/29").Contains(r.First) || r.First == addr("10.2.0.1") || r.Last == addr("10.2.0.2") {
			t.Errorf("w2 got %s-%s", r.First, r.Last)
		}
	}

	// An added subnet is taken out of the pools.
	w.do(UpdateNetwork{ID: blue.ID, Subnets: []overlay.Subnet{{Prefix: netip.MustParsePrefix("10.64.1.0/24")}}}, network4("third"), network4("fourth"))
	for _, name := range []string{"third", "fourth"} {
		if p := w.s.View().networks[netID(name)].def.Subnets[0].Prefix; p == netip.MustParsePrefix("10.64.1.0/24") {
			t.Errorf("%s got %s too", name, p)
		}
	}
	for _, tc := range []struct {
		u    UpdateNetwork
		kind overlay.Kind
		part string
	}{
		{UpdateNetwork{ID: netID("x")}, overlay.NotFound, "no network"},
		{UpdateNetwork{ID: blue.ID, Subnets: []overlay.Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/24")}}}, overlay.Invalid, "overlap"},
		{UpdateNetwork{ID: blue.ID, Subnets: []overlay.Subnet{{Prefix: netip.MustParsePrefix("10.3.0.0/24"), Gateway: addr("10.4.0.1")}}}, overlay.Invalid, "gateway"},
		{UpdateNetwork{ID: blue.ID, Subnets: []overlay.Subnet{{}}}, overlay.Invalid, "subnet"},
	} {
		_, err := w.try(tc.u)
		wantErr(t, err, tc.kind, tc.part)
	}
}

// grantOf are the runs of the lease that a grant leads to.
func grantOf(t *testing.T, w *world, g Grant) []overlay.Grant {
	t.Helper()
	res, err := w.try(g)
	if err != nil {
		t.Fatal(err)
	}
	var l overlay.Lease
	if err := res.(GrantResult).Leases[g.Node].Decode(overlay.DomainLease, &l); err != nil {
		t.Fatal(err)
	}
	return l.Grants
}

func TestUpdateParams(t *testing.T) {
	w := cluster3(t)
	before := w.s.FactsFor(nid("w1"))
	w.do(UpdateParams{AddPools: []netip.Prefix{netip.MustParsePrefix("172.20.0.0/22"), netip.MustParsePrefix("fd77::/48")}})
	d, ok := w.s.Since(before.Revision, nid("w1"))
	if p := d.Apply(before).Params.Pools; !ok || p[len(p)-1] != netip.MustParsePrefix("fd77::/48") {
		t.Errorf("a node's pools are %v", p)
	}
	for _, tc := range []struct {
		pool string
		kind overlay.Kind
		part string
	}{
		{"172.20.1.0/24", overlay.Exists, "overlaps 172.20.0.0/22"},
		{"192.168.1.0/26", overlay.Invalid, "can't be cut into /24"},
		{"172.21.0.1/16", overlay.Invalid, "can't be cut"},
	} {
		_, err := w.try(UpdateParams{AddPools: []netip.Prefix{netip.MustParsePrefix(tc.pool)}})
		wantErr(t, err, tc.kind, tc.part)
	}
}

// A pool that is used up goes on in the next.
func TestFullPool(t *testing.T) {
	w := newWorld(t)
	first := initCmd()
	first.Params.Pools = []netip.Prefix{netip.MustParsePrefix("10.64.0.0/23")}
	w.do(first, network4("a"), network4("b"))
	_, err := w.try(network4("c"))
	wantErr(t, err, overlay.Exhausted, "heddle update --default-addr-pool")
	w.do(UpdateParams{AddPools: []netip.Prefix{netip.MustParsePrefix("10.80.0.0/24")}}, network4("c"))
	if p := w.s.View().networks[netID("c")].def.Subnets[0].Prefix; p != netip.MustParsePrefix("10.80.0.0/24") {
		t.Errorf("c has %s", p)
	}
}
