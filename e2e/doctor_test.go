//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

// examine runs heddle doctor on a host, and checks that its exit code is as its findings are.
func (w world) examine(h *lab.Host) (d cluster.Diagnosis) {
	w.t.Helper()
	out, err := h.Output(w.t.Context(), "heddle", "doctor", "--format", "json")
	if jerr := json.Unmarshal([]byte(out), &d); jerr != nil {
		w.t.Fatalf("%v, %v: %q", err, jerr, out)
	}
	code := 0
	if e, is := errors.AsType[*lab.ExitError](err); is {
		code = e.Code
	}
	bad := slices.ContainsFunc(d.Findings, func(f cluster.Finding) bool { return f.Verdict == "problem" })
	if want := map[bool]int{true: 1, false: 0}[bad]; code != want {
		w.t.Errorf("%s: the exit code is %d, want %d", h.Name(), code, want)
	}
	return d
}

// inOrder fails the test unless doctor has nothing but good to say, soon.
func (w world) inOrder(h *lab.Host, when string) {
	w.t.Helper()
	w.soon(8*time.Second, h.Name()+" in order "+when, func(context.Context) error {
		d := w.examine(h)
		var errs []error
		for _, f := range d.Findings {
			if f.Verdict != "ok" || f.Mend != "" {
				errs = append(errs, fmt.Errorf("%+v", f))
			}
		}
		for _, row := range d.Drift {
			errs = append(errs, fmt.Errorf("%+v", row))
		}
		return errors.Join(errs...)
	})
}

// finds is the finding of a name that says a word, once there is one.
func (w world) finds(h *lab.Host, name, verdict, word string) (found cluster.Finding) {
	w.t.Helper()
	w.soon(8*time.Second, h.Name()+" finds "+name, func(context.Context) error {
		d := w.examine(h)
		i := slices.IndexFunc(d.Findings, func(f cluster.Finding) bool {
			return f.Name == name && f.Verdict == verdict && strings.Contains(f.Found, word)
		})
		if i < 0 {
			return fmt.Errorf("no %s that says %q in %+v", verdict, word, d.Findings)
		}
		found = d.Findings[i]
		return nil
	})
	return found
}

// among is a finding of a diagnosis.
func (w world) among(d cluster.Diagnosis, name, verdict, word string) (f cluster.Finding) {
	w.t.Helper()
	i := slices.IndexFunc(d.Findings, func(f cluster.Finding) bool {
		return f.Name == name && f.Verdict == verdict && strings.Contains(f.Found, word)
	})
	if i < 0 {
		w.t.Fatalf("no %s of %s that says %q in %+v", verdict, name, word, d.Findings)
	}
	return d.Findings[i]
}

// rules loads rules of somebody else's on a host.
func (w world) rules(h *lab.Host, text string) {
	w.t.Helper()
	w.sh(h, "printf '%s' '"+text+"' | nft -f -")
}

// doctored is two hosts, each with a workload in one network.
func doctored(t *testing.T) (w world, a, b *lab.Host) {
	w = start(t, cluster.Config{Managers: 1, Workers: 1})
	a, b = w.Host(1), w.Host(2)
	net := w.network(a, "--ipv6")
	w.attach(a, "web", net)
	w.attach(b, "db", net)
	return w, a, b
}

func TestDoctorFindsNothing(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 1, Workers: 1, Spare: 1})
	for _, h := range w.Hosts() {
		w.inOrder(h, "without networks")
	}
	a, b := w.Host(1), w.Host(2)
	net := w.network(a, "--ipv6")
	w.attach(a, "web", net)
	w.attach(b, "db", net)
	w.attach(b, "self", net, "--host")
	sealed := w.network(a, "--encrypted")
	w.attach(a, "safe", sealed)
	w.attach(b, "vault", sealed)
	w.inOrder(a, "with workloads")
	w.inOrder(b, "with workloads, one of them itself")
	out := w.ok(a, "doctor")
	for _, words := range []string{"VXLAN: workloads on n2 answer", "those that devices fill in inside VXLAN are right at n2", "the largest packets pass to n2", "objects are as wanted", "WireGuard: workloads on n2 answer"} {
		if !strings.Contains(out, words) {
			t.Errorf("it does not say %q:\n%s", words, out)
		}
	}
}

// Others' rules, settings and programs: each is named, and what is said to mend it does.
func TestDoctorSaysWhatMends(t *testing.T) {
	t.Parallel() // most of it is waiting
	w, a, b := doctored(t)
	mend := func(f cluster.Finding) {
		t.Helper()
		line, _, _ := strings.Cut(f.Mend, "   # ")
		t.Logf("%s: %s → %s", f.Name, f.Found, line)
		_ = a.Run(t.Context(), "sh", "-c", line) // may end by telling a program that is not there
	}

	w.rules(a, "table inet other {\nchain in { type filter hook input priority 0;\nudp dport 4789 drop\n}\n}\n")
	w.sh(a, "cp $(command -v sleep) /run/NetworkManager && mkdir -p /etc/NetworkManager/conf.d /etc/systemd/network && (/run/NetworkManager 300 >/dev/null 2>&1 &)")
	w.sh(a, "cp $(command -v sleep) /run/systemd-networkd && (/run/systemd-networkd 300 >/dev/null 2>&1 &)")
	w.sh(a, `printf '[Match]\nName=*\n[Network]\nDHCP=yes\n' > /etc/systemd/network/50-all.network`)
	w.finds(a, "firewall", "problem", "a rule in the chain `inet other in` drops what other nodes send to 4789/udp")
	// No notification tells of a setting, so that it stands until the next sweep.
	w.sh(a, "ip netns exec $(ip netns | grep -o 'heddle-[0-9a-f]*') sysctl -qw net.bridge.bridge-nf-call-iptables=1")
	d := w.examine(a)
	if len(d.Drift) != 1 || d.Drift[0].What != "namespace" || !strings.HasPrefix(d.Drift[0].Do, "set namespace heddle-") {
		t.Errorf("drift: %+v", d.Drift)
	}
	w.among(d, "port 4789/udp", "problem", "nothing that web sends is answered by db on n2")
	w.finds(b, "port 4789/udp", "problem", "nothing that db sends is answered by web on n1")
	mend(w.among(d, "NetworkManager", "warning", "not told to leave"))
	mend(w.among(d, "systemd-networkd", "problem", "/etc/systemd/network/50-all.network is for heddle's links too"))
	mend(w.among(d, "firewall", "problem", ""))
	mend(w.among(d, "bridge-nf", "warning", "bridge-nf-call-iptables is on in heddle-"))
	w.inOrder(a, "after what it said")
	w.inOrder(b, "after what was said on the other")

	// A device that gets checksums inside VXLAN wrong: here a rule that drops what has options of
	// TCP, as all has that the kernel sends.
	w.rules(b, "table ip spoil {\nchain in { type filter hook prerouting priority -500;\nudp dport 4789 @th,312,8 6 @th,496,4 != 5 drop\n}\n}\n")
	w.finds(a, "checksums", "problem", "TCP does not pass from web to db on n2")
	w.sh(b, "nft delete table ip spoil")
	w.inOrder(a, "without the device")
	w.sh(a, "rm /etc/NetworkManager/conf.d/heddle.conf /etc/systemd/network/00-heddle.network") // what it has said to write
}

// The way between two hosts.
func TestDoctorTriesTheWay(t *testing.T) {
	t.Parallel() // most of it is waiting
	w, a, b := doctored(t)
	if err := w.SetMTU(b, 1400); err != nil {
		t.Fatal(err)
	}
	w.finds(a, "link MTU", "warning", "1500 here and 1400 on n2")
	w.finds(b, "link MTU", "warning", "1400 here and 1500 on n1")
	w.sh(b, "ip link set eth0 mtu 1500") // the switch's port has 1400 still
	w.finds(a, "path MTU", "problem", "packets of 1400 bytes reach n2 and come back, those of 1500")
	if err := w.SetMTU(b, 1500); err != nil {
		t.Fatal(err)
	}
	w.inOrder(a, "with one MTU")

	w.sh(a, "sysctl -qw net.ipv4.conf.eth0.rp_filter=1")
	w.inOrder(a, "with a strict rp_filter that drops nothing")
	w.sh(a, "ip link add side type bridge && ip link set side up && ip route add "+b.Addr().String()+" dev side")
	f := w.finds(a, "rp_filter", "problem", "it is strict on eth0, and the host would answer n2 ("+b.Addr().String()+") by side")
	if f.Mend != "sysctl -w net.ipv4.conf.eth0.rp_filter=2" {
		t.Errorf("to mend it: %q", f.Mend)
	}
	w.sh(a, "ip link del side")

	if err := b.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	w.finds(a, "peers", "problem", "n2 answers at none of its ports")
	d := w.examine(b)
	if !slices.ContainsFunc(d.Findings, func(f cluster.Finding) bool {
		return f.Name == "daemon" && f.Verdict == "problem" && strings.Contains(f.Found, "no heddle daemon answers")
	}) || len(d.Findings) < 6 {
		t.Errorf("without a daemon: %+v", d.Findings)
	}
	if err := b.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	w.inOrder(a, "with all daemons")
	w.inOrder(b, "with its daemon")
}

// A foreign link stands where an endpoint's should: doctor says so, and what heddle would do.
func TestDoctorShowsDrift(t *testing.T) {
	t.Parallel()
	w, a, _ := doctored(t)
	if err := a.PauseDaemon(); err != nil {
		t.Fatal(err)
	}
	w.sh(a, "ip -n web link del eth0 && ip -n web link add eth0 type bridge")
	if err := a.ContinueDaemon(); err != nil {
		t.Fatal(err)
	}
	w.finds(a, "kernel state", "problem", "link eth0 in namespace web is not heddle's")
	rows := w.examine(a).Drift
	if len(rows) != 1 || rows[0].What != "link" || rows[0].Found != "missing" || !strings.Contains(rows[0].Do, "add link") || !strings.Contains(rows[0].Do, "peer web/eth0") {
		t.Errorf("drift: %+v", rows)
	}
	w.sh(a, "ip -n web link del eth0")
	w.soon(35*time.Second, "the link is back", func(ctx context.Context) error { return a.Run(ctx, "ip", "-n", "web", "addr", "show", "eth0") })
	w.inOrder(a, "without the link in the way")
	if n := w.examine(a).Repaired["link"]; n == 0 {
		t.Error("the repair was not counted")
	}
}
