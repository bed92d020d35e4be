package kernel

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/heddle-net/heddle/datapath/datapathtest"
)

// Rules that stand for a device which drops what it should sum itself. Of TCP's first segments only
// the kernel's own have options; of datagrams only those that it sums have 21 bytes.
const (
	ourFrames = "udp dport 4789 @th,312,8 "         // the inner packet's protocol
	spoilTCP  = ourFrames + "6 @th,496,4 != 5 drop" // the length of TCP's header, in words
	spoilUDP  = ourFrames + "17 @th,432,16 21 drop" // UDP's length
	spoilAll  = "udp dport 4789 drop"
)

// What passes between two workloads, and what does not when something on the way drops it.
func TestTryFrames(t *testing.T) {
	hosts := underlay(t, 2)
	var nodes []*node
	ends := []datapathtest.Endpoint{{N: 1, NS: hosts[0].Workload(t, "w1")}, {N: 2, NS: hosts[1].Workload(t, "w2")}}
	for i, h := range hosts {
		o := datapathtest.Overlay{ID: "n1", VNI: datapathtest.MinVNI + 1, Local: vtep(i), Members: []netip.Addr{vtep(1 - i)}}
		o.Endpoints = []datapathtest.Endpoint{ends[i], {N: ends[1-i].N, VTEP: vtep(1 - i)}}
		n := startNode(t, h, o)
		n.apply(t, ends[i].Owner())
		nodes = append(nodes, n)
	}
	try := func(six bool) Frames {
		t.Helper()
		from, to := ends[0].IPv4(), ends[1].IPv4()
		if six {
			from, to = ends[0].IPv6(), ends[1].IPv6()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		f, err := nodes[0].TryFrames(ctx, ends[0].NS, from, to)
		must(t, err)
		return f
	}
	all := Frames{true, true, true, true, true}
	for _, six := range []bool{false, true} {
		if got := try(six); got != all {
			t.Errorf("IPv6 %v: %+v", six, got)
		}
	}
	for _, tt := range []struct {
		rules string
		want  Frames
	}{
		{spoilTCP, Frames{Echo: true, UDP: true, SummedTCP: true, SummedUDP: true}},
		{spoilUDP, Frames{Echo: true, TCP: true, SummedTCP: true, SummedUDP: true}},
		{spoilTCP + "\n" + spoilUDP, Frames{Echo: true, SummedTCP: true, SummedUDP: true}},
		{spoilAll, Frames{}},
	} {
		file := filepath.Join(t.TempDir(), "rules")
		must(t, os.WriteFile(file, []byte("table ip spoil {\nchain in { type filter hook prerouting priority -500;\n"+tt.rules+"\n}\n}\n"), 0o600))
		run(t, hostPath(hosts[1]), "nft", "-f", file)
		if got := try(false); got != tt.want {
			t.Errorf("with %s: %+v", tt.rules, got)
		}
		run(t, hostPath(hosts[1]), "nft", "delete", "table", "ip", "spoil")
	}
	if got := try(false); got != all {
		t.Errorf("afterwards: %+v", got)
	}
}
