//go:build linux

package oracle

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

// Monitor is `ip monitor`, `bridge monitor` and `nft monitor` in the host's own namespace and in
// those of its networks.
type Monitor struct {
	h    *lab.Host
	runs []monitored
}

type monitored struct {
	ns string
	*watcher
}

// Listen starts monitors on a host. What happens after it has returned is seen.
func Listen(ctx context.Context, h *lab.Host) (*Monitor, error) {
	m := &Monitor{h: h}
	spaces, err := overlays(ctx, h)
	if err != nil {
		return nil, err
	}
	for _, ns := range append(spaces, "") {
		for _, args := range [][]string{{"ip", "-ts", "monitor", "all"}, {"bridge", "monitor", "all"}, {"nft", "monitor"}} {
			w, err := watch(h, in(ns, args...)...)
			if err != nil {
				return nil, err
			}
			m.runs = append(m.runs, monitored{ns, w})
		}
	}
	for _, r := range m.runs {
		if err := cluster.Eventually(ctx, 5*time.Second, r.listens); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// listens is an error until the monitor's socket listens to the groups that it is about.
func (r monitored) listens(ctx context.Context) error {
	out, err := r.h.Output(ctx, in(r.ns, "cat", "/proc/self/net/netlink")...)
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line) // socket, protocol, port, groups
		if len(f) > 3 && f[2] == fmt.Sprint(r.p.PID()) && strings.Trim(f[3], "0") != "" {
			return nil
		}
	}
	return fmt.Errorf("a monitor in %q of %s does not listen: %s", r.ns, r.h.Name(), r.said())
}

// Said is what the monitors have printed, a line each with its namespace, but for how the kernel
// itself resolves neighbours on links where heddle writes none.
func (m *Monitor) Said() []string {
	var lines []string
	for _, r := range m.runs {
		for line := range strings.Lines(r.said()) {
			if line = strings.TrimSpace(line); line != "" && !resolving(line) {
				lines = append(lines, strings.TrimSpace(m.h.Name()+" "+r.ns+": "+line))
			}
		}
	}
	return lines
}

func resolving(line string) bool {
	f := strings.Fields(line)
	i := slices.Index(f, "dev")
	return strings.Contains(line, "[NEIGH]") && i >= 0 && i+1 < len(f) &&
		(f[i+1] == "eth0" || f[i+1] == "uplink" || strings.HasPrefix(f[i+1], "hd-"))
}

// End stops the monitors.
func (m *Monitor) End(ctx context.Context) {
	for _, r := range m.runs {
		_, _ = r.end(ctx)
	}
}

// Provoke makes a change in each namespace and is an error unless each monitor has told of it, so
// that silence means something.
func (m *Monitor) Provoke(ctx context.Context) error {
	for _, r := range m.runs {
		lines := "nft add table ip oracle && nft delete table ip oracle && ip link set lo mtu 65535 && ip link set lo mtu 65536"
		if err := m.h.Run(ctx, in(r.ns, "sh", "-c", lines)...); err != nil {
			return err
		}
	}
	return cluster.Eventually(ctx, 5*time.Second, func(context.Context) error {
		for _, r := range m.runs {
			if r.said() == "" {
				return fmt.Errorf("a monitor in %q of %s is deaf", r.ns, m.h.Name())
			}
		}
		return nil
	})
}
