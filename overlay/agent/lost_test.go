package agent

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

func attachIn(t *testing.T, a *Agent, name, netns string) overlay.Endpoint {
	t.Helper()
	r, err := a.Attach(t.Context(), overlay.AttachRequest{Name: name, Network: "blue", Netns: netns})
	if err != nil {
		t.Fatal(err)
	}
	return r.Endpoint
}

func (w *world) row(t *testing.T, a *Agent, name string) overlay.Endpoint {
	t.Helper()
	rows, err := a.Endpoints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.Name == name {
			return r
		}
	}
	return overlay.Endpoint{}
}

// A workload whose namespace goes away, or is another one under the same path, is out at once; the
// same name gets the same addresses and MAC back within ten minutes, and others get them after.
func TestLostNamespaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.size = 8
		a, stop := start(t, w)
		defer stop()
		web, db := attachIn(t, a, "web", "/web"), attachIn(t, a, "db", "/db")
		attach(t, a, "made") // by heddle: it is made again instead
		time.Sleep(5 * time.Second)
		for range 3 {
			<-w.told
		}
		w.set(func() { w.inodes["/web"], w.inodes["/db"], w.inodes["/run/netns/made"] = gone, 8, gone })
		time.Sleep(2 * time.Second)
		for _, e := range []overlay.Endpoint{web, db} {
			r := record(t, <-w.told)
			if got := w.row(t, a, e.Name); !r.Deleted || got.State != overlay.EndpointLost || got.IPv4 != e.IPv4 {
				t.Errorf("%s: %+v, and a record %+v", e.Name, got, r)
			}
		}
		if s := w.row(t, a, "made").State; s != overlay.EndpointReady {
			t.Errorf("the namespace that heddle made is %s", s)
		}
		if n := len(w.wanted(web)) + len(w.wanted(db)); n != 0 {
			t.Errorf("%d links of theirs are still wanted", n)
		}
		if e := attach(t, a, "new"); e.IPv4 == web.IPv4 || e.IPv4 == db.IPv4 {
			t.Errorf("another workload got %s", e.IPv4)
		}
		w.set(func() { w.inodes["/web2"] = 9 })
		again := attachIn(t, a, "web", "/web2")
		if again.IPv4 != web.IPv4 || again.IPv6 != web.IPv6 || again.MAC != web.MAC || again.State != overlay.EndpointReady || again.Namespace != "/web2" {
			t.Errorf("attached again: %+v, before %+v", again, web)
		}
		time.Sleep(11 * time.Minute)
		if got := w.row(t, a, "db"); got.Name != "" {
			t.Errorf("after 11 minutes: %+v", got)
		}
		if e := attachIn(t, a, "db", "/db2"); e.IPv4 == db.IPv4 || e.ID == db.ID {
			t.Errorf("after 11 minutes db got %s again, which rests behind all others", e.IPv4)
		}
		stop()
		if len(w.saved.Endpoints) != 4 { // made, new, web, db
			t.Errorf("on the disk: %+v", w.saved.Endpoints)
		}
	})
}

func record(t *testing.T, s overlay.Signed) (r overlay.Record) {
	t.Helper()
	if err := s.Decode(overlay.DomainRecord, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// wanted are the names of an endpoint's links that the agent wants.
func (w *world) wanted(e overlay.Endpoint) (names []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.config.Links {
		if string(l.Owner) == string(e.ID) {
			names = append(names, l.Name)
		}
	}
	return names
}

// What is kept for a name goes to who needs it when nothing else is left: the longest lost first.
func TestLostAddressesWhenTight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.size, w.limit = 4, 4
		a, stop := start(t, w)
		defer stop()
		var first []overlay.Endpoint
		for i := range 4 {
			path := fmt.Sprint("/", i)
			first = append(first, attachIn(t, a, fmt.Sprint("w", i), path))
			if i < 2 {
				w.set(func() { w.inodes[path] = gone })
				time.Sleep(3 * time.Second)
			}
		}
		if e := attach(t, a, "next"); e.IPv4 != first[0].IPv4 {
			t.Errorf("next got %s, want what was lost first, %s", e.IPv4, first[0].IPv4)
		}
		r, err := a.Release(t.Context(), overlay.ReleaseRequest{Network: blue, Addrs: []netip.Addr{first[1].IPv4.Addr()}})
		if err != nil || r.Release == nil {
			t.Errorf("a manager asks for a lost workload's address: %+v, %v", r, err)
		}
		if _, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "more", Network: "blue"}); overlay.KindOf(err) != overlay.Exhausted {
			t.Errorf("all are in use: %v", err)
		}
	})
}

// After a reboot namespaces that others made are gone, whatever stands under their paths and
// numbers now.
func TestReboot(t *testing.T) {
	w := newWorld()
	w.size = 8
	a, stop := start(t, w)
	web, made := attachIn(t, a, "web", "/web"), attach(t, a, "made")
	host, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "me", Network: "blue", Host: true})
	if err != nil {
		t.Fatal(err)
	}
	stop()
	w.boot = "b2"
	a, stop = start(t, w)
	if s := w.row(t, a, "web").State; s != overlay.EndpointLost {
		t.Errorf("web is %s", s)
	}
	for _, e := range []overlay.Endpoint{made, host.Endpoint} {
		if got := w.row(t, a, e.Name); got.State != overlay.EndpointReady || got.IPv4 != e.IPv4 || len(w.wanted(e)) != 1 {
			t.Errorf("%s: %+v", e.Name, got)
		}
	}
	if e := attachIn(t, a, "web", "/web"); e.IPv4 != web.IPv4 {
		t.Errorf("web got %s, had %s", e.IPv4, web.IPv4)
	}
	stop()
	a, _ = start(t, w)
	if e := w.row(t, a, "web"); e.State != overlay.EndpointReady || e.IPv4 != web.IPv4 {
		t.Errorf("after a restart: %+v", e)
	}
}

// A further network finds a workload where it is; one name is in one place.
func TestAWorkloadIsInOnePlace(t *testing.T) {
	w := newWorld()
	w.size = 8
	a, _ := start(t, w)
	attachIn(t, a, "web", "/web")
	w.set(func() { w.inodes["/other"] = 9 })
	for _, tc := range []struct {
		r    overlay.AttachRequest
		kind overlay.Kind
	}{
		{overlay.AttachRequest{Name: "web", Network: "blue", Netns: "/other"}, overlay.Exists},
		{overlay.AttachRequest{Name: "web", Network: "blue", Host: true}, overlay.Exists},
		{overlay.AttachRequest{Name: "db", Network: "blue", Connect: true}, overlay.NotFound},
	} {
		if _, err := a.Attach(t.Context(), tc.r); overlay.KindOf(err) != tc.kind {
			t.Errorf("%+v: %v", tc.r, err)
		}
	}
	r, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "web", Network: "blue", Connect: true})
	if err != nil || r.Endpoint.Namespace != "/web" {
		t.Errorf("connected again: %+v, %v", r.Endpoint, err)
	}
}

func TestTheHostItself(t *testing.T) {
	w := newWorld()
	w.size = 8
	w.links = []string{"lo", "eth0", "heddle0"}
	a, _ := start(t, w)
	w.routes = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	_, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "me", Network: "blue", Host: true})
	if overlay.KindOf(err) != overlay.Exists {
		t.Fatalf("a host route overlaps: %v", err)
	}
	w.routes = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	r, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "me", Network: "blue", Host: true})
	if err != nil || r.Endpoint.Interface != "heddle1" || r.Endpoint.Namespace != "" {
		t.Fatalf("%+v, %v", r.Endpoint, err)
	}
	for _, route := range w.config.Routes {
		if route.NS.Path == "" && !route.Prefix.Addr().IsLoopback() {
			t.Errorf("the host gets a route %v", route)
		}
	}
}
