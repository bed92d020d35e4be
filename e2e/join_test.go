//go:build linux

package e2e

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

// founded is a cluster of one manager, and a host that has not joined it.
func founded(t *testing.T, cfg lab.Config) (w world, m, late *lab.Host, token string) {
	t.Helper()
	w = start(t, cluster.Config{Managers: 1, Spare: 1, Lab: cfg})
	m, late = w.Host(1), w.Host(2)
	return w, m, late, w.ok(m, "token", "create", "worker", "-q")
}

// A node that the others could not reach is not taken in: each port is named, with the direction
// and what to type; typed, the same join works.
func TestJoinDialsBack(t *testing.T) {
	t.Parallel() // most of it is waiting
	w, m, late, _ := founded(t, lab.Config{})
	join := []string{"join", m.Addr().String(), "--token", w.ok(m, "token", "create", "manager", "-q")} // good for one use
	for _, tc := range []struct {
		name, rule string
		ports      []string
	}{
		{"gossip by TCP", "tcp dport 5378 drop", []string{"5378/tcp"}},
		{"gossip by UDP", "udp dport 5378 drop", []string{"5378/udp"}},
		{"data path", "udp dport 4789 reject", []string{"4789/udp"}},
		{"all", "ip daddr " + late.Addr().String() + " ct state new drop", []string{"5378/tcp", "5378/udp", "4789/udp"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := w
			w.t = t
			w.sh(late, "nft 'add table inet wall; add chain inet wall in { type filter hook input priority 0; }; add rule inet wall in "+tc.rule+"'")
			defer w.sh(late, "nft delete table inet wall")
			begin := time.Now()
			said, err := late.Output(t.Context(), "sh", "-c", "heddle "+strings.Join(join, " ")+" 2>&1; true")
			if err != nil || !strings.Contains(said, "not joined") || time.Since(begin) > 4*time.Second {
				t.Fatalf("after %s: %q, %v", time.Since(begin), said, err)
			}
			for _, p := range []string{"5378/tcp", "5378/udp", "4789/udp"} {
				port := strings.Split(p, "/")
				line := "n1 → this node, " + late.Addr().String() + " " + p
				if got := strings.Contains(said, line); got != strings.Contains(strings.Join(tc.ports, " "), p) {
					t.Errorf("%s is named: %v, in %q", p, got, said)
				} else if mend := "nft delete rule inet wall in handle "; got && !strings.Contains(said, mend) && !strings.Contains(said, port[1]+" dport "+port[0]+" accept") {
					t.Errorf("nobody says how to open %s: %q", p, said)
				}
			}
			if named := strings.Contains(said, "a rule in the chain `inet wall in` drops"); named == (tc.name == "all") {
				t.Errorf("the rule is named: %v, in %q", named, said)
			}
			if out := w.ok(m, "node", "ls", "-q"); strings.Contains(out, "\n") {
				t.Errorf("it left a row: %q", out)
			}
			if out := w.ok(late, "status"); !strings.Contains(out, "in no cluster") {
				t.Errorf("it is half a member: %s", out)
			}
		})
	}
	begin := time.Now()
	w.ok(late, join...) // the token has its use yet
	t.Logf("joined in %s", time.Since(begin).Round(time.Millisecond))
}

// Of nodes that join at the same time each is in contact with a manager when its join returns, and not
// only with others that know as little.
func TestJoinTogether(t *testing.T) {
	t.Parallel()
	w := start(t, cluster.Config{Managers: 1, Spare: 6})
	token := w.ok(w.Host(1), "token", "create", "worker", "-q")
	var all sync.WaitGroup
	for _, h := range w.Spare() {
		all.Go(func() {
			if err := w.Join(t.Context(), h, token); err != nil {
				t.Error(err)
				return
			}
			out, err := w.Do(t.Context(), h, "status", "--format", "{{range .Peers}}{{.Name}} {{.State}},{{end}}")
			if err != nil || !strings.Contains(out, "n1 alive") {
				t.Errorf("%s has joined and knows %q, %v", h.Name(), out, err)
			}
		})
	}
	all.Wait()
}

// A chain with a policy is named together with the rule that opens it.
// A manager dials back by the data path's port also where its own programs are kept from forging
// what comes by it. Of what is sent half would look like a frame of ours.
func TestJoinAtAManagerWithWorkloads(t *testing.T) {
	w, m, late, token := founded(t, lab.Config{})
	w.attach(m, "web", w.network(m))
	for range 4 {
		w.ok(late, "join", m.Addr().String(), "--token", token)
		w.ok(late, "leave")
	}
}

func TestJoinNamesTheChain(t *testing.T) {
	w, m, late, token := founded(t, lab.Config{})
	w.sh(late, "iptables-nft -P INPUT DROP; iptables-nft -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; iptables-nft -A INPUT -i lo -j ACCEPT")
	line := "heddle join " + m.Addr().String() + " --token " + token + " 2>&1; true"
	said, err := late.Output(t.Context(), "sh", "-c", line)
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"iptables -I INPUT -p tcp --dport 5378 -j ACCEPT", "iptables -I INPUT -p udp --dport 5378 -j ACCEPT", "iptables -I INPUT -p udp --dport 4789 -j ACCEPT"} {
		if !strings.Contains(said, "`ip filter INPUT`") || !strings.Contains(said, command) {
			t.Errorf("it does not say %q: %q", command, said)
		}
		w.sh(late, strings.ReplaceAll(command, "iptables ", "iptables-nft "))
	}
	if said, err := late.Output(t.Context(), "sh", "-c", line); err != nil || !strings.Contains(said, "is a worker") {
		t.Errorf("%q, %v", said, err)
	}
}

// Behind NAT a node is refused with a sentence that says so; with 1:1 NAT and the address that
// the others reach, it works, data path included.
func TestJoinThroughNAT(t *testing.T) {
	w, m, late, token := founded(t, lab.Config{})
	const outside = "192.168.77.200"
	w.sh(late, "ip addr flush dev eth0 scope global; ip addr add 10.5.5.2/24 dev eth0; ip route add 192.168.77.0/24 dev eth0 src 10.5.5.2; "+
		"ip addr add "+outside+"/32 dev lo; "+ // answers for the translator, which is this host's own kernel
		"nft 'add table ip nat; add chain ip nat out { type nat hook postrouting priority 100; }; add rule ip nat out oifname eth0 ip saddr 10.5.5.2 snat to "+outside+"'")
	join := []string{"join", m.Addr().String(), "--token", token}
	w.refused(late, 1, []string{"10.5.5.2", outside, "does not traverse NAT", "--advertise-addr"}, join...)
	w.sh(late, "nft delete table ip nat; nft 'add table ip one; "+
		"add chain ip one in { type filter hook prerouting priority -400; }; add rule ip one in ip daddr "+outside+" ip daddr set 10.5.5.2; "+
		"add chain ip one out { type filter hook postrouting priority 400; }; add rule ip one out oifname eth0 ip saddr 10.5.5.2 ip saddr set "+outside+"'")
	w.ok(late, append(join, "--advertise-addr", outside)...)
	w.ok(m, "network", "create", "net", "--ipv6")
	a := w.attach(m, "a", "net")
	b := w.attach(late, "b", "net")
	w.reaches(m, "a", b)
	w.reaches(late, "b", a)
}
