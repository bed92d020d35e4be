//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// The MTU of a network follows the underlay's under its live endpoints: a packet of just that size
// passes whole, and is not in pieces on the underlay either; one byte more is refused where it is
// sent.
func TestTheMTUFollowsTheUnderlay(t *testing.T) {
	t.Parallel()
	for _, under := range []struct {
		name string
		addr func(*lab.Host) netip.Addr
		less func(networkKind) int
	}{
		{"IPv4", (*lab.Host).Addr, func(k networkKind) int { return k.over4 }},
		{"IPv6", (*lab.Host).Addr6, func(k networkKind) int { return k.over6 }},
	} {
		t.Run(under.name, func(t *testing.T) {
			w := startHosts(t, cluster.Config{Managers: 1, Workers: 1, Lab: lab.Config{IPv6: true, MTU: 9000}})
			a, b := w.Host(1), w.Host(2)
			w.ok(a, "init", "--advertise-addr", under.addr(a).String())
			w.ok(b, "join", netip.AddrPortFrom(under.addr(a), 5377).String(), "--token", w.ok(a, "token", "create", "worker", "-q"))
			for _, k := range networkKinds {
				w.ok(a, append([]string{"network", "create", k.name, "--ipv6"}, k.flags...)...)
				w.attach(a, k.name, k.name)
				w.attach(b, k.name, k.name)
			}
			is := func(within time.Duration, mtu int) {
				t.Helper()
				for _, k := range networkKinds {
					w.fits(within, a, b, k.name, mtu-under.less(k))
				}
			}
			is(5*time.Second, 9000)
			for _, mtu := range []int{1500, 1450} {
				w.under(mtu, a, b)
				is(5*time.Second, mtu)
			}
			if *rounds > 1 { // make soak
				w.under(1500, a, b)
				is(65*time.Second, 1500) // a minute of agreement before
			}
		})
	}
}

// under changes the MTU of the underlay.
func (w world) under(mtu int, hosts ...*lab.Host) {
	w.t.Helper()
	for _, h := range hosts {
		if err := w.SetMTU(h, mtu); err != nil {
			w.t.Fatal(err)
		}
	}
}

// fits waits until a network has an MTU on two hosts and the underlay carries just that, between the
// workloads of the network's name there.
func (w world) fits(within time.Duration, a, b *lab.Host, network string, mtu int) {
	w.t.Helper()
	begin := time.Now()
	to := addrs(w.endpoint(b, network))
	w.soon(within, fmt.Sprintf("an MTU of %d in %s", mtu, network), func(ctx context.Context) error {
		for _, h := range []*lab.Host{a, b} {
			out, err := h.Output(ctx, in(network, []string{"cat", "/sys/class/net/eth0/mtu"})...)
			if err != nil || strings.TrimSpace(out) != fmt.Sprint(mtu) {
				return fmt.Errorf("on %s it is %s: %w", h.Name(), strings.TrimSpace(out), err)
			}
		}
		end := w.tap("", a, b)
		errs := []error{w.whole(a, network, mtu, to)}
		for _, one := range to {
			if err := w.whole(a, network, mtu+1, []netip.Addr{one}); err == nil || !strings.Contains(err.Error(), "message too long") {
				errs = append(errs, fmt.Errorf("a packet of a byte more to %s: %w", one, err))
			}
		}
		if c := end(); c.Fragments > 0 || c.Frames < 4 {
			errs = append(errs, fmt.Errorf("on the underlay: %+v", c))
		}
		return errors.Join(errs...)
	})
	w.t.Logf("%s: %d after %s", network, mtu, time.Since(begin).Round(time.Millisecond))
}

// whole sends a packet of so many bytes to each address, which may not come in pieces.
func (w world) whole(h *lab.Host, workload string, size int, to []netip.Addr) error {
	var errs []error
	for _, a := range to {
		errs = append(errs, h.Run(w.t.Context(), in(workload, probe.Args("whole", "-size", fmt.Sprint(size), a.String()))...))
	}
	return errors.Join(errs...)
}

// An underlay of less than IPv6 needs, with the encapsulation, carries IPv6 in pieces. IPv4 is told
// what passes whole.
func TestIPv6OverASmallUnderlay(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 1, Workers: 1})
	a, b := w.Host(1), w.Host(2)
	w.ok(a, "network", "create", "net", "--ipv6")
	w.attach(a, "a", "net")
	e := w.attach(b, "b", "net")
	w.under(1320, a, b)
	for workload, h := range map[string]*lab.Host{"a": a, "b": b} {
		w.soon(5*time.Second, "the MTU of "+workload, func(ctx context.Context) error {
			return h.Run(ctx, in(workload, []string{"grep", "-qx", "1280", "/sys/class/net/eth0/mtu"})...)
		})
	}
	end := w.tap("", a)
	if err := errors.Join(w.whole(a, "a", 1280, []netip.Addr{e.IPv6.Addr()}), w.whole(a, "a", 1270, []netip.Addr{e.IPv4.Addr()})); err != nil {
		t.Error(err)
	}
	if c := end(); c.Fragments != 2 { // the IPv6 request, and its answer
		t.Errorf("on the underlay: %+v", c)
	}
}
