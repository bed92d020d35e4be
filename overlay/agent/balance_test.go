package agent

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// leads is where a workload's balancer leads to, and whom it keeps.
func (w *world) leads(netns string) (used, kept []netip.AddrPort) {
	w.set(func() {
		for _, b := range w.config.Balancers {
			if b.NS.Path == netns && len(b.VIPs) > 0 {
				used, kept = b.VIPs[0].Ports[0].Backends, b.VIPs[0].Ports[0].Kept
			}
		}
	})
	return used, kept
}

// A workload asks by a VIP for what is in rotation; what leaves gets nothing new, keeps what it has,
// and is gone at the end. Nothing else makes another VIP.
func TestWhatLeavesIsKeptByItsVIP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &departing{world: newWorld(), t: t, busy: true}
		d.size = 8
		d.connected = func(string) (bool, error) { return d.busy, nil }
		d.serve(overlay.Health{})
		d.set(func() {
			for id, s := range d.facts.Services {
				s.VIPs = []netip.Addr{netip.MustParseAddr("10.20.0.200")}
				d.facts.Services[id] = s
			}
		})
		d.a, d.stop = start(t, d.world)
		defer func() { d.stop() }()
		e := attachTo(t, d.a, "web", "w1", "/w1")
		client := attach(t, d.a, "client")
		at := netip.AddrPortFrom(e.IPv4.Addr(), 8080)
		synctest.Wait()
		ns := ""
		d.set(func() {
			for _, b := range d.config.Balancers {
				if b.NS.Path != "/w1" {
					ns = b.NS.Path
				}
			}
		})
		if used, kept := d.leads(ns); len(used) != 2 || used[0] != at || len(kept) > 0 {
			t.Fatalf("%s leads to %v, keeps %v", client.Name, used, kept)
		}
		d.done = d.detach("")
		time.Sleep(time.Millisecond)
		if used, kept := d.leads(ns); len(used) > 0 || len(kept) != 2 || kept[0] != at {
			t.Errorf("while it leaves it leads to %v, keeps %v", used, kept)
		}
		time.Sleep(time.Second)
		d.set(func() { d.busy = false })
		if err := <-d.done; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if used, kept := d.leads(ns); len(used)+len(kept) > 0 {
			t.Errorf("when it is gone it leads to %v, keeps %v", used, kept)
		}
	})
}
