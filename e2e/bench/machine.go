//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// disk measures what each durable write costs here.
func (b *bench) disk(context.Context) error {
	f, err := os.Create(filepath.Join(b.c.Dir(), "fdatasync"))
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 4096)
	s, err := repeat(b.n, func(int) (float64, error) {
		if _, err := f.Write(block); err != nil {
			return 0, err
		}
		return timed(func() error { return unix.Fdatasync(int(f.Fd())) })
	})
	b.add(figure{Name: "fdatasync of 4 KiB on the disk under all state", Unit: "ms"}, s)
	return err
}

// idle measures the daemons of a fresh cluster.
func (b *bench) idle(context.Context) error {
	return b.rss(figure{Name: "daemon RSS, idle, each host", Want: []want{atMost(most, 45)}, Swarm: "94, and containerd 39 MB*"})
}

func (b *bench) rss(f figure) error {
	var s []float64
	for _, h := range b.c.Hosts() {
		n, err := h.RSS()
		if err != nil {
			return err
		}
		s = append(s, float64(n)/(1<<20))
	}
	f.Unit = "MiB"
	b.add(f, s)
	return nil
}

// memory measures the daemons with 50 endpoints of one network over all hosts.
func (b *bench) memory(ctx context.Context) error {
	hosts := b.c.Hosts()
	if err := client(hosts[0]).createNetwork(ctx, "mem"); err != nil {
		return err
	}
	for i := range 50 {
		if _, err := client(hosts[i%len(hosts)]).attach(ctx, fmt.Sprintf("mem-%d", i), "mem"); err != nil {
			return err
		}
	}
	if err := b.rss(figure{Name: "daemon RSS, 50 endpoints in the cluster, each host", Want: []want{atMost(most, 50)}, Swarm: "100, and containerd 41 MB*"}); err != nil {
		return err
	}
	for i := range 50 {
		if err := client(hosts[i%len(hosts)]).detach(ctx, fmt.Sprintf("mem-%d", i)); err != nil {
			return err
		}
	}
	return b.remove(ctx, "mem")
}
