//go:build linux

package vm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/vm"
)

// Debian's kernel has WireGuard, so it is what encrypts. Nothing of the workloads' packets is
// to be read on the underlay; on a plain network it is, which shows that it would be seen.
func TestTheKernelEncrypts(t *testing.T) {
	w := common(t)
	w.ok(w.one, "heddle", "network", "create", "sealed", "--encrypted", "--ipv6")
	t.Cleanup(func() {
		err := cluster.Eventually(context.Background(), 30*time.Second, func(ctx context.Context) error {
			return w.one.Run(ctx, "heddle", "network", "rm", "sealed")
		})
		if err != nil {
			t.Error(err)
		}
	})
	a, b := w.attachTo("sealed", w.one, "sa"), w.attachTo("sealed", w.two, "sb")
	for _, h := range []*vm.Host{w.one, w.two} {
		w.soon(5*time.Second, h.Name()+" tells what it encrypts by", func(context.Context) error {
			var rows []struct{ Encryption string }
			err := json.Unmarshal([]byte(w.ok(h, "heddle", "node", "inspect", h.Name())), &rows)
			if err == nil && (len(rows) != 1 || rows[0].Encryption != "kernel") {
				err = fmt.Errorf("it is %+v, want it to encrypt by its kernel", rows)
			}
			return err
		})
	}
	end := w.Capture()
	w.reaches(w.one, "sa", b)
	w.reaches(w.two, "sb", a)
	frames := end()
	if n := readable(frames, a, b); n > 0 {
		t.Errorf("%d of %d frames show addresses of an encrypted network", n, len(frames))
	}
	if n := toWireGuard(frames); n < 8 {
		t.Errorf("%d frames to WireGuard's ports, want 4 requests and 4 answers at least", n)
	}
	p, q := w.attach(w.one, "a"), w.attach(w.two, "b")
	end = w.Capture()
	w.reaches(w.one, "a", q)
	if n := readable(end(), p, q); n < 2 {
		t.Errorf("%d frames show addresses of a plain network, want 2 at least", n)
	}
}

// readable counts frames in which a packet's header from the one workload to the other stands.
func readable(frames [][]byte, from, to cluster.Endpoint) (n int) {
	for _, f := range frames {
		for i, src := range addrs(from) {
			if bytes.Contains(f, append(src.AsSlice(), addrs(to)[i].AsSlice()...)) {
				n++
			}
		}
	}
	return n
}

// toWireGuard counts IPv4 UDP datagrams to heddle's ports for WireGuard.
func toWireGuard(frames [][]byte) (n int) {
	for _, f := range frames {
		if len(f) < 38 || binary.BigEndian.Uint16(f[12:]) != 0x0800 || f[23] != 17 {
			continue
		}
		if port := binary.BigEndian.Uint16(f[36:]); port == 5379 || port == 5381 {
			n++
		}
	}
	return n
}
