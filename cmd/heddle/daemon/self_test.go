//go:build linux

package daemon

import (
	"net/netip"
	"testing"

	"github.com/heddle-net/heddle/overlay/store"
)

func TestFollow(t *testing.T) {
	ip := netip.MustParseAddr
	one := func(advertise, data string) store.Addresses {
		return store.Addresses{Advertise: ip(advertise), DataPath: ip(data), Listen: netip.IPv6Unspecified(), Link: "eth0", DataLink: "eth1"}
	}
	for _, tc := range []struct {
		name string
		at   store.Addresses
		host []candidate
		want store.Addresses
	}{
		{"nothing has changed", one("192.0.2.1", "198.51.100.1"), []candidate{{"eth0", ip("192.0.2.1")}, {"eth1", ip("198.51.100.1")}}, one("192.0.2.1", "198.51.100.1")},
		{"a new address on each link", one("192.0.2.1", "198.51.100.1"), []candidate{{"eth0", ip("192.0.2.9")}, {"eth1", ip("198.51.100.9")}}, one("192.0.2.9", "198.51.100.9")},
		{"one more beside it", one("192.0.2.1", "192.0.2.1"), []candidate{{"eth0", ip("192.0.2.1")}, {"eth0", ip("192.0.2.9")}}, store.Addresses{
			Advertise: ip("192.0.2.1"), DataPath: ip("192.0.2.1"), Listen: netip.IPv6Unspecified(), Link: "eth0", DataLink: "eth0",
		}},
		{"gone without another", one("192.0.2.1", "198.51.100.1"), []candidate{{"eth1", ip("198.51.100.1")}, {"eth2", ip("203.0.113.1")}}, one("192.0.2.1", "198.51.100.1")},
		{"the family stays", one("2001:db8::1", "198.51.100.1"), []candidate{{"eth0", ip("192.0.2.9")}, {"eth0", ip("2001:db8::9")}, {"eth1", ip("198.51.100.1")}}, one("2001:db8::9", "198.51.100.1")},
		{"another link, with the only address", one("192.0.2.1", "192.0.2.1"), []candidate{{"bond0", ip("192.0.2.1")}}, store.Addresses{
			Advertise: ip("192.0.2.1"), DataPath: ip("192.0.2.1"), Listen: netip.IPv6Unspecified(), Link: "bond0", DataLink: "bond0",
		}},
		{
			"the ports bound to it go with it",
			store.Addresses{Advertise: ip("192.0.2.1"), DataPath: ip("192.0.2.1"), Listen: ip("192.0.2.1"), Link: "eth0", DataLink: "eth0"},
			[]candidate{{"eth0", ip("192.0.2.9")}},
			store.Addresses{Advertise: ip("192.0.2.9"), DataPath: ip("192.0.2.9"), Listen: ip("192.0.2.9"), Link: "eth0", DataLink: "eth0"},
		},
		{
			"behind 1:1 NAT the others' address stays",
			store.Addresses{Advertise: ip("203.0.113.1"), DataPath: ip("203.0.113.1"), Underlay: ip("192.0.2.1"), DataLink: "eth0"},
			[]candidate{{"eth0", ip("192.0.2.9")}},
			store.Addresses{Advertise: ip("203.0.113.1"), DataPath: ip("203.0.113.1"), Underlay: ip("192.0.2.9"), DataLink: "eth0"},
		},
	} {
		if got := follow(tc.at, tc.host); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}
