//go:build linux

package oracle

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

// Underlay is a capture of all that hosts send and get by their underlay, whatever the port.
type Underlay struct{ ears []*watcher }

// Tap starts to capture at each of the hosts and counts frames that have the text.
func Tap(ctx context.Context, text string, hosts ...*lab.Host) (*Underlay, error) {
	u := &Underlay{}
	for _, h := range hosts {
		e, err := watch(h, probe.Args("capture", "-find", text)...)
		if err == nil {
			u.ears = append(u.ears, e)
			err = e.prints(ctx, "capturing\n")
		}
		if err != nil {
			_, _ = u.End(ctx)
			return nil, fmt.Errorf("capture at %s: %w", h.Name(), err)
		}
	}
	return u, nil
}

// End stops the capture and returns what all of the hosts have seen. That a frame was missed is an
// error, since nothing can be said then.
func (u *Underlay) End(ctx context.Context) (all probe.Captured, err error) {
	for _, e := range u.ears {
		said, err := e.end(ctx)
		if err != nil {
			return all, err
		}
		var c probe.Captured
		if err := json.Unmarshal([]byte(strings.TrimPrefix(said, "capturing\n")), &c); err != nil {
			return all, fmt.Errorf("capture at %s: %w in %q", e.h.Name(), err, said)
		}
		if c.Missed > 0 {
			return all, fmt.Errorf("capture at %s has missed %d frames of %d", e.h.Name(), c.Missed, c.Frames)
		}
		all.Frames += c.Frames
		all.Found += c.Found
		all.Fragments += c.Fragments
	}
	return all, nil
}
