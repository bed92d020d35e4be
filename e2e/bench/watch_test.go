//go:build linux

package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/lab"
)

func TestMain(m *testing.M) {
	lab.Main()
	os.Exit(m.Run())
}

// One remote endpoint makes the announcements that are waited for, and its end does.
func TestWatcherSeesTheEntriesOfAnEndpoint(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces")
	}
	l, err := lab.New(t.Context(), t.Name(), lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	run := func(line string) {
		t.Helper()
		if err := l.Host(1).Run(t.Context(), strings.Fields(line)...); err != nil {
			t.Fatal(err)
		}
	}
	const mac = "02:00:00:00:be:ef"
	run("ip netns add x")
	run("ip -n x link add br0 type bridge")
	run("ip -n x link add vx0 type vxlan id 1 dstport 4789 nolearning")
	run("ip -n x link set vx0 master br0 up")
	run("ip -n x link set br0 up")
	w, err := watchNS(l.Host(1).Path("/run/netns/x"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	run("bridge -n x fdb add " + mac + " dev vx0 dst 192.168.77.9 self master static")
	run("ip -n x neigh add 10.0.0.9 lladdr " + mac + " dev br0")
	run("ip -n x neigh add fd00::9 lladdr " + mac + " dev br0")
	if _, err := w.wait(t.Context(), 2*time.Second, []string{mac}, nil); err != nil {
		t.Fatal(err)
	}
	run("bridge -n x fdb del " + mac + " dev vx0 dst 192.168.77.9 self master")
	if _, err := w.wait(t.Context(), 2*time.Second, nil, []string{mac}); err != nil {
		t.Fatal(err)
	}
}
