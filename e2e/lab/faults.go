//go:build linux

package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// faults are what the switch does to frames, apart from ports that are down. The whole rule
// set is made anew for each change.
type faults struct {
	cuts []cut
	loss map[string]int // percent by port, each way
}

type cut struct{ from, to []string } // ports

// Partition drops everything between two groups of hosts, both ways, on top of the faults
// that are there. Their links stay up.
func (l *Lab) Partition(a, b []*Host) error {
	return l.fault(func(f *faults) {
		f.cuts = append(f.cuts, cut{ports(a), ports(b)}, cut{ports(b), ports(a)})
	})
}

// PartitionOneWay drops what some hosts send to others.
func (l *Lab) PartitionOneWay(from, to []*Host) error {
	return l.fault(func(f *faults) { f.cuts = append(f.cuts, cut{ports(from), ports(to)}) })
}

// Loss drops that percentage of the frames that the host sends, and of those it gets, at
// random. 0 ends it.
func (l *Lab) Loss(h *Host, percent int) error {
	if percent < 0 || percent > 100 {
		return fmt.Errorf("lab: a loss of %d percent; use 0 to 100", percent)
	}
	return l.fault(func(f *faults) {
		if f.loss == nil {
			f.loss = map[string]int{}
		}
		f.loss[h.port()] = percent
	})
}

// Heal ends all partitions and losses and plugs all hosts in.
func (l *Lab) Heal() error {
	err := l.fault(func(f *faults) { *f = faults{} })
	for _, h := range l.hosts {
		err = errors.Join(err, l.Join(h))
	}
	return err
}

// Cut pulls the host's cable: its interface loses its carrier.
func (l *Lab) Cut(h *Host) error { return ipBatch(l.sw, "link set "+h.port()+" down\n") }

// Join plugs the cable in again.
func (l *Lab) Join(h *Host) error { return ipBatch(l.sw, "link set "+h.port()+" up\n") }

// SetMTU changes the MTU of the host's underlay interface and of its switch port.
func (l *Lab) SetMTU(h *Host, mtu int) error {
	if err := ipBatch(l.sw, fmt.Sprintf("link set %s mtu %d\n", h.port(), mtu)); err != nil {
		return err
	}
	return h.ip(fmt.Sprintf("link set eth0 mtu %d\n", mtu))
}

// SetAddr replaces the host's underlay address by another of the switch's subnet,
// 192.168.77.0/24.
func (l *Lab) SetAddr(h *Host, a netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	to := netip.PrefixFrom(a, h.addr.Bits())
	err := h.ip(fmt.Sprintf("addr del %s dev eth0\naddr add %s dev eth0\nroute replace default via %s\n", h.addr, to, addr4(254).Addr()))
	if err != nil {
		return fmt.Errorf("lab: change the address of %s: %w", h.Name(), err)
	}
	h.addr = to
	return nil
}

func (l *Lab) fault(change func(*faults)) error {
	if _, err := exec.LookPath("nft"); err != nil {
		return errors.New("lab: the program nft is missing; apt-get install nftables")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.faults)
	rules := l.faults.rules()
	return inNetNS(l.sw, func() error { return feed(rules, "nft", "-f", "-") })
}

// rules is the switch's whole table, in nft's language.
func (f faults) rules() string {
	var b strings.Builder
	b.WriteString("table bridge faults\ndelete table bridge faults\ntable bridge faults {\nchain forward {\n")
	b.WriteString("type filter hook forward priority 0; policy accept;\n")
	for _, c := range f.cuts {
		fmt.Fprintf(&b, "iifname %s oifname %s counter drop\n", set(c.from), set(c.to))
	}
	for port, p := range f.loss {
		chance := fmt.Sprintf("numgen random mod 100 < %d", p)
		if p == 100 {
			chance = "" // nft refuses a bound that is always true
		}
		for _, dir := range []string{"iifname", "oifname"} {
			fmt.Fprintf(&b, "%s %s %s counter drop\n", dir, port, chance)
		}
	}
	b.WriteString("}\n}\n")
	return b.String()
}

func set(ports []string) string { return "{ " + strings.Join(ports, ", ") + " }" }

func ports(hosts []*Host) []string {
	var out []string
	for _, h := range hosts {
		out = append(out, h.port())
	}
	return out
}
