//go:build !race

package gossip

import (
	"context"
	"testing"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// Packets alone count, and both ways.
func TestEcho(t *testing.T) {
	virtual(t, 3, func(w *world) {
		echo := func(patience time.Duration) error {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			return w.peers[0].Echo(ctx, w.all[1])
		}
		if err := echo(time.Second); err != nil {
			t.Error(err)
		}
		for _, from := range []int{0, 1} {
			w.lan.partition(func(f, _ overlay.NodeID) bool { return f == w.all[from] })
			if echo(time.Second) == nil {
				t.Errorf("an answer, though node %d is not heard", from)
			}
			w.lan.heal()
		}
		w.peers[1].stop()
		if echo(time.Minute) == nil { // membership gives it up first
			t.Error("a node that is gone answers")
		}
		if left := len(w.peers[0].pending); left > 0 {
			t.Errorf("%d are still waited for", left)
		}
	})
}
