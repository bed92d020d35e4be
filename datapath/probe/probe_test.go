package probe

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// space is a namespace of the test's own, with loopback and an address of each family.
func space(t *testing.T) datapath.NS {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	d := netns.Dir(t.TempDir())
	t.Cleanup(func() {
		_ = d.Remove("web")
		_ = unix.Unmount(string(d), unix.MNT_DETACH)
	})
	if err := d.Make("web", func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	ns := datapath.NS{Path: d.Path("web")}
	ip := func(args ...string) {
		if out, err := exec.Command("nsenter", append([]string{"--net=" + ns.Path, "ip"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	ip("link", "set", "lo", "up")
	ip("addr", "add", "10.0.0.2/32", "dev", "lo")
	ip("addr", "add", "fd00::2/128", "dev", "lo", "nodad")
	return ns
}

// listen listens in the namespace, and serves as it is told.
func listen(t *testing.T, ns datapath.NS, at string, serve http.HandlerFunc) netip.AddrPort {
	t.Helper()
	var l net.Listener
	err := inside(ns, func() (err error) { l, err = net.Listen("tcp", at); return err })
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(serve)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return netip.MustParseAddrPort(l.Addr().String())
}

// setPorts says which ports the kernel chooses in a namespace.
func setPorts(t *testing.T, ns datapath.NS, ports string) {
	t.Helper()
	if err := inside(ns, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte(ports), 0) }); err != nil {
		t.Fatal(err)
	}
}

// TestConnectWaits: a connection that is not answered yet does not stand.
func TestConnectWaits(t *testing.T) {
	ns := space(t)
	if out, err := exec.Command("nsenter", "--net="+ns.Path, "nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in tcp flags & (syn | ack) == syn drop").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	to := listen(t, ns, "10.0.0.2:80", func(http.ResponseWriter, *http.Request) {})
	begin := time.Now()
	wants(t, "no answer to a SYN", TCP(within(t, 200*time.Millisecond), ns, to), "no answer in time")
	if took := time.Since(begin); took < 190*time.Millisecond || took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// wants fails the test unless the error says so, or is nil as "" wants.
func wants(t *testing.T, what string, err error, says string) {
	t.Helper()
	if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v, want %q", what, err, says)
	}
}

func TestInANamespace(t *testing.T) {
	ns, other := space(t), space(t)
	for _, at := range []string{"10.0.0.2:80", "[fd00::2]:80"} {
		to := listen(t, ns, at, func(w http.ResponseWriter, r *http.Request) {
			status, _ := strconv.Atoi(r.URL.Query().Get("status"))
			w.Header().Set("Location", "http://192.0.2.1/") // which nobody follows
			w.WriteHeader(status)
		})
		wants(t, "TCP "+at, TCP(within(t, time.Second), ns, to), "")
		wants(t, "TCP elsewhere", TCP(within(t, time.Second), other, to), "connection refused")
		for status, says := range map[int]string{200: "", 204: "", 301: "", 399: "", 400: "400 Bad Request", 503: "503 Service Unavailable"} {
			err := HTTP(within(t, time.Second), ns, to, fmt.Sprintf("/up?status=%d", status))
			wants(t, fmt.Sprint(at, " ", status), err, says)
		}
	}
	nobody := netip.MustParseAddrPort("10.0.0.2:81")
	wants(t, "TCP to nobody", TCP(within(t, time.Second), ns, nobody), "connection refused")
	wants(t, "HTTP to nobody", HTTP(within(t, time.Second), ns, nobody, "/"), "connection refused")
	// Where nobody listens at a port that the kernel may choose, TCP connects to itself sooner or later.
	setPorts(t, ns, "40000 40001")
	for range 20 {
		wants(t, "TCP to itself", TCP(within(t, time.Second), ns, netip.MustParseAddrPort("10.0.0.2:40000")), "connection refused")
		wants(t, "TCP to itself", TCP(within(t, time.Second), ns, netip.MustParseAddrPort("[fd00::2]:40001")), "connection refused")
	}
	ns.Inode = 1
	wants(t, "another namespace", TCP(within(t, time.Second), ns, nobody), "another namespace stands at")
	wants(t, "no namespace", TCP(within(t, time.Second), datapath.NS{Path: "/nowhere"}, nobody), "does not exist")
}

// A probe ends in time, whatever it meets: nobody who answers, or who answers without end.
func TestProbesEnd(t *testing.T) {
	ns := space(t)
	endless := listen(t, ns, "10.0.0.2:80", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/silent" {
			<-r.Context().Done()
			return
		}
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	})
	wants(t, "an answer without end", HTTP(within(t, 5*time.Second), ns, endless, "/endless"), "")
	begin := time.Now()
	wants(t, "no answer", HTTP(within(t, 50*time.Millisecond), ns, endless, "/silent"), "no answer in time")
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
	huge := listen(t, ns, "10.0.0.2:81", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X", strings.Repeat("x", 2*maxHeader))
	})
	wants(t, "a huge header", HTTP(within(t, 5*time.Second), ns, huge, "/"), "exceeded")
}

func TestCommand(t *testing.T) {
	ns := space(t)
	for _, c := range []struct{ line, says string }{
		{"true", ""},
		{"ip -4 addr show dev lo | grep -q 10.0.0.2", ""}, // in the namespace
		{"exit 3", "exit status 3"},
		{"echo out; echo err >&2; exit 1", "exit status 1: out\nerr\n"},
		{"seq 100000; exit 1", "99999\n100000\n"},
		{"nosuchcommand", "not found"},
		{"test $(pwd) = / && test -z \"$HEDDLE_SECRET\" && ! read line", ""},
		{"sleep 1 & true", ""}, // what it leaves is its own affair
		{"echo begun; sleep 100; true", "not finished in time: begun"},
		{"kill -9 $$", "signal: killed"},
	} {
		t.Setenv("HEDDLE_SECRET", "x")
		begin := time.Now()
		err := Command(within(t, 500*time.Millisecond), ns, c.line)
		wants(t, c.line, err, c.says)
		if took := time.Since(begin); took > 3*time.Second || err != nil && len(err.Error()) > tailSize+100 {
			t.Errorf("%s: it took %s, and says %q", c.line, took, err)
		}
	}
}

// At the end of its time the command goes with all that it has started.
func TestTheGroupIsKilled(t *testing.T) {
	ns := space(t)
	file := filepath.Join(t.TempDir(), "pids")
	err := Command(within(t, 500*time.Millisecond), ns, fmt.Sprintf("sleep 100 & echo $! >>%[1]s; sh -c 'sleep 100 & echo $! >>%[1]s; wait'", file))
	wants(t, "a command with children", err, "not finished in time")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pids := strings.Fields(string(b))
	if len(pids) != 2 {
		t.Fatalf("%d processes have begun", len(pids))
	}
	for _, p := range pids {
		pid, _ := strconv.Atoi(p)
		for end := time.Now().Add(5 * time.Second); alive(pid); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("process %d lives", pid)
			}
		}
	}
}

// alive says whether a process runs: one that nobody has waited for yet does not.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}
