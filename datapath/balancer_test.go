package datapath

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func someVIP(service, addr int) *VIP {
	return &VIP{Service: fmt.Sprintf("%03d", service), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(addr)})}}
}

// What changes leads from one list to the other, in an order in which no address is two VIPs', and
// names nothing that stays.
func TestChangedVIPs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var was, now []*VIP
		var moved []int // each gets the address of the next
		for i := range 8 {
			v := someVIP(i, i)
			if rapid.Bool().Draw(t, "was") {
				was = append(was, v)
			}
			switch rapid.SampledFrom([]string{"none", "same", "other", "moved"}).Draw(t, "now") {
			case "same":
				now = append(now, v)
			case "other":
				now = append(now, someVIP(i, i))
			case "moved":
				moved = append(moved, i)
			}
		}
		for n, i := range moved {
			now = append(now, someVIP(i, moved[(n+1)%len(moved)]))
		}
		slices.SortFunc(now, func(a, b *VIP) int { return strings.Compare(a.Service, b.Service) })
		changes := ChangedVIPs(was, now)
		held := map[netip.Addr]string{}
		for _, v := range was {
			held[v.Addrs[0]] = v.Service
		}
		for _, c := range changes {
			if c.Was == c.Now {
				t.Fatal("what stays is a change")
			}
			if c.Was != nil {
				delete(held, c.Was.Addrs[0])
			}
			if c.Now == nil {
				continue
			}
			if by, taken := held[c.Now.Addrs[0]]; taken {
				t.Fatalf("%s gets the address of %s", c.Now.Service, by)
			}
			held[c.Now.Addrs[0]] = c.Now.Service
		}
		if got := WithChanges(was, changes); !slices.Equal(got, now) {
			t.Fatalf("%d VIPs, want %d", len(got), len(now))
		}
	})
}

// Flows end when a backend of theirs is neither used nor kept, and when their VIP or port is gone.
func TestWhichChangesEndFlows(t *testing.T) {
	one, two := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:80")
	six := netip.MustParseAddrPort("[fd00::1]:80")
	vip := func(used []netip.AddrPort, kept ...netip.AddrPort) *VIP {
		v := someVIP(1, 100)
		v.Ports = []VIPPort{{Proto: "tcp", Port: 80, Backends: used, Kept: kept}}
		return v
	}
	for name, tc := range map[string]struct {
		was, now *VIP
		want     bool
	}{
		"new":                 {nil, vip([]netip.AddrPort{one}), false},
		"more":                {vip([]netip.AddrPort{one}), vip([]netip.AddrPort{one, two}), false},
		"kept":                {vip([]netip.AddrPort{one}), vip(nil, one), false},
		"one less":            {vip([]netip.AddrPort{one, two}), vip([]netip.AddrPort{one}), true},
		"kept no more":        {vip(nil, one), vip(nil), true},
		"of another family":   {vip([]netip.AddrPort{one, six}), vip([]netip.AddrPort{one}), false},
		"the VIP is gone":     {vip([]netip.AddrPort{one}), nil, true},
		"the port is another": {vip([]netip.AddrPort{one}), &VIP{Addrs: vip(nil).Addrs, Ports: []VIPPort{{Proto: "udp", Port: 80, Backends: []netip.AddrPort{one}}}}, true},
	} {
		if got := (VIPChange{tc.was, tc.now}).Ends(); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
