//go:build linux

package daemon

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/names"
)

// tableOf has workloads in namespaces that heddle has made, in a network with both families.
func tableOf(workloads ...string) *names.Table {
	in := names.Input{Networks: []names.Network{{Network: overlay.Network{ID: "b0", NetworkSpec: overlay.NetworkSpec{Name: "blue", Subnets: []overlay.Subnet{
		{Prefix: netip.MustParsePrefix("fd00::/64"), Gateway: netip.MustParseAddr("fd00::1")},
		{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Gateway: netip.MustParseAddr("10.1.0.1")},
		{Prefix: netip.MustParsePrefix("10.2.0.0/24"), Gateway: netip.MustParseAddr("10.2.0.1")},
	}}}}}}
	for i, w := range workloads {
		in.Own = append(in.Own, names.Endpoint{
			ID: overlay.EndpointID(w), Network: "b0", Workload: w, IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 2)})}, Make: w, Namespace: datapath.NS{Path: w},
		})
	}
	in.Own = append(in.Own, names.Endpoint{ID: "given", Network: "b0", Workload: "given", IPs: []netip.Addr{netip.MustParseAddr("10.1.0.99")}, Namespace: datapath.NS{Path: "given"}})
	return (*names.Table)(nil).Next(in)
}

func TestResolvFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(dir, name, "resolv.conf"))
		return string(b)
	}
	if err := os.MkdirAll(filepath.Join(dir, "other"), 0o755); err != nil {
		t.Fatal(err)
	}
	theirs := filepath.Join(dir, "other", "resolv.conf")
	if err := os.WriteFile(theirs, []byte("nameserver 192.0.2.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	write := func(r *resolvFiles, workloads ...string) {
		t.Helper()
		if err := r.write(tableOf(workloads...)); err != nil {
			t.Fatal(err)
		}
	}
	first := &resolvFiles{dir: dir}
	write(first, "web", "other", "old")
	want := "# by heddle for workload web; it changes with its networks\nsearch heddle.internal\nnameserver 10.1.0.1\nnameserver fd00::1\n"
	if got := file("web"); got != want {
		t.Errorf("web has %q, want %q", got, want)
	}
	if got := file("other"); got != "nameserver 192.0.2.1\n" {
		t.Errorf("somebody else's file is %q", got)
	}
	if file("given") != "" {
		t.Error("a namespace that others made has a file")
	}
	held, err := os.Open(filepath.Join(dir, "web", "resolv.conf"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := os.WriteFile(held.Name(), []byte(resolvMark+"web, of another network\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	next := &resolvFiles{dir: dir} // after a restart
	write(next, "web")
	b := make([]byte, 1000)
	if n, _ := held.ReadAt(b, 0); string(b[:n]) != want {
		t.Errorf("who has the file open reads %q", b[:n])
	}
	if _, err := os.Stat(filepath.Join(dir, "old")); !os.IsNotExist(err) {
		t.Errorf("what an earlier daemon wrote is left: %v", err)
	}
	write(next)
	if _, err := os.Stat(filepath.Join(dir, "web")); !os.IsNotExist(err) {
		t.Errorf("the file is left: %v", err)
	}
	if got := file("other"); got == "" {
		t.Error("somebody else's file is gone")
	}
	alone := &resolvFiles{dir: filepath.Join(dir, "netns")}
	write(alone, "web")
	write(alone)
	if _, err := os.Stat(alone.dir); !os.IsNotExist(err) {
		t.Errorf("the directory is left: %v", err)
	}
}
