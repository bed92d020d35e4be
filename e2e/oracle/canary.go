//go:build linux

package oracle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// canaryTime is how long canaries sing: some ten times.
const canaryTime = 200 * time.Millisecond

// Cages are the workloads' places by host, each of which sends to all addresses that there are.
type Cages map[*lab.Host][]probe.Cage

// Canaries lets a canary sing in every workload, to all addresses of all networks, the same ones of
// different networks included, and returns where one was heard that is of another network.
func Canaries(ctx context.Context, c *cluster.Cluster) (heard []string, err error) {
	cages, err := Ready(ctx, c)
	if err != nil {
		return nil, err
	}
	return cages.Sing(ctx)
}

// Sing is Canaries for cages that are ready.
func (cages Cages) Sing(ctx context.Context) (heard []string, err error) {
	if len(cages) == 0 {
		return nil, nil
	}
	birds := map[*lab.Host]*watcher{}
	defer func() {
		for _, b := range birds {
			_, _ = b.end(ctx)
		}
	}()
	for h, list := range cages {
		spec, err := json.Marshal(list)
		if err != nil {
			return nil, err
		}
		if birds[h], err = watch(h, probe.Args("canary", string(spec))...); err != nil {
			return nil, err
		}
	}
	for h, b := range birds {
		if err := b.prints(ctx, "listening\n"); err != nil {
			return nil, fmt.Errorf("canaries of %s: %w", h.Name(), err)
		}
	}
	<-time.After(canaryTime)
	for h, b := range birds {
		said, err := b.end(ctx)
		delete(birds, h)
		if err != nil {
			return nil, err
		}
		var sung []probe.Sung
		if err := json.Unmarshal([]byte(strings.TrimPrefix(said, "listening\n")), &sung); err != nil {
			return nil, fmt.Errorf("canaries of %s: %w in %q", h.Name(), err, said)
		}
		for _, s := range sung {
			for network, n := range s.Foreign {
				heard = append(heard, fmt.Sprintf("%s: %d frames of network %s at %s of %s, which is in network %s", h.Name(), n, network, s.Dev, s.NS, s.Network))
			}
		}
	}
	return heard, nil
}

// Ready asks the owners for their workloads. The host itself has no cage: what it sends may go
// anywhere.
func Ready(ctx context.Context, c *cluster.Cluster) (Cages, error) {
	cages := Cages{}
	var all []netip.Addr
	for _, h := range c.Hosts() {
		if h.Daemon() == nil {
			continue
		}
		var s cluster.Status
		if err := c.JSON(ctx, h, &s, "status", "--format", "json"); err != nil {
			return nil, err
		}
		for _, e := range s.Endpoints {
			if e.State != "ready" || e.Namespace == "" {
				continue
			}
			cages[h] = append(cages[h], probe.Cage{NS: e.Namespace, Dev: e.Interface, Network: e.Network})
			for _, p := range prefixes(e) {
				if !slices.Contains(all, p.Addr()) {
					all = append(all, p.Addr())
				}
			}
		}
	}
	for _, list := range cages {
		for i := range list {
			list[i].To = all
		}
	}
	return cages, nil
}

// prints waits until a program has printed a text.
func (w *watcher) prints(ctx context.Context, text string) error {
	return cluster.Eventually(ctx, 5*time.Second, func(context.Context) error {
		if !strings.Contains(w.said(), text) {
			return errors.New("it says: " + w.said())
		}
		return nil
	})
}
