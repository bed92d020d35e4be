package kernel

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
)

// eventually waits for a signal.
func eventually(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(5 * time.Second):
		t.Fatal(what, "was not seen")
	}
}

// watched runs a watch in a host's namespace until the test ends.
func watched(t *testing.T, k *Kernel, watch func(context.Context, func()) error) <-chan struct{} {
	seen, done := make(chan struct{}, 64), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- watch(ctx, func() { seen <- struct{}{} }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return seen
}

// Chains of others are seen, whatever else changes; heddle's own are not.
func TestChainsAreSeen(t *testing.T) {
	h := underlay(t, 1)[0]
	k := New(Config{Host: hostPath(h)})
	defer k.Close()
	seen := watched(t, k, k.WatchChains)
	chain := func(table string) {
		nft(t, hostPath(h), func(c *nftables.Conn) {
			tab := c.AddTable(&nftables.Table{Name: table, Family: nftables.TableFamilyINet})
			c.AddObj(&nftables.CounterObj{Table: tab, Name: "c"})
			c.AddChain(&nftables.Chain{Name: "in", Table: tab})
		})
	}
	eventually(t, "the beginning", seen)
	chain("first")
	eventually(t, "another's chain", seen)
	chain(tableName)
	time.Sleep(3 * chainSettle)
	if len(seen) > 0 {
		t.Error("heddle's own chain was taken for another's")
	}
	chain("other")
	eventually(t, "another's chain", seen)
}

func TestTheHostsAddressesAreSeen(t *testing.T) {
	h := underlay(t, 1)[0]
	k := New(Config{Host: hostPath(h)})
	defer k.Close()
	seen := watched(t, k, k.WatchHost)
	eventually(t, "the beginning", seen)
	ip(t, hostPath(h), "link", "add", "more", "type", "veth", "peer", "name", "erom")
	ip(t, hostPath(h), "link", "set", "more", "up")
	ip(t, hostPath(h), "addr", "add", "10.77.0.1/24", "dev", "more")
	ip(t, hostPath(h), "route", "add", "10.77.0.128/25", "dev", "more")
	ip(t, hostPath(h), "route", "add", "172.16.0.0/12", "dev", "more")
	ip(t, hostPath(h), "route", "add", "default", "dev", "more")
	eventually(t, "an address", seen)
	routes, err := k.Routes()
	must(t, err)
	got := map[netip.Prefix]bool{}
	for _, r := range routes {
		got[r] = true
	}
	for p, want := range map[string]bool{"172.16.0.0/12": true, "10.77.0.0/24": true, "10.77.0.128/25": false, "0.0.0.0/0": false} {
		if got[netip.MustParsePrefix(p)] != want {
			t.Errorf("of the routes %s, %s is one: %v", routes, p, !want)
		}
	}
}
