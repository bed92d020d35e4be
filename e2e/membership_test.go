//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

func TestTokens(t *testing.T) {
	t.Parallel() // most of it is waiting
	w := startHosts(t, cluster.Config{Managers: 1, Spare: 2})
	h, a, b := w.Host(1), w.Host(2), w.Host(3)
	addr := h.Addr().String()
	join := w.ok(h, "init", "--advertise-addr", addr)
	if !strings.Contains(join, "heddle join "+addr+" --token HDL1-") {
		t.Errorf("init prints no line to paste: %s", join)
	}
	good := w.ok(h, "token", "create", "worker", "-q")
	w.refused(a, 1, []string{"token"}, "join", addr, "--token", "HDL1-nonsense")
	last := good[len(good)-1]
	other := byte('A')
	if last == 'A' || last == 'a' {
		other = 'B'
	}
	w.refused(a, 1, []string{"token"}, "join", addr, "--token", good[:len(good)-1]+string(other))

	expired := w.ok(h, "token", "create", "worker", "-q", "--ttl", "1s")
	<-time.After(1100 * time.Millisecond) // the token's life, not a wait for others
	w.refused(a, 1, []string{"token", "expired", "token create"}, "join", addr, "--token", expired)

	once := w.ok(h, "token", "create", "worker", "-q", "--uses", "1")
	w.ok(a, "join", addr, "--token", once)
	w.refused(b, 1, []string{"token", "used", "token create"}, "join", addr, "--token", once)

	var rows []struct{ ID, Role string }
	w.decode(h, &rows, "token", "ls", "--format", "json")
	if out := w.ok(h, "token", "ls", "--no-trunc"); strings.Contains(out, good) {
		t.Error("token ls shows a secret")
	}
	for _, r := range rows {
		w.ok(h, "token", "revoke", r.ID)
	}
	w.refused(b, 1, []string{"token", "revoked|unknown|not valid"}, "join", addr, "--token", good)
	for _, h := range w.Hosts() {
		if strings.Contains(h.DaemonLog(), "HDL1-") {
			t.Errorf("%s has logged a token", h.Name())
		}
	}
	if out := w.ok(b, "status"); strings.Contains(strings.ToLower(out), "worker") {
		t.Errorf("a host that was refused says %s", out)
	}
}

func TestATokenOfAnotherClusterIsRefused(t *testing.T) {
	w := startHosts(t, cluster.Config{Managers: 2, Spare: 1})
	for _, h := range w.Managers() {
		w.ok(h, "init", "--advertise-addr", h.Addr().String())
	}
	token := w.ok(w.Host(1), "token", "create", "worker", "-q")
	w.refused(w.Host(3), 1, []string{"another cluster|other cluster"}, "join", w.Host(2).Addr().String(), "--token", token)
}

func TestAManagerThatIsNotThereIsNamed(t *testing.T) {
	t.Parallel() // most of it is waiting
	w := startHosts(t, cluster.Config{Managers: 1, Spare: 1})
	w.ok(w.Host(1), "init", "--advertise-addr", w.Host(1).Addr().String())
	token := w.ok(w.Host(1), "token", "create", "worker", "-q")
	w.refused(w.Host(2), 1, []string{"192.168.77.99"}, "join", "192.168.77.99", "--token", token)
	if err := w.Partition(w.Hosts()[:1], w.Hosts()[1:]); err != nil {
		t.Fatal(err)
	}
	w.refused(w.Host(2), 1, []string{"192.168.77.1", "5377"}, "join", "192.168.77.1", "--token", token)
	if err := w.Heal(); err != nil {
		t.Fatal(err)
	}
	w.soon(5*time.Second, "the join after the network is healed", func(ctx context.Context) error {
		_, err := w.Do(ctx, w.Host(2), "join", "192.168.77.1", "--token", token)
		return err
	})
}

func TestTwoAddressesToChooseFrom(t *testing.T) {
	w := startHosts(t, cluster.Config{Managers: 1})
	h := w.Host(1)
	w.sh(h, "ip addr add 172.20.0.7/24 dev eth0")
	_, err := w.Do(t.Context(), h, "init")
	e, ok := err.(*lab.ExitError)
	if !ok {
		t.Fatalf("init chose an address by itself: %v", err)
	}
	for _, want := range []string{"heddle init --advertise-addr 192.168.77.1", "heddle init --advertise-addr 172.20.0.7"} {
		if !strings.Contains(e.Stderr, want) {
			t.Errorf("the refusal has no ready command %q: %s", want, e.Stderr)
		}
	}
	w.ok(h, "init", "--advertise-addr", "192.168.77.1")
}

func TestInitTakesTheOnlyAddress(t *testing.T) {
	w := startHosts(t, cluster.Config{Managers: 1})
	if out := w.ok(w.Host(1), "init"); !strings.Contains(out, "heddle join 192.168.77.1 ") {
		t.Errorf("init says %s", out)
	}
}

func TestNodesComeAndGo(t *testing.T) {
	t.Parallel() // most of it is waiting
	w := start(t, cluster.Config{Managers: 3, Workers: 2})
	m, leaver, lost := w.Host(1), w.Host(4), w.Host(5)
	net := w.network(m)
	w.attach(leaver, "here", net)
	gone := w.attach(lost, "there", net)
	w.attach(m, "observer", net)

	w.refused(leaver, 1, []string{"here", "--force|detach"}, "leave")
	w.ok(leaver, "detach", "here")
	w.ok(leaver, "leave")
	w.nodes(m, 4)
	if out, _ := leaver.Output(t.Context(), "ip", "netns", "list"); strings.Contains(out, "heddle-") {
		t.Errorf("leave has left namespaces: %s", out)
	}
	w.refused(leaver, 1, []string{"no cluster"}, "network", "ls")

	if err := lost.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	w.soon(15*time.Second, "the killed node is removed", func(ctx context.Context) error {
		_, err := w.Do(ctx, m, "node", "rm", lost.Name())
		return err
	})
	w.nodes(m, 3)
	w.soon(3*time.Second, "the removed node's entries go", func(ctx context.Context) error {
		out, err := m.Output(ctx, "sh", "-c", "for n in $(ls /run/netns | grep heddle-); do ip netns exec $n bridge fdb show; done")
		if err == nil && strings.Contains(out, gone.MAC) {
			err = fmt.Errorf("%s", out)
		}
		return err
	})

	w.ok(m, "node", "demote", "n3")
	w.role(m, "n3", "worker")
	w.ok(m, "node", "promote", "n3")
	w.role(m, "n3", "manager")
	token := w.ok(m, "token", "create", "worker", "-q")
	w.ok(leaver, "join", m.Addr().String(), "--token", token)
	w.nodes(m, 4)
	e := w.attach(leaver, "back", net)
	w.reaches(m, "observer", e)
}

// A running node that is removed by force tears its overlays down, also when it is killed before
// it has: its daemon starts again, and the node can leave and join anew.
func TestARemovedNodeStartsAndLeaves(t *testing.T) {
	t.Parallel() // most of it is waiting
	w := start(t, cluster.Config{Managers: 1, Workers: 1})
	m, out := w.Host(1), w.Host(2)
	net := w.network(m)
	w.attach(m, "observer", net)
	w.attach(out, "there", net)
	w.ok(m, "node", "rm", "--force", out.Name())
	w.soon(3*time.Second, "the node hears of it", func(ctx context.Context) error {
		s, err := w.Do(ctx, out, "status")
		if err == nil && !strings.Contains(s, "was removed") {
			err = fmt.Errorf("%s", s)
		}
		return err
	})
	if err := out.StopDaemon(); err != nil { // by then the disk has it
		t.Fatal(err)
	}
	w.sh(out, "ip netns add heddle-left && ip -n heddle-left link set lo alias heddle:left") // as if it had been killed
	if err := out.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	w.refused(out, 1, []string{"was removed", "leave --force"}, "network", "ls")
	w.refused(out, 1, []string{"was removed", "leave --force"}, "init")
	if s := w.ok(out, "status"); !strings.Contains(s, "was removed") || !strings.Contains(s, "leave --force") {
		t.Errorf("status says %s", s)
	}
	w.soon(3*time.Second, "the overlays go", func(ctx context.Context) error {
		return out.Run(ctx, "sh", "-c", "! ls /run/netns | grep heddle-")
	})
	w.ok(out, "leave", "--force")
	w.ok(out, "join", m.Addr().String(), "--token", w.ok(m, "token", "create", "worker", "-q"))
	w.reaches(m, "observer", w.attach(out, "back", net))
}

// A node that gets no certificate for its new role, since no manager answers for a while, goes on
// trying: in an idle cluster there are no newer facts to remind it.
func TestAPromotionOutlivesSilentManagers(t *testing.T) {
	t.Parallel() // most of it is waiting
	w := start(t, cluster.Config{Managers: 1, Workers: 1})
	m, b := w.Host(1), w.Host(2)
	w.sh(b, `nft 'add table inet silent; add chain inet silent out { type filter hook output priority 0; }; add rule inet silent out tcp dport 5377 ct state new drop'`)
	w.ok(m, "node", "promote", b.Name())
	w.soon(10*time.Second, "the first try fails", func(context.Context) error {
		if !strings.Contains(b.DaemonLog(), "get a certificate for this node's role") {
			return errors.New("not yet")
		}
		return nil
	})
	w.sh(b, "nft delete table inet silent")
	w.soon(10*time.Second, "the node is a manager that is reached", func(ctx context.Context) error {
		var rows []cluster.Node
		err := w.JSON(ctx, m, &rows, "node", "inspect", b.Name())
		if err == nil && rows[0].ManagerStatus != "Reachable" {
			err = fmt.Errorf("%+v", rows)
		}
		return err
	})
}

func TestTheLastManagerDoesNotLeave(t *testing.T) {
	w := start(t, cluster.Config{Managers: 1, Workers: 1})
	w.refused(w.Host(1), 1, []string{"last manager"}, "leave")
	w.refused(w.Host(1), 1, []string{"last manager"}, "node", "demote", "n1")
}

// nodes waits until a host lists so many nodes.
func (w world) nodes(h *lab.Host, want int) {
	w.t.Helper()
	w.soon(5*time.Second, "the list of nodes", func(ctx context.Context) error {
		var rows []cluster.Node
		if err := w.JSON(ctx, h, &rows, "node", "ls", "--format", "json"); err != nil {
			return err
		}
		if len(rows) != want {
			return fmt.Errorf("%d nodes, want %d", len(rows), want)
		}
		return nil
	})
}

// role waits until a node has a role, and, as a manager, is reachable.
func (w world) role(ask *lab.Host, name, want string) {
	w.t.Helper()
	w.soon(10*time.Second, name+" as "+want, func(ctx context.Context) error {
		var rows []cluster.Node
		if err := w.JSON(ctx, ask, &rows, "node", "inspect", name); err != nil {
			return err
		}
		if len(rows) != 1 || rows[0].Role != want || (want == "manager") != (rows[0].ManagerStatus != "") {
			return fmt.Errorf("%+v", rows)
		}
		return nil
	})
}
