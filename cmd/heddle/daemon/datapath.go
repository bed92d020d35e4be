//go:build linux

package daemon

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/balance"
	"github.com/heddle-net/heddle/datapath/kernel"
	"github.com/heddle-net/heddle/datapath/netns"
	"github.com/heddle-net/heddle/datapath/reconcile"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/plan"
)

// kernelState is the datapath as the agent sees it. Errors have the kinds that users see.
type kernelState struct {
	kernel  *kernel.Kernel
	loop    *reconcile.Loop
	balance *balance.Loop
}

func (k kernelState) Set(c datapath.Config) uint64 {
	gen := k.loop.Set(c)
	k.balance.Set(c.Balancers)
	return gen
}

// balanceTime is how long is waited for service addresses: most changes take a tenth of it, and a
// large load holds up nobody.
const balanceTime = 50 * time.Millisecond

// Wait waits also, for a moment, for the service addresses in the owners' namespaces, or without
// owners in all.
func (k kernelState) Wait(ctx context.Context, gen uint64, owners ...datapath.Owner) error {
	if err := k.loop.Wait(ctx, gen, owners...); err != nil {
		return seen(err)
	}
	ctx, cancel := context.WithTimeout(ctx, balanceTime)
	defer cancel()
	var places []datapath.NS
	c := k.loop.Wanted()
	for _, l := range c.Links {
		if slices.Contains(owners, l.Owner) && l.Owner == l.Peer.Owner {
			places = append(places, l.Peer.NS)
		}
	}
	if len(owners) == 0 {
		for _, b := range c.Balancers {
			places = append(places, b.NS)
		}
	}
	_ = k.balance.Wait(ctx, places...) // what stands in the way of a service is not the endpoint's
	return nil
}

// balancing is the kernel as the loop for service addresses takes it.
type balancing struct{ *kernel.Kernel }

func (b balancing) Open(ns datapath.NS) (balance.Rules, error) { return b.Balance(ns) }
func (b balancing) Forget(ns datapath.NS)                      { b.ForgetRules(ns) }
func (b balancing) Watch(ctx context.Context, changed func(datapath.NS, uint32, bool)) error {
	return b.WatchRules(ctx, changed)
}

func (k kernelState) Inode(path string) (uint64, error) {
	i, err := netns.Inode(path)
	return i, seen(err)
}

func (k kernelState) LinkNames(ns datapath.NS) ([]string, error) {
	names, err := k.kernel.LinkNames(ns)
	return names, seen(err)
}

func (k kernelState) Routes() ([]netip.Prefix, error) {
	r, err := k.kernel.Routes()
	return r, seen(err)
}

func (k kernelState) Bound() ([]datapath.Port, error) {
	p, err := k.kernel.Bound()
	return p, seen(err)
}

func (k kernelState) Program(p datapath.Port) string { return k.kernel.Program(p) }

func (k kernelState) Err(o datapath.Owner) error { return seen(k.loop.Status().Errors[o]) }

func (k kernelState) Obstacles(egress bool, ports ...uint16) []string {
	var e datapath.Egress
	if egress {
		e = plan.Egress()
	}
	var udp []datapath.Port
	for _, p := range ports {
		udp = append(udp, datapath.Port{Proto: "udp", Port: p})
	}
	lines, err := k.kernel.Obstacles(e, udp...)
	if err != nil {
		return []string{"the host's firewall can't be read: " + err.Error()}
	}
	return lines
}

// watchFirewall has the kernel read again when others change the chains of the firewall.
func (d *Daemon) watchFirewall(ctx context.Context) {
	for {
		err := d.kernel.WatchChains(ctx, d.loop.Doubt)
		if ctx.Err() != nil {
			return
		}
		d.log.Warn("changes of the host's firewall are seen late, at the next sweep; trying again", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(10 * time.Second):
			d.loop.Doubt()
		}
	}
}

var kinds = map[datapath.Fault]overlay.Kind{
	datapath.Foreign:     overlay.Exists,
	datapath.Taken:       overlay.InUse,
	datapath.NoNamespace: overlay.NotFound,
	datapath.Replaced:    overlay.NotFound,
	datapath.Unsupported: overlay.Unsupported,
	datapath.Denied:      overlay.Denied,
}

// seen gives a datapath error the kind that users see.
func seen(err error) error {
	if err == nil {
		return nil
	}
	kind, ok := kinds[datapath.FaultOf(err)]
	if !ok {
		return err
	}
	return overlay.Errorf(kind, "%w", err)
}
