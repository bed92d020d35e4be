//go:build linux

package daemon

import (
	"context"
	"net"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/kernel"
	"github.com/heddle-net/heddle/datapath/netns"
	"github.com/heddle-net/heddle/datapath/reconcile"
	"github.com/heddle-net/heddle/overlay"
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
	f, err := netns.Open(ns.Path, ns.Inode)
	if err != nil {
		return nil, seen(err)
	}
	defer f.Close()
	var names []string
	err = netns.Do(f, func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			names = append(names, l.Name)
		}
		return err
	})
	return names, seen(err)
}

func (k kernelState) Err(o datapath.Owner) error { return seen(k.loop.Status().Errors[o]) }

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
