package cluster

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/cluster/api"
	"github.com/heddle-net/heddle/cluster/state"
	"github.com/heddle-net/heddle/overlay"
)

// keeper is a node's leases as managers see them: it gives up what a test says idles.
type keeper struct {
	key ed25519.PrivateKey

	mu      sync.Mutex
	lease   overlay.Lease
	idle    []netip.Addr
	used    map[netip.Addr]string
	silent  bool
	forgets bool
	asked   int
}

func (k *keeper) Release(ctx context.Context, r overlay.ReleaseRequest) (reply overlay.ReleaseReply, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	if k.silent {
		<-ctx.Done()
		return reply, ctx.Err()
	}
	reply.InUse = k.used
	gone := overlay.Release{V: 1, Place: k.lease.Place, Network: r.Network, Node: k.lease.Node}
	for _, a := range k.idle {
		named := len(r.Addrs) == 0 || slices.Contains(r.Addrs, a)
		if index, ok := k.lease.Granted(a); ok && named && len(gone.Grants) < max(r.Want, len(r.Addrs)) {
			gone.Grants = append(gone.Grants, overlay.Grant{First: a, Last: a, Index: index})
		}
	}
	if len(gone.Grants) == 0 {
		return reply, nil
	}
	s, err := overlay.Sign(overlay.DomainRelease, k.key, gone)
	reply.Release = &s
	return reply, err
}

func (k *keeper) Forgot(context.Context, overlay.NodeID) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.forgets {
		return nil
	}
	return overlay.Errorf(overlay.Unavailable, "not yet")
}

func (k *keeper) set(f func(*keeper)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(k)
}

// leases makes a host the holder of addresses of network small, a /29 with five.
func (h *host) leases(want int) (l overlay.Lease) {
	h.t.Helper()
	g, err := h.client.Grant(ctx(h.t), api.GrantRequest{Network: "small", Want: want})
	if err != nil {
		h.t.Fatal(err)
	}
	if err := g.Leases[h.id.Node].Decode(overlay.DomainLease, &l); err != nil {
		h.t.Fatal(err)
	}
	h.holder.set(func(k *keeper) { k.lease = l })
	return l
}

func small(h *host) {
	h.t.Helper()
	s := overlay.NetworkSpec{Name: "small", Driver: overlay.DriverOverlay, IPv4: true, Subnets: []overlay.Subnet{{Prefix: netip.MustParsePrefix("10.9.0.0/29")}}}
	if err := h.do("POST", "/v1/networks", s, nil); err != nil {
		h.t.Fatal(err)
	}
}

func TestATightSubnetIsUsedToItsLastAddress(t *testing.T) {
	a, tok := found(t)
	b, c := join(t, a, "n2", tok.Token), join(t, a, "n3", tok.Token)
	small(a)
	a.leases(1) // .2
	b.leases(4) // .3 to .6
	at := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, 0, i}) }
	ask := func(r api.GrantRequest) (string, error) {
		r.Network = "small"
		g, err := c.client.Grant(ctx(t), r)
		if err != nil {
			return "", err
		}
		var l overlay.Lease
		if err := g.Leases[c.id.Node].Decode(overlay.DomainLease, &l); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(l.Grants[len(l.Grants)-1].First), nil
	}
	refused := func(what string, r api.GrantRequest, parts ...string) {
		t.Helper()
		begin := time.Now()
		_, err := ask(r)
		if took := time.Since(begin); err == nil || took > 2*time.Second {
			t.Errorf("%s: %v after %v", what, err, took)
		}
		for _, p := range parts {
			if err != nil && !strings.Contains(err.Error(), p) {
				t.Errorf("%s: %q lacks %q", what, err, p)
			}
		}
	}
	if _, err := ask(api.GrantRequest{Spare: true}); overlay.KindOf(err) != overlay.NotFound || b.holder.asked > 0 {
		t.Errorf("a reserve was wanted, and b was asked %d times: %v", b.holder.asked, err)
	}
	refused("everything is in use", api.GrantRequest{Want: 1}, "all are leased")

	b.holder.set(func(k *keeper) { k.idle = []netip.Addr{at(5)} })
	if got, err := ask(api.GrantRequest{Want: 1}); err != nil || got != "10.9.0.5" {
		t.Errorf("the one that idles with b: %s, %v", got, err)
	}
	refused("in use, by name", api.GrantRequest{Addrs: []netip.Addr{at(4)}}, "leased to node n2")
	b.holder.set(func(k *keeper) { k.used = map[netip.Addr]string{at(4): "web"} })
	refused("in use, by name", api.GrantRequest{Addrs: []netip.Addr{at(4)}}, "10.9.0.4", "in use by web on node n2")
	b.holder.set(func(k *keeper) { k.idle = []netip.Addr{at(6)} })
	if got, err := ask(api.GrantRequest{Addrs: []netip.Addr{at(6)}}); err != nil || got != "10.9.0.6" {
		t.Errorf("one that idles with b, by name: %s, %v", got, err)
	}
	a.holder.set(func(k *keeper) { k.idle = []netip.Addr{at(2)} })
	if got, err := ask(api.GrantRequest{}); err != nil || got != "10.9.0.2" {
		t.Errorf("one that idles with the manager itself: %s, %v", got, err)
	}
	b.end()
	refused("b is stopped", api.GrantRequest{Want: 1}, "n2", "does not answer", "heddle node rm n2")
	refused("b is stopped", api.GrantRequest{Addrs: []netip.Addr{at(3)}}, "10.9.0.3", "n2", "does not answer", "heddle node rm n2")
}

func TestAHolderThatHangs(t *testing.T) {
	a, tok := found(t)
	b := join(t, a, "n2", tok.Token)
	small(a)
	b.leases(5)
	b.holder.set(func(k *keeper) { k.silent = true })
	begin := time.Now()
	_, err := a.client.Grant(ctx(t), api.GrantRequest{Network: "small", Want: 1})
	if took := time.Since(begin); err == nil || !strings.Contains(err.Error(), "heddle node rm n2") || took > 2*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
}

func TestANodeReleasesAddresses(t *testing.T) {
	a, tok := found(t)
	b := join(t, a, "n2", tok.Token)
	small(a)
	l := b.leases(5)
	r := overlay.Release{V: 1, Place: l.Place, Network: l.Network, Node: l.Node, Grants: l.Grants}
	forged, _ := overlay.Sign(overlay.DomainRelease, a.id.Key, r)
	if _, err := b.client.Release(ctx(t), forged); overlay.KindOf(err) != overlay.Denied {
		t.Errorf("a release that another signed: %v", err)
	}
	s, _ := overlay.Sign(overlay.DomainRelease, b.id.Key, r)
	g, err := b.client.Release(ctx(t), s)
	var left overlay.Lease
	if err != nil || g.Leases[b.id.Node].Decode(overlay.DomainLease, &left) != nil || len(left.Grants) > 0 {
		t.Errorf("%+v, %v", left, err)
	}
}

// The addresses of a removed node come back when every participant acts by the removal, or
// by time where the removal was forced.
func TestFencesFall(t *testing.T) {
	for _, force := range []bool{false, true} {
		t.Run(fmt.Sprintf("force %v", force), func(t *testing.T) {
			a, tok := found(t)
			b, c := join(t, a, "n2", tok.Token), join(t, a, "n3", tok.Token)
			small(a)
			b.leases(4)
			c.leases(1)
			path := "/v1/nodes/n2"
			if force {
				path += "?force=1"
			} else {
				a.view.mu.Lock()
				a.view.down[b.id.Node] = true
				a.view.mu.Unlock()
			}
			b.end()
			if err := a.do("DELETE", path, nil, nil); err != nil {
				t.Fatal(err)
			}
			fences := func() []state.Fence { return a.manager.state.View().Fences() }
			known := map[overlay.NodeID]map[overlay.NodeID]bool{}
			if err := a.manager.liftFences(ctx(t), known); err != nil || len(fences()) != 1 {
				t.Fatalf("it fell too early: %v, %v", fences(), err)
			}
			if force {
				a.clock.Store(int64(fenceMax + time.Minute))
			} else {
				c.holder.set(func(k *keeper) { k.forgets = true })
			}
			eventually(t, "fall of the fence", func() bool {
				return a.manager.liftFences(ctx(t), known) == nil && len(fences()) == 0
			})
			for range 4 {
				a.leases(1)
			}
		})
	}
}
