//go:build linux

package daemon

import (
	"context"
	"net/netip"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/kernel"
	"github.com/heddle-net/heddle/datapath/netns"
	"github.com/heddle-net/heddle/datapath/reconcile"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/plan"
)

// kernelState is the datapath as the agent sees it. Errors have the kinds that users see.
type kernelState struct {
	kernel *kernel.Kernel
	loop   *reconcile.Loop
}

func (k kernelState) Set(c datapath.Config) uint64 { return k.loop.Set(c) }

func (k kernelState) Wait(ctx context.Context, gen uint64, owners ...datapath.Owner) error {
	return seen(k.loop.Wait(ctx, gen, owners...))
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

func (k kernelState) Err(o datapath.Owner) error { return seen(k.loop.Status().Errors[o]) }

func (k kernelState) Obstacles(port uint16, egress bool) []string {
	var e datapath.Egress
	if egress {
		e = plan.Egress()
	}
	lines, err := k.kernel.Obstacles(e, datapath.Port{Proto: "udp", Port: port})
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
