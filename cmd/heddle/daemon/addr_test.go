//go:build linux

package daemon

import (
	"net/netip"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	at := func(pairs ...string) (all []candidate) {
		for i := 0; i < len(pairs); i += 2 {
			all = append(all, candidate{pairs[i], netip.MustParseAddr(pairs[i+1])})
		}
		return all
	}
	two := at("eth0", "192.0.2.1", "eth1", "198.51.100.1", "eth1", "2001:db8::1")
	cases := []struct {
		name  string
		value string
		all   []candidate
		want  string
		fails []string // what the error must say
	}{
		{"the only address", "", at("eth0", "192.0.2.1"), "192.0.2.1", nil},
		{"IPv4 before IPv6", "", at("eth0", "2001:db8::1", "eth0", "192.0.2.1"), "192.0.2.1", nil},
		{"only IPv6", "", at("eth0", "2001:db8::1"), "2001:db8::1", nil},
		{"none", "", nil, "", []string{"no global address", "--advertise-addr"}},
		{"two", "", two, "", []string{"`heddle init --advertise-addr 192.0.2.1` (eth0)", "`heddle init --advertise-addr 198.51.100.1` (eth1)"}},
		{"by address", "198.51.100.1", two, "198.51.100.1", nil},
		{"by IPv6 address", "2001:db8::1", two, "2001:db8::1", nil},
		{"by interface", "eth1", two, "198.51.100.1", nil},
		{"unknown interface", "eth7", two, "", []string{"eth7", "192.0.2.1 (eth0)"}},
		{"address of another host", "192.0.2.9", two, "", []string{"192.0.2.9", "no address of this host"}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			got, err := choose("init", "--advertise-addr", tc.value, tc.all)
			if len(tc.fails) == 0 {
				if err != nil || got.String() != tc.want {
					t.Fatalf("got %v, %v; want %s", got, err, tc.want)
				}
				return
			}
			if err == nil {
				t.Fatalf("got %v, want an error", got)
			}
			for _, s := range tc.fails {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("error %q lacks %q", err, s)
				}
			}
		})
	}
}
