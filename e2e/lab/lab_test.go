//go:build linux

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

func TestMain(m *testing.M) {
	lab.Main()
	probe.Main()
	if len(os.Args) > 1 && os.Args[1] == "abandon-lab" {
		abandon()
	}
	if len(os.Args) > 2 && os.Args[1] == "daemon" { // the heddle of these tests
		daemon(os.Args[2:])
	}
	os.Exit(m.Run())
}

func newLab(t *testing.T, cfg lab.Config) *lab.Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces")
	}
	l, err := lab.New(t.Context(), t.Name(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// reaches says whether an echo request from one host to another is answered.
func reaches(t *testing.T, from *lab.Host, to netip.Addr) bool {
	t.Helper()
	err := from.Run(t.Context(), probe.Args("ping", "-w", "300ms", to.String())...)
	if _, ok := errors.AsType[*lab.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return err == nil
}

func TestFiveHostsAreUpFastAndReachEachOther(t *testing.T) {
	begin := time.Now()
	l := newLab(t, lab.Config{Hosts: 5, IPv6: true})
	if d := time.Since(begin); d > time.Second {
		t.Errorf("five hosts took %s; they must be up in less than a second", d)
	} else {
		t.Logf("five hosts in %s", d)
	}
	for _, from := range l.Hosts() {
		for _, to := range l.Hosts() {
			if !reaches(t, from, to.Addr()) || !reaches(t, from, to.Addr6()) {
				t.Errorf("%s does not reach %s", from.Name(), to.Name())
			}
		}
	}
}

func TestAHostLooksLikeOne(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Config{Hosts: 2})
	out := func(script string) string {
		t.Helper()
		s, err := l.Host(1).Output(t.Context(), "sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(s)
	}
	for _, c := range []struct{ name, script, want string }{
		{"host name", "uname -n; cat /etc/hostname", "n1\nn1"},
		{"interfaces in sysfs", "ls /sys/class/net", "eth0\nlo"},
		{"first process", "tr '\\0' ' ' < /proc/1/cmdline | cut -d' ' -f2", "heddle-lab-init"},
		{"run is its own", "ls /run", "lab\nlock\nnetns"},
		{"default route", "ip -o route show default", "default via 192.168.77.254 dev eth0"},
		{"ipv6", "cat /proc/sys/net/ipv6/conf/all/disable_ipv6 /proc/sys/net/ipv6/conf/default/disable_ipv6", "0\n0"},
		{"state", "touch /var/lib/heddle/x /etc/heddle/y && ls /var/lib/heddle /etc/heddle", "/etc/heddle:\ny\n\n/var/lib/heddle:\nx"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := out(c.script); got != c.want {
				t.Errorf("%s\ngot  %q\nwant %q", c.script, got, c.want)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(l.Dir(), "n1/data/x")); err != nil {
		t.Error("the state is not on the disk:", err)
	}
	if _, err := os.Stat(l.Host(1).Path("/var/lib/heddle/x")); err != nil {
		t.Error("Path does not lead into the host:", err)
	}
	if s, err := l.Host(2).Output(t.Context(), "ls", "/var/lib/heddle"); err != nil || s != "" {
		t.Errorf("host 2 sees the state of host 1: %q, %v", s, err)
	}
	if _, err := os.Stat("/etc/heddle/y"); err == nil {
		t.Error("the machine sees /etc of the host")
	}
}

func TestNamespacesOfWorkloadsStayInTheirHost(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Config{Hosts: 2})
	for _, h := range l.Hosts() {
		if err := h.Run(t.Context(), "ip", "netns", "add", "web"); err != nil {
			t.Fatal(err)
		}
		if err := h.Run(t.Context(), "ip", "netns", "exec", "web", "ip", "link", "set", "lo", "up"); err != nil {
			t.Fatal(err)
		}
		if err := lab.InNetNS(h.Path("/run/netns/web"), func() error { return nil }); err != nil {
			t.Error("the lab can't enter it:", err)
		}
	}
	if _, err := os.Stat("/run/netns/web"); err == nil {
		t.Error("the machine sees a workload of a host")
	}
}

func TestCommandsReportTheirEnd(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Config{})
	h := l.Host(1)
	_, err := h.Output(t.Context(), "sh", "-c", "echo why >&2; exit 3")
	if e, ok := errors.AsType[*lab.ExitError](err); !ok || e.Code != 3 || e.Stderr != "why\n" {
		t.Errorf("exit 3 became %v", err)
	}
	_, err = h.Output(t.Context(), "sh", "-c", "kill -9 $$")
	if e, ok := errors.AsType[*lab.ExitError](err); !ok || e.Code != 137 {
		t.Errorf("SIGKILL became %v", err)
	}
	if _, err = h.Output(t.Context(), "no-such-program"); err == nil {
		t.Error("a program that does not exist ran")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err = h.Output(ctx, "sh", "-c", "sleep 60; echo"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command that takes too long became %v", err)
	}
	if s, err := h.Output(t.Context(), "sh", "-c", "(sh -c 'exit 0' &) ; sleep 0.1; grep -l zombie /proc/[0-9]*/status || echo none"); err != nil || s != "none\n" {
		t.Errorf("orphans are not reaped: %q, %v", s, err)
	}
}

func TestFaultsAtTheSwitch(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Config{Hosts: 3})
	h := func(i int) *lab.Host { return l.Host(i) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what string, want bool, from, to int) {
		t.Helper()
		// After a fault the kernel asks for a neighbour's MAC once a second.
		for end := time.Now().Add(5 * time.Second); reaches(t, h(from), h(to).Addr()) != want; {
			if !want || time.Now().After(end) {
				t.Errorf("%s: n%d reaches n%d is %v, want %v", what, from, to, !want, want)
				return
			}
		}
	}
	must(l.Partition(l.Hosts()[:1], l.Hosts()[1:2]))
	expect("partition", false, 1, 2)
	expect("partition", false, 2, 1)
	expect("partition", true, 1, 3)
	must(l.Heal())
	expect("healed", true, 1, 2)

	must(l.PartitionOneWay(l.Hosts()[:1], l.Hosts()[1:2]))
	if n := oneWay(t, h(1), h(2)); n != 0 {
		t.Errorf("one way: %d packets passed the cut direction", n)
	}
	if n := oneWay(t, h(2), h(1)); n != 10 {
		t.Errorf("one way: %d of 10 packets passed the open direction", n)
	}
	must(l.Heal())

	must(l.Loss(h(2), 100))
	expect("loss of 100 percent", false, 1, 2)
	must(l.Loss(h(2), 30))
	err := h(1).Run(t.Context(), probe.Args("ping", "-c", "200", "-i", "2ms", "-w", "100ms", h(2).Addr().String())...)
	if err == nil || strings.Contains(err.Error(), "200 of 200") {
		t.Errorf("loss of 30 percent became %v", err)
	}
	must(l.Loss(h(2), 0))
	expect("no loss", true, 1, 2)

	must(l.Cut(h(2)))
	if s, err := h(2).Output(t.Context(), "cat", "/sys/class/net/eth0/carrier"); err != nil || s != "0\n" {
		t.Errorf("a cut cable has carrier %q, %v", s, err)
	}
	must(l.Join(h(2)))
	expect("joined", true, 1, 2)

	must(l.SetMTU(h(2), 1400))
	if s, _ := h(2).Output(t.Context(), "cat", "/sys/class/net/eth0/mtu"); s != "1400\n" {
		t.Errorf("MTU is %q", s)
	}
	old := h(3).Addr()
	must(l.SetAddr(h(3), netip.MustParseAddr("192.168.77.103")))
	expect("new address", true, 1, 3)
	if reaches(t, h(1), old) {
		t.Error("the old address still answers")
	}
}

// oneWay counts the packets of ten that arrive, without needing an answer: the neighbour
// entries are given, since ARP needs both ways.
func oneWay(t *testing.T, from, to *lab.Host) int {
	t.Helper()
	mac, err := to.Output(t.Context(), "cat", "/sys/class/net/eth0/address")
	if err != nil {
		t.Fatal(err)
	}
	if err := from.Run(t.Context(), "ip", "neigh", "replace", to.Addr().String(), "lladdr", strings.TrimSpace(mac), "dev", "eth0"); err != nil {
		t.Fatal(err)
	}
	result := make(chan string, 1)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := to.Start(lab.Command{Args: probe.Args("count", "-for", "300ms"), Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, _ := r.Read(buf) // listening
	if string(buf[:n]) != "listening\n" {
		t.Fatalf("count said %q", buf[:n])
	}
	if err := from.Run(t.Context(), probe.Args("forge", "-to", fmt.Sprintf("%s:7777", to.Addr()), "-dst-mac", "02:00:00:00:00:02", "-src", "10.0.0.1", "-dst", "10.0.0.2")...); err != nil {
		t.Fatal(err)
	}
	go func() {
		n, _ := r.Read(buf)
		result <- strings.TrimSpace(string(buf[:n]))
	}()
	if err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got int
	fmt.Sscan(<-result, &got)
	return got
}

// fakeHeddle is a directory with a program "heddle" that is this test binary.
func fakeHeddle(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, dir+"/heddle"); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestDaemonLife(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Config{Bin: fakeHeddle(t)})
	h := l.Host(1)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(h.StartDaemon("serve"))
	if rss, err := h.RSS(); err != nil || rss < 1<<20 {
		t.Errorf("RSS is %d, %v", rss, err)
	}
	must(h.PauseDaemon())
	must(h.ContinueDaemon())
	must(h.StopDaemon())
	must(h.StartDaemon("serve"))
	must(h.KillDaemon())
	if h.Daemon() != nil {
		t.Error("a killed daemon still runs")
	}
	if n := strings.Count(h.DaemonLog(), "starting\n"); n != 2 {
		t.Errorf("the log has %d starts, want 2:\n%s", n, h.DaemonLog())
	}
	err := h.StartDaemon("fail")
	if err == nil || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("a daemon that fails gives %v", err)
	}
	must(h.SuperviseDaemon("serve"))
	p := h.Daemon()
	first := p.PID()
	must(p.Signal(9))
	waitFor(t, "the restart", func() bool { return p.PID() != first && strings.Count(h.DaemonLog(), "starting\n") == 5 })
	must(h.StopDaemon())
}

// daemon is what the lab starts as `heddle daemon`: it says READY=1 and waits for SIGTERM.
func daemon(args []string) {
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	fmt.Fprintln(os.Stderr, "starting")
	if args[0] == "fail" {
		fmt.Fprintln(os.Stderr, "no disk")
		os.Exit(1)
	}
	c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		os.Exit(1)
	}
	_, _ = c.Write([]byte("STATUS=up\nREADY=1\n"))
	<-term
	os.Exit(0)
}

func TestALabThatDiedIsRemovedByTheNext(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces")
	}
	base := t.TempDir()
	cmd := exec.Command("/proc/self/exe", "abandon-lab", base)
	out, err := cmd.Output()
	if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.Sys() == nil {
		t.Fatalf("the other process ended with %v", err)
	}
	var pid int
	if _, err := fmt.Sscan(string(out), &pid); err != nil {
		t.Fatalf("it said %q", out)
	}
	waitFor(t, "the host to end with its maker", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
		return os.IsNotExist(err)
	})
	if left, _ := filepath.Glob(base + "/left-*"); len(left) != 1 {
		t.Fatalf("the dead lab left %v", left)
	}
	alive := newLab(t, lab.Config{Dir: base})
	second := newLab(t, lab.Config{Dir: base})
	if left, _ := filepath.Glob(base + "/left-*"); len(left) != 0 {
		t.Errorf("the next lab left %v", left)
	}
	for _, l := range []*lab.Lab{alive, second} {
		if _, err := os.Stat(l.Dir()); err != nil {
			t.Error("a living lab was removed:", err)
		}
	}
}

// abandon makes a lab, prints the first process of its host and dies.
func abandon() {
	l, err := lab.New(context.Background(), "left", lab.Config{Dir: os.Args[2]})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(strings.Split(l.Host(1).Path(""), "/")[2])
	p, _ := os.FindProcess(os.Getpid())
	_ = p.Kill()
	select {}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain for", what)
		}
	}
}
