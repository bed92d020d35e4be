//go:build linux

package vm_test

import (
	"context"
	"testing"

	"github.com/heddle-net/heddle/e2e/vm"
)

// A firewall that is loaded anew leaves heddle's rules alone, and traffic flows as soon as it
// is done. While it loads, firewalld drops all that conntrack does not know as established,
// which VXLAN never is: its two directions share no pair of ports.
func TestFirewalldReloads(t *testing.T) {
	w := common(t)
	w.ok(w.one, "firewall-offline-cmd", "--add-port=5377/tcp", "--add-port=5378/tcp", "--add-port=5378/udp", "--add-port=4789/udp")
	w.ok(w.one, "systemctl", "start", "firewalld")
	t.Cleanup(func() { _ = w.one.Run(context.Background(), "systemctl", "stop", "firewalld") })
	a, b := w.attach(w.one, "a"), w.attach(w.two, "b")
	w.ok(w.one, "firewall-cmd", "--state") // it answers when it has loaded all
	w.reaches(w.two, "b", a)
	before := w.rules(w.one)
	w.ok(w.one, "firewall-cmd", "--reload")
	w.reaches(w.one, "a", b)
	w.reaches(w.two, "b", a)
	if after := w.rules(w.one); after != before || before == "" {
		t.Errorf("heddle's rules were\n%s\nand are\n%s", before, after)
	}
}

// rules are heddle's own tables in the host's namespace, without what they have counted.
func (w world) rules(h *vm.Host) string {
	w.t.Helper()
	return w.ok(h, "sh", "-c", "nft -s list tables | grep heddle | while read -r table; do nft -s list $table; done")
}

// Networkd starts anew and finds addresses and routes that it hasn't made. They are heddle's.
func TestNetworkdRestartsUnderTraffic(t *testing.T) {
	w := common(t)
	w.attach(w.one, "a")
	b := w.attach(w.two, "b")
	before := w.routes(w.one)
	end := w.stream(w.one, "a", b)
	w.ok(w.one, "systemctl", "restart", "systemd-networkd")
	w.ok(w.one, "/lib/systemd/systemd-networkd-wait-online", "--timeout=20")
	end()
	if after := w.routes(w.one); after != before {
		t.Errorf("links, addresses, routes and rules were\n%s\nand are\n%s", before, after)
	}
}

func (w world) routes(h *vm.Host) string {
	w.t.Helper()
	return w.ok(h, "sh", "-c", "ip -o link; ip -o addr; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule")
}
