//go:build linux

package vm_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/vm"
)

func TestHostsThatSystemdBootedTalk(t *testing.T) {
	w := common(t)
	a, b := w.attach(w.one, "a"), w.attach(w.two, "b")
	w.reaches(w.one, "a", b)
	w.reaches(w.two, "b", a)
}

// What systemd does to the unit costs no packet, and every link stays the one that it was.
func TestTheUnitIsRestartedUnderTraffic(t *testing.T) {
	w := common(t)
	w.attach(w.one, "a")
	b := w.attach(w.two, "b")
	end := w.stream(w.one, "a", b)
	for _, how := range []string{
		"systemctl restart heddle",
		"systemctl stop heddle && systemctl start heddle",
		"systemctl kill --signal=KILL heddle", // Restart= brings it back
	} {
		before, was := w.links(w.one), w.pid(w.one)
		w.ok(w.one, "sh", "-c", how)
		w.soon(20*time.Second, how+": the daemon answers", func(ctx context.Context) error {
			if is := w.pid(w.one); is == was || is == "0" {
				return fmt.Errorf("the daemon's process is %s, as before or none", is)
			}
			return w.one.Run(ctx, "heddle", "endpoint", "ls", "--local")
		})
		if after := w.links(w.one); after != before {
			t.Errorf("%s: the links were\n%s\nand are\n%s", how, before, after)
		}
	}
	end()
}

// pid is the daemon's process, 0 when there is none.
func (w world) pid(h *vm.Host) string {
	w.t.Helper()
	return w.ok(h, "systemctl", "show", "-P", "MainPID", "heddle")
}

// links are the indexes and names of all links of a host and its namespaces.
func (w world) links(h *vm.Host) string {
	w.t.Helper()
	out := w.ok(h, "sh", "-c", "ip -o link; for n in $(ls /run/netns); do echo $n; ip -n $n -o link; done")
	var b strings.Builder
	for line := range strings.Lines(out) {
		f := append(strings.Fields(line), "")
		fmt.Fprintln(&b, f[0], f[1])
	}
	return b.String()
}
