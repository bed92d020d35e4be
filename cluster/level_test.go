package cluster

import (
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/cluster/api"
	"github.com/heddle-net/heddle/overlay"
)

// before is what the builds before feature levels said.
func before() overlay.Hello {
	reads := maps.Clone(overlay.Reads())
	delete(reads, "level")
	return overlay.Hello{Version: "0.1.0", Reads: reads}
}

// With a manager that reads the first level alone, what came in later is refused, or left undone
// without a word, until it is upgraded.
func TestTheLevelWaitsForAManager(t *testing.T) {
	a, _ := foundAt(t, 1, before())
	small := overlay.NetworkSpec{Name: "small", Driver: overlay.DriverOverlay, IPv4: true, Subnets: []overlay.Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/30")}}}
	if err := a.do("POST", "/v1/networks", small, nil); err != nil {
		t.Fatal(err)
	}
	want := func(what string, err error, kind overlay.Kind, words ...string) {
		t.Helper()
		if overlay.KindOf(err) != kind {
			t.Errorf("%s: %s: %v", what, overlay.KindOf(err), err)
			return
		}
		for _, word := range words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: the error does not say %q: %v", what, word, err)
			}
		}
	}
	update := func() error {
		return a.do("PATCH", "/v1/networks/small", overlay.NetworkUpdate{Labels: map[string]string{"a": "b"}}, nil)
	}
	waits := []string{"needs feature level 2", "waits for n1 (heddle 0.1.0, reads level 1)", "upgrade heddle there"}
	want("update a network", update(), overlay.Unsupported, append(waits, "updating a network")...)
	want("add a pool", a.do("PATCH", "/v1/cluster", overlay.ClusterUpdate{AddPools: []netip.Prefix{netip.MustParsePrefix("10.200.0.0/16")}}, nil), overlay.Unsupported, append(waits, "adding an address pool")...)

	tok := func(role overlay.Role) string {
		t.Helper()
		var tok overlay.TokenReply
		if err := a.do("POST", "/v1/tokens", overlay.TokenRequest{Role: role}, &tok); err != nil {
			t.Fatal(err)
		}
		return tok.Token
	}
	w := join(t, a, "w", tok(overlay.Worker))
	if _, err := w.client.Grant(ctx(t), api.GrantRequest{Network: "small", Spare: true}); err != nil {
		t.Fatal(err)
	}
	_, err := a.client.Grant(ctx(t), api.GrantRequest{Network: "small"})
	want("the last address is another's", err, overlay.Exhausted, "no IPv4 address left")
	want("an encrypted network", a.do("POST", "/v1/networks", overlay.NetworkSpec{Name: "sealed", Driver: overlay.DriverOverlay, IPv4: true, Encrypted: true}, nil),
		overlay.Unsupported, "making an encrypted network needs feature level 3")
	want("a service", a.do("POST", "/v1/services", web("small"), nil), overlay.Unsupported, "making or changing a service needs feature level 4", "waits for n1")
	if w.holder.asked != 0 {
		t.Error("a holder was asked for addresses that nobody can take back")
	}
	join(t, a, "gone", tok(overlay.Worker))
	if err := a.do("DELETE", "/v1/nodes/gone?force=1", nil, nil); err != nil {
		t.Fatal(err)
	}
	if m := a.manager.state.Level(); m != 1 || a.facts().Level != 1 {
		t.Errorf("the level is %d, in the facts %d", m, a.facts().Level)
	}

	a.view.says(a, hello)
	eventually(t, "newest level", func() bool { return w.facts().Level == overlay.Level })
	if err := update(); err != nil {
		t.Error(err)
	}

	// Who reads the first level alone can be a worker from now on.
	old := newHost(t, "old")
	r := old.request(netip.MustParseAddrPort("127.0.0.9:4000"))
	r.Hello = before()
	_, err = api.Join(ctx(t), a.port.Addr().String(), token(t, tok(overlay.Manager)), r)
	want("join as a manager", err, overlay.Unsupported, "old (heddle 0.1.0, reads level 1)", "at feature level 4", "upgrade heddle there")
	if _, err := api.Join(ctx(t), a.port.Addr().String(), token(t, tok(overlay.Worker)), r); err != nil {
		t.Error(err)
	}
	a.view.says(old, before())
	sealed := overlay.NetworkSpec{Name: "sealed", Driver: overlay.DriverOverlay, IPv4: true, Encrypted: true}
	if err := a.do("POST", "/v1/networks", sealed, nil); err != nil {
		t.Error(err)
	}
	_, err = a.manager.Grant(ctx(t), old.id.Node, api.GrantRequest{Network: "sealed"})
	want("a lease for a node that would not encrypt", err, overlay.Unsupported, "network sealed is encrypted", "heddle 0.1.0")
	promote := func(ref string) error {
		return a.do("PATCH", "/v1/nodes/"+ref, overlay.NodeUpdate{Role: overlay.Manager}, nil)
	}
	want("promote", promote("old"), overlay.Unsupported, "old (heddle 0.1.0, reads level 1)", "at feature level 4", "upgrade heddle there")
	if err := promote("w"); err != nil {
		t.Error(err)
	}
}
