//go:build linux

package daemon

import (
	"context"
	"net/netip"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/kernel"
	"github.com/heddle-net/heddle/datapath/probe"
	"github.com/heddle-net/heddle/overlay"
)

// workloads looks into the namespaces of workloads.
type workloads struct{ kernel *kernel.Kernel }

func (w workloads) Probe(ctx context.Context, ns datapath.NS, h overlay.Health, at netip.AddrPort) error {
	switch h.Kind {
	case overlay.HealthTCP:
		return probe.TCP(ctx, ns, at)
	case overlay.HealthHTTP:
		return probe.HTTP(ctx, ns, at, h.Path)
	case overlay.HealthCmd:
		return probe.Command(ctx, ns, h.Command)
	}
	return overlay.Errorf(overlay.Unsupported, "health check %q is unknown to this build", h.Kind)
}

func (w workloads) Connected(ns datapath.NS, ips []netip.Addr) (bool, error) {
	is, err := w.kernel.Connected(ns, ips)
	return is, seen(err)
}
