package agent

import (
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/plan"
)

// attachWith attaches a workload to blue with published ports.
func attachWith(t *testing.T, a *Agent, name string, ports ...overlay.Publish) ([]overlay.Publish, error) {
	t.Helper()
	r, err := a.Attach(t.Context(), overlay.AttachRequest{Name: name, Network: "blue", Publish: ports})
	return r.Endpoint.Publish, err
}

func tcpPort(addr string, port, target uint16) overlay.Publish {
	p := overlay.Publish{Port: port, Target: target, Proto: "tcp"}
	if addr != "" {
		p.Addr = netip.MustParseAddr(addr)
	}
	return p
}

// hostPorts are those that the host is to lead somewhere, and how many of them to new flows.
func (w *world) hostPorts() (all map[uint16]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all = map[uint16]bool{}
	for _, e := range w.config.Entrances {
		if e.Owner == plan.PublishOwner {
			for _, p := range e.Workloads.Ports {
				all[p.Port] = all[p.Port] || !p.To[0].Leaves
			}
		}
	}
	return all
}

func TestWhoHasAPortKeepsIt(t *testing.T) {
	w := newWorld()
	w.size = 8
	a, _ := start(t, w)
	if _, err := attachWith(t, a, "web", tcpPort("", 8080, 80), tcpPort("192.0.2.1", 8443, 443)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		port overlay.Publish
		says string // "" where it is free
	}{
		{tcpPort("", 8080, 80), "port 8080/tcp of this host is taken by the workload web; choose another one, or end that"},
		{tcpPort("192.0.2.2", 8080, 80), "port 8080/tcp of this host is taken by the workload web; choose another one, or end that"},
		{tcpPort("0.0.0.0", 8443, 80), "port 8443/tcp of this host is taken by the workload web; choose another one, or end that"},
		{tcpPort("::", 8443, 80), ""},
		{tcpPort("192.0.2.2", 8443, 80), ""},
		{overlay.Publish{Port: 8080, Target: 80, Proto: "udp"}, ""},
	} {
		_, err := attachWith(t, a, "db", tt.port)
		if got := ""; err != nil {
			if got = err.Error(); got != tt.says {
				t.Errorf("%s: %s", tt.port, got)
			}
			continue
		}
		if tt.says != "" {
			t.Errorf("%s was given twice", tt.port)
		}
		if err := detach(t.Context(), a, "db", ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := attachWith(t, a, "web", tcpPort("", 8080, 80), tcpPort("192.0.2.1", 8443, 443)); err != nil {
		t.Errorf("the same request again: %v", err)
	}
	if _, err := attachWith(t, a, "web", tcpPort("", 8081, 80)); overlay.KindOf(err) != overlay.Exists {
		t.Errorf("other ports for what is attached: %v", err)
	}
	if err := detach(t.Context(), a, "web", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := attachWith(t, a, "db", tcpPort("", 8080, 80)); err != nil {
		t.Errorf("after the detach: %v", err)
	}
}

func TestDynamicPorts(t *testing.T) {
	w := newWorld()
	w.bound = []datapath.Port{{Proto: "tcp", Port: 30000}, {Proto: "udp", Port: 30001}}
	a, stop := start(t, w)
	got, err := attachWith(t, a, "web", tcpPort("", 0, 80), tcpPort("", 30002, 81), tcpPort("", 0, 82))
	if err != nil || len(got) != 3 || got[0].Port != 30001 || got[2].Port != 30003 {
		t.Fatalf("got %v, %v", got, err)
	}
	if again, err := attachWith(t, a, "web", tcpPort("", 0, 80), tcpPort("", 30002, 81), tcpPort("", 0, 82)); err != nil || again[0] != got[0] {
		t.Errorf("asked again: %v, %v", again, err)
	}
	stop()
	a, _ = start(t, w)
	rows, err := a.Endpoints(t.Context())
	if err != nil || len(rows) != 1 || len(rows[0].Publish) != 3 || rows[0].Publish[2] != got[2] {
		t.Errorf("after a restart: %v, %v", rows, err)
	}
	if p := w.hostPorts(); !p[30001] || !p[30002] || !p[30003] || len(p) != 3 {
		t.Errorf("the host is to open %v", p)
	}
}

func TestNothingIsPublishedFromAnInternalNetwork(t *testing.T) {
	w := newWorld()
	w.def.Internal = true
	a, _ := start(t, w)
	_, err := attachWith(t, a, "web", tcpPort("", 8080, 80))
	if overlay.KindOf(err) != overlay.Invalid {
		t.Errorf("got %v", err)
	}
}

// Nothing new comes to a workload that is being detached, though it is alone; what stands has a grace.
func TestPublishedPortsClosedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		busy := true
		w.connected = func(string) (bool, error) { return busy, nil }
		a, stop := start(t, w)
		defer stop()
		if _, err := attachWith(t, a, "web", tcpPort("", 8080, 80)); err != nil {
			t.Fatal(err)
		}
		if p := w.hostPorts(); !p[8080] {
			t.Fatalf("the host is to open %v", p)
		}
		done := make(chan error, 1)
		go func() { done <- detach(t.Context(), a, "web", "") }()
		time.Sleep(5 * time.Second)
		if p := w.hostPorts(); p[8080] || len(p) != 1 {
			t.Errorf("while it leaves: %v", p)
		}
		w.set(func() { busy = false })
		if err := <-done; err != nil {
			t.Error(err)
		}
		if p := w.hostPorts(); len(p) != 0 {
			t.Errorf("afterwards: %v", p)
		}
	})
}

// ingressOf puts a service into the facts that is published on every node, or takes it out.
func (w *world) ingressOf(there bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := *w.facts
	f.Revision += 10
	f.Networks, f.Services = map[overlay.NetworkID]overlay.Network{blue: w.def}, nil
	if there {
		f.Services = map[overlay.ServiceID]overlay.Service{"s1": {ID: "s1", Network: blue, ServiceSpec: overlay.ServiceSpec{
			Name: "shop", Publish: []overlay.Publish{{Port: 80, Target: 80, Proto: "tcp", Mode: overlay.PublishIngress}},
		}}}
	}
	if w.lease.Network == blue {
		s, _ := overlay.Sign(overlay.DomainLease, ring, w.lease)
		f.Leases = map[overlay.NetworkID]map[overlay.NodeID]overlay.Signed{blue: {self: s}}
	}
	w.facts = &f
	w.factsCh <- struct{}{}
}

// A node enters the network of a service that is published on every node, once a manager answers, and
// has it in its kernel while the service is published.
func TestEntersForIngress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.down = true
		_, stop := start(t, w)
		defer stop()
		links := func() int { w.mu.Lock(); defer w.mu.Unlock(); return len(w.config.Links) }
		w.ingressOf(true)
		time.Sleep(time.Minute)
		if n := links(); n != 0 {
			t.Fatalf("%d links without a lease", n)
		}
		w.set(func() { w.down = false })
		time.Sleep(enterMost + time.Second)
		if links() == 0 || len(w.lease.Grants) != 0 {
			t.Fatalf("%d links with lease %+v", links(), w.lease)
		}
		grants := w.grants
		w.ingressOf(true)
		time.Sleep(time.Minute)
		if links() == 0 || w.grants != grants {
			t.Errorf("%d links; managers were asked %d times more", links(), w.grants-grants)
		}
		w.ingressOf(false)
		time.Sleep(time.Second)
		if n := links(); n != 0 {
			t.Errorf("%d links without the service", n)
		}
	})
}

// Others who never say what they host hold up published ports for a while alone.
func TestPublishedPortsSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.syncErr = errors.New("nobody answers")
		_, stop := start(t, w)
		defer stop()
		w.ingressOf(true)
		partial := func() (any bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, e := range w.config.Entrances {
				any = any || e.Partial
			}
			return any || len(w.config.Entrances) == 0
		}
		time.Sleep(settleTime / 2)
		if !partial() {
			t.Error("ports follow what is known before others had the time to say more")
		}
		time.Sleep(settleTime)
		if partial() {
			t.Error("ports wait for others for ever")
		}
	})
}
