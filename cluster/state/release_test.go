package state

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/heddle-net/heddle/overlay"
)

// next is what a node is granted when it asks at a time.
func (w *world) next(node string, at int64, g Grant) (string, error) {
	w.Helper()
	before := w.s.t.pools[netID("blue")].held[nid(node)]
	g.Network, g.Node, g.Now = netID("blue"), nid(node), at
	if _, err := w.try(g); err != nil {
		return "", err
	}
	return grantsText(overlay.Lease{Grants: w.leaseOf("blue", node).Grants[len(before):]}), nil
}

func TestReleasedAddressesRest(t *testing.T) {
	w := cluster3(t)
	w.do(network4("blue", "10.1.0.0/29")) // .2 to .6
	w.do(Grant{Network: netID("blue"), Node: nid("w1"), Want: 3, Now: now})
	old := w.leaseOf("blue", "w1").Grants[0]
	run := func(first, last string) overlay.Grant {
		return overlay.Grant{First: addr(first), Last: addr(last), Index: old.Index}
	}
	g := w.do(Release{giveBack("w1", run("10.1.0.3", "10.1.0.4")), now}).(GrantResult)
	if l := w.leaseOf("blue", "w1"); grantsText(l) != "10.1.0.2-10.1.0.2" || l.Grants[0].Index != old.Index || g.Lease.Digest() != w.s.View().Leases(netID("blue"))[nid("w1")].Digest() {
		t.Fatalf("after a release: %+v", l)
	}
	for _, step := range []struct {
		what string
		at   int64
		g    Grant
		want string
	}{
		{"what never rested comes first", now + 1, Grant{}, "10.1.0.5-10.1.0.5"},
		{"spare addresses are not the last ones", now + 1, Grant{Spare: true}, ""},
		{"one by name", now + 1, Grant{Addrs: []netip.Addr{addr("10.1.0.4")}}, "10.1.0.4-10.1.0.4"},
		{"the last that is awake", now + 59, Grant{}, "10.1.0.6-10.1.0.6"},
		{"nothing else is left", now + 59, Grant{}, "10.1.0.3-10.1.0.3"},
	} {
		if got, err := w.next("w2", step.at, step.g); err != nil || got != step.want {
			t.Errorf("%s: got %q, %v, want %q", step.what, got, err, step.want)
		}
	}
	if got, err := w.next("w2", now+59, Grant{Spare: true}); err != nil || got != "" {
		t.Errorf("spare addresses of a full subnet: %q, %v", got, err)
	}
	_, err := w.next("w2", now+59, Grant{})
	wantErr(t, err, overlay.Exhausted, "all are leased")

	rev := w.s.View().Revision
	w.do(Release{giveBack("w1", run("10.1.0.3", "10.1.0.4")), now + 70}) // once more, late
	if w.s.View().Revision != rev {
		t.Error("a release that came twice changed something")
	}
	w.do(Release{giveBack("w1", run("10.1.0.2", "10.1.0.2")), now + 70})
	if l := w.leaseOf("blue", "w1"); len(l.Grants) != 0 || !slices.Contains(slices.Collect(maps.Keys(w.s.View().Leases(netID("blue")))), nid("w1")) {
		t.Errorf("after the release of all: %+v", l)
	}
	if got, err := w.next("w1", now+130, Grant{}); err != nil || got != "10.1.0.2-10.1.0.2" || w.leaseOf("blue", "w1").Grants[0].Index == old.Index {
		t.Errorf("granted again: %q, %v", got, err)
	}
	w.do(Release{giveBack("w1", run("10.1.0.2", "10.1.0.2")), now + 140}) // of the first grant, very late
	if grantsText(w.leaseOf("blue", "w1")) != "10.1.0.2-10.1.0.2" {
		t.Error("an old release took a new grant")
	}
}

func TestReleaseRefused(t *testing.T) {
	w := cluster3(t)
	w.do(network4("blue", "10.1.0.0/29"), Grant{Network: netID("blue"), Node: nid("w1"), Want: 3})
	g := w.leaseOf("blue", "w1").Grants[0]
	forged := giveBack("w1", g)
	forged.Sig = giveBack("w2", g).Sig
	_, err := w.try(Release{forged, now})
	wantErr(t, err, overlay.Denied, "wrong signature")
	_, err = w.try(Release{giveBack("nobody", g), now})
	wantErr(t, err, overlay.NotFound, "there is no node")
	if got := grantsText(w.leaseOf("blue", "w1")); got != "10.1.0.2-10.1.0.4" {
		t.Errorf("w1 has %s", got)
	}
}

// A fence stands until Unfence; then the addresses rest and are free.
func TestFence(t *testing.T) {
	w := cluster3(t)
	w.do(network4("blue", "10.1.0.0/29"),
		Grant{Network: netID("blue"), Node: nid("w1"), Want: 4}, Grant{Network: netID("blue"), Node: nid("w2")},
		RemoveNode{Node: nid("w1"), Force: true, Now: now})
	f := w.s.View().Fences()
	if len(f) != 1 || f[0].Node != nid("w1") || f[0].Removed != now || !f[0].Forced || !slices.Equal(f[0].Participants, []overlay.NodeID{nid("w2")}) {
		t.Fatalf("%+v", f)
	}
	_, err := w.next("w2", now+3600, Grant{})
	wantErr(t, err, overlay.Exhausted, "")
	_, err = w.next("w2", now+3600, Grant{Addrs: []netip.Addr{addr("10.1.0.2")}})
	wantErr(t, err, overlay.Exists, "was removed and may still use it")
	w.do(Unfence{nid("w1"), now + 10})
	if f := w.s.View().Fences(); len(f) > 0 {
		t.Errorf("after Unfence: %+v", f)
	}
	if got, err := w.next("w2", now+71, Grant{Want: 4}); err != nil || got != "10.1.0.2-10.1.0.5" {
		t.Errorf("%q, %v", got, err)
	}
	_, err = w.try(Unfence{nid("w2"), now})
	wantErr(t, err, overlay.NotFound, "was not removed")
}
