package cluster

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/overlay"
)

// Automatic subnets stay clear of what nodes route; a subnet that hides a route says so.
func TestSubnetsAndTheNodesRoutes(t *testing.T) {
	h, _ := found(t)
	h.view.mu.Lock()
	h.view.routes = map[overlay.NodeID][]netip.Prefix{h.id.Node: {
		netip.MustParsePrefix("10.64.0.0/24"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("10.64.1.128/25"),
	}}
	h.view.mu.Unlock()
	row, err := h.manager.CreateNetwork(ctx(t), overlay.NetworkSpec{Name: "auto", Driver: overlay.DriverOverlay, IPv4: true})
	if err != nil || row.IPAM.Config[0].Subnet != netip.MustParsePrefix("10.64.2.0/24") || len(row.Notes) != 0 {
		t.Errorf("the automatic subnet is %+v (%v), want the first that no node routes", row, err)
	}
	row, err = h.manager.CreateNetwork(ctx(t), overlay.NetworkSpec{Name: "hides", Driver: overlay.DriverOverlay, IPv4: true, Subnets: []overlay.Subnet{
		{Prefix: netip.MustParsePrefix("172.20.0.0/16")}, {Prefix: netip.MustParsePrefix("10.64.0.0/23")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"subnet 10.64.0.0/23 hides 10.64.0.0/24, which node n1 routes",
		"subnet 10.64.0.0/23 hides 10.64.1.128/25, which node n1 routes",
		"subnet 172.20.0.0/16 hides part of 172.16.0.0/12, which node n1 routes",
	}
	if len(row.Notes) != len(want) {
		t.Fatalf("the notes are %q", row.Notes)
	}
	for i, w := range want {
		if !strings.HasPrefix(row.Notes[i], w) {
			t.Errorf("note %d is %q, want %q", i, row.Notes[i], w)
		}
	}
}
