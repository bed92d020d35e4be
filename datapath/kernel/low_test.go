package kernel

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// A node may have more than a thousand descriptors open, also while namespaces come and go.
func TestPacketFiltersBesideManyDescriptors(t *testing.T) {
	h := newHost(t)
	var lim unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &lim))
	if lim.Cur <= selectable {
		t.Fatalf("this test needs more than %d descriptors, and may have %d", selectable, lim.Cur)
	}
	must(t, h.Apply(t.Context(), datapath.SetFilter{Filter: datapath.Filter{Port: 4789}})) // as the daemon does first of all
	fill := func() {
		t.Helper()
		for {
			f, err := os.Open("/dev/null")
			must(t, err)
			t.Cleanup(func() { f.Close() })
			if f.Fd() > selectable {
				return
			}
		}
	}
	for _, name := range []string{"one", "two", "three"} {
		fill()
		must(t, h.Apply(t.Context(), datapath.SetNamespace{Namespace: datapath.Namespace{Name: name, Owner: "o", Uplink: "up0"}}))
		_, err := h.Read(t.Context(), &datapath.Config{Namespaces: []datapath.Namespace{{Name: name, Owner: "o", Uplink: "up0"}}})
		must(t, err)
	}
	h.low.mu.Lock()
	defer h.low.mu.Unlock()
	if len(h.low.fds) != lowKept-1 { // one is the lasting connection's
		t.Errorf("%d descriptors are kept", len(h.low.fds))
	}
}
