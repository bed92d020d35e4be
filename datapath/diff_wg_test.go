package datapath_test

import (
	"net/netip"
	"testing"

	"github.com/heddle-net/heddle/datapath"
)

// What a WireGuard device has learned of a peer stands, until the peer is silent or is wanted elsewhere
// than it was before.
func TestDiffOfWireGuardPeers(t *testing.T) {
	at := netip.MustParseAddrPort
	told, heard, nowhere := at("192.0.2.2:5379"), at("198.51.100.7:40000"), netip.AddrPort{}
	inner, other := netip.MustParseAddr("fd07::2"), netip.MustParseAddr("fd07::3")
	wg := datapath.Link{NS: datapath.Namespace{Name: "heddle-wg"}.NS(), Name: "heddle0", Owner: "wireguard", Kind: datapath.WireGuard, MTU: 1420}
	peer := datapath.WGPeer{NS: wg.NS, Link: wg.Name, Key: datapath.PublicKey{1}, Owner: wg.Owner, Endpoint: told, Address: inner}
	for _, tc := range []struct {
		name      string
		is        netip.AddrPort // where WireGuard sends to
		live      bool
		asked     netip.AddrPort // zero: not known, as after a start
		want      netip.AddrPort
		address   netip.Addr // as it is
		keepalive bool       // as it is
		nothing   bool       // no operation; else one, with the endpoint ends
		ends      netip.AddrPort
	}{
		{name: "as told", is: told, want: told, address: inner, nothing: true},
		{name: "as told, live", is: told, live: true, asked: told, want: told, address: inner, nothing: true},
		{name: "heard elsewhere", is: heard, live: true, asked: told, want: told, address: inner, nothing: true},
		{name: "heard elsewhere before the start", is: heard, live: true, want: told, address: inner, nothing: true},
		{name: "heard elsewhere, silent since", is: heard, asked: told, want: told, address: inner, ends: told},
		{name: "heard elsewhere, silent since before the start", is: heard, want: told, address: inner, ends: told},
		{name: "moved, live", is: told, live: true, asked: told, want: heard, address: inner, ends: heard},
		{name: "moved, silent", is: told, asked: told, want: heard, address: inner, ends: heard},
		{name: "moved to where it was heard", is: heard, live: true, asked: told, want: heard, address: inner, nothing: true},
		{name: "not known where", is: heard, want: nowhere, address: inner, nothing: true},
		{name: "no endpoint", is: nowhere, want: told, address: inner, ends: told},
		{name: "another address, heard elsewhere", is: heard, live: true, asked: told, want: told, address: other, ends: nowhere},
		{name: "another address, silent", is: heard, want: told, address: other, ends: told},
		{name: "keepalive", is: heard, live: true, asked: told, want: told, address: inner, keepalive: true, ends: nowhere},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := datapath.NewState()
			s.Apply(datapath.AddLink{Link: wg})
			s.Apply(datapath.UpLink{Link: wg})
			row := datapath.WGPeerState{WGPeer: peer, Live: tc.live}
			row.Endpoint, row.Address, row.Keepalive = tc.is, tc.address, tc.keepalive
			s.WGPeers[peer.ID()] = row
			if tc.asked.IsValid() {
				s.Asked[peer.ID()] = tc.asked
			}
			p := peer
			p.Endpoint = tc.want
			want := datapath.Config{Links: []datapath.Link{wg}, WGPeers: []datapath.WGPeer{p}}
			ops := datapath.Diff(s, &want)
			if tc.nothing {
				if len(ops) > 0 {
					t.Errorf("%v", ops)
				}
				return
			}
			p.Endpoint = tc.ends
			if len(ops) != 1 || ops[0] != datapath.Op(datapath.SetWGPeer{WGPeer: p}) {
				t.Fatalf("%v, want one that sets %+v", ops, p)
			}
			s.Apply(ops[0])
			if ops := datapath.Diff(s, &want); len(ops) > 0 {
				t.Errorf("still to do: %v", ops)
			}
		})
	}
}
