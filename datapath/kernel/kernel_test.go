package kernel

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/datapathtest"
	"github.com/heddle-net/heddle/datapath/netns"
	"github.com/heddle-net/heddle/datapath/wireguard"
)

// host is one node: a namespace for its underlay and a directory for named ones.
type host struct {
	*Kernel
	dir netns.Dir // of heddle's namespaces
	lab netns.Dir // of the host's own and of workloads'
}

// TestMain is also the process of a WireGuard device, and a host that is asked what it encrypts by.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "wireguard" {
		if err := wireguard.Run(context.Background(), slog.Default()); err != nil {
			slog.Error("wireguard", "err", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 2 && os.Args[1] == "encryption" {
		fmt.Println(encryption())
		return
	}
	goleak.VerifyTestMain(m)
}

// encryption is Encryption in one line.
func encryption() string {
	kind, err := New(Config{}).Encryption()
	return fmt.Sprintf("%s, %v", kind, err)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces and links")
	}
}

// namedDir is a directory of namespaces that the test removes.
func namedDir(t testing.TB) netns.Dir {
	d := netns.Dir(t.TempDir())
	t.Cleanup(func() {
		names, _ := d.List()
		for _, n := range names {
			d.Remove(n)
		}
		unix.Unmount(string(d), unix.MNT_DETACH)
	})
	return d
}

func newHost(t testing.TB) *host {
	t.Helper()
	needRoot(t)
	h := &host{dir: namedDir(t), lab: namedDir(t)}
	must(t, h.lab.Make("host", func() error { return nil }))
	h.Kernel = New(Config{Host: h.lab.Path("host"), Netns: h.dir})
	t.Cleanup(func() { // processes of WireGuard devices outlive whoever has started them
		if err := h.findNamespaces(); err != nil {
			t.Error(err)
		}
		if err := h.delNamespace(datapathtest.Tunnels.Name); err != nil {
			t.Error(err)
		}
		h.Close()
	})
	ip(t, h.lab.Path("host"), "link", "set", "lo", "up")
	return h
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a command inside a namespace.
func run(t testing.TB, path string, args ...string) string {
	t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + path}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return string(out)
}

func ip(t testing.TB, path string, args ...string) string {
	t.Helper()
	return run(t, path, append([]string{"ip"}, args...)...)
}

func (h *host) Workload(t *testing.T, name string) datapath.NS {
	t.Helper()
	must(t, h.lab.Make(name, func() error { return nil }))
	inode, err := netns.Inode(h.lab.Path(name))
	must(t, err)
	return datapath.NS{Path: h.lab.Path(name), Inode: inode}
}

func (h *host) EndWorkload(t *testing.T, ns datapath.NS) {
	must(t, h.lab.Remove(filepath.Base(ns.Path)))
}

func (h *host) Foreign(t *testing.T, l datapath.LinkKey) {
	ip(t, l.NS.Path, "link", "add", l.Name, "type", "bridge")
}

func TestCases(t *testing.T) {
	datapathtest.Run(t, func(t *testing.T) datapathtest.Env { return newHost(t) })
}
