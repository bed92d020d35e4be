package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/cluster/api"
	"github.com/heddle-net/heddle/overlay"
)

// behind puts an endpoint of a node behind a service, as this manager's gossip sees it.
func (v *view) behind(network overlay.NetworkID, service string, node overlay.NodeID, n byte, health string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.claims[network] = append(v.claims[network], &overlay.Claim{Record: overlay.Record{
		Network: network, Endpoint: overlay.EndpointID(fmt.Sprintf("%032x", n)), Owner: node, Workload: fmt.Sprint("w", n),
		IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 64, 0, n})}, Service: service, Health: health, Since: 1e9,
	}})
}

func web(network string) overlay.ServiceRequest {
	return overlay.ServiceRequest{Network: network, ServiceSpec: overlay.ServiceSpec{
		Name: "web", Mode: overlay.ModeVIP, Ports: []overlay.ServicePort{{Proto: "tcp", Port: 80, Target: 8080}},
		Publish: []overlay.Publish{{Target: 8080, Proto: "tcp", Mode: overlay.PublishIngress}},
	}}
}

func TestServices(t *testing.T) {
	a, tok := found(t)
	b := join(t, a, "n2", tok.Token)
	c := join(t, a, "n3", tok.Token)
	var blue, red overlay.NetworkRow
	if err := errors.Join(b.do("POST", "/v1/networks", spec("blue"), &blue), b.do("POST", "/v1/networks", spec("red"), &red)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.Grant(ctx(t), api.GrantRequest{Network: "blue"}); err != nil {
		t.Fatal(err)
	}
	a.view.behind(blue.ID, "web", b.id.Node, 2, "healthy")
	a.view.behind(blue.ID, "web", c.id.Node, 3, "unhealthy: connection refused")
	a.view.behind(blue.ID, "other", b.id.Node, 4, "")
	a.view.behind(blue.ID, "web", overlay.NodeID(strings.Repeat("f", 32)), 5, "") // of a node that was removed

	var made overlay.ServiceRow
	if err := b.do("POST", "/v1/services", web("blue"), &made); err != nil {
		t.Fatal(err)
	}
	text := func(r overlay.ServiceRow) (out []string) {
		for _, e := range r.Backends {
			out = append(out, fmt.Sprint(e.Node, "/", e.Workload, " ", e.IPs, " ", e.Used, " ", e.Out, " ", e.Detail, " ", e.Since.Unix()))
		}
		return out
	}
	want := []string{"n2/w2 [10.64.0.2] true   1000000000", "n3/w3 [10.64.0.3] false unhealthy connection refused 1000000000"}
	if len(made.VIPs) != 2 || made.Network != "blue" || made.NetworkID != blue.ID || made.Publish[0].Port != overlay.FirstDynamicPort || made.Created == 0 || !slices.Equal(text(made), want) {
		t.Errorf("%+v", made)
	}
	eventually(t, "service at a participant", func() bool { return b.facts().Services[made.ID].VIPs != nil })
	eventually(t, "published service elsewhere, with its network", func() bool {
		return c.facts().Services[made.ID].Name == "web" && c.facts().Networks[blue.ID].Name == "blue" && len(c.facts().Leases[blue.ID]) == 0
	})

	// Another network has a service of that name.
	second := web("red")
	second.Publish = nil
	if err := b.do("POST", "/v1/services", second, nil); err != nil {
		t.Fatal(err)
	}
	get := func(h *host, ref string) (r overlay.ServiceRow, err error) {
		return r, h.do("GET", "/v1/services/"+url.PathEscape(ref), nil, &r)
	}
	if _, err := get(b, "web"); overlay.KindOf(err) != overlay.Invalid || !strings.Contains(err.Error(), "write NETWORK/NAME, which is one of blue/web, red/web") {
		t.Errorf("a name of two networks: %v", err)
	}
	for _, ref := range []string{"blue/web", string(made.ID), made.ID.Short(), string(blue.ID) + "/web"} {
		if r, err := get(b, ref); err != nil || r.ID != made.ID {
			t.Errorf("%s: %+v %v", ref, r, err)
		}
	}
	var all []overlay.ServiceRow
	if err := c.do("GET", "/v1/services?stale=1", nil, &all); err != nil || len(all) != 2 || all[0].Network != "blue" || len(all[0].Backends) != 2 || all[1].Backends == nil {
		t.Errorf("%+v %v", all, err)
	}
	a.view.mu.Lock()
	a.view.down[b.id.Node] = true
	a.view.mu.Unlock()
	if r, err := get(c, "blue/web"); err != nil || r.Backends[0].Out != "suspended" || !r.Backends[0].Used || r.Backends[0].Since.Unix() != 978307200 {
		t.Errorf("with its only good node taken for dead: %+v %v", r, err)
	}
	var updated overlay.ServiceRow
	u := overlay.ServiceUpdate{Labels: map[string]string{"a": "b"}, DropPublish: []overlay.ProtoPort{{Proto: "tcp", Port: overlay.FirstDynamicPort}}}
	if err := b.do("PATCH", "/v1/services/blue%2Fweb", u, &updated); err != nil || updated.Labels["a"] != "b" || updated.Updated <= made.Updated || len(updated.Publish) != 0 {
		t.Errorf("%+v %v", updated, err)
	}
	eventually(t, "end of it where nothing leads to it", func() bool { return len(c.facts().Services)+len(c.facts().Networks) == 0 })
	if err := b.do("DELETE", "/v1/networks/red", nil, nil); overlay.KindOf(err) != overlay.InUse || !strings.Contains(err.Error(), "has the services web") {
		t.Errorf("a network with a service was removed: %v", err)
	}
	if err := b.do("DELETE", "/v1/services/blue%2Fweb", nil, nil); err != nil {
		t.Error(err)
	}
	eventually(t, "end of the service", func() bool { return len(b.facts().Services) == 0 })
	if _, err := get(b, "blue/web"); overlay.KindOf(err) != overlay.NotFound || !strings.Contains(err.Error(), "heddle service ls") {
		t.Errorf("%v", err)
	}
	if err := b.do("POST", "/v1/services", web("none"), nil); overlay.KindOf(err) != overlay.NotFound || !strings.Contains(err.Error(), `no network "none"`) {
		t.Errorf("%v", err)
	}
	sealed := overlay.Publish{Port: 5379, Target: 80, Proto: "udp", Mode: overlay.PublishIngress}
	for what, do := range map[string]func() error{
		"create": func() error {
			r := web("red")
			r.Name, r.Publish = "tunnel", []overlay.Publish{sealed}
			return b.do("POST", "/v1/services", r, nil)
		},
		"update": func() error {
			return b.do("PATCH", "/v1/services/web", overlay.ServiceUpdate{Publish: []overlay.Publish{sealed}}, nil)
		},
	} {
		if err := do(); overlay.KindOf(err) != overlay.Exists || !strings.Contains(err.Error(), "port 5379/udp is where WireGuard of node n") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := b.do("PATCH", "/v1/services/web", overlay.ServiceUpdate{}, nil); overlay.KindOf(err) != overlay.Invalid {
		t.Errorf("%v", err)
	}
}

// A request that comes again, since its answer was lost, is answered as the first time.
func TestServiceRequestsAreRepeatable(t *testing.T) {
	a, _ := found(t)
	if err := a.do("POST", "/v1/networks", spec("blue"), nil); err != nil {
		t.Fatal(err)
	}
	var ids []overlay.ServiceID
	for range 2 {
		r, err := a.manager.CreateService(api.WithRequest(ctx(t), "create"), web("blue"))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.ID)
		u := overlay.ServiceUpdate{Ports: []overlay.ServicePort{{Proto: "udp", Port: 53, Target: 53}}}
		if r, err = a.manager.UpdateService(api.WithRequest(ctx(t), "update"), "web", u); err != nil || len(r.Ports) != 2 {
			t.Fatalf("%+v %v", r, err)
		}
	}
	if ids[0] != ids[1] {
		t.Errorf("two services %v were made of one request", ids)
	}
	for range 2 {
		if err := a.manager.RemoveService(api.WithRequest(ctx(t), "remove"), "web"); err != nil {
			t.Error(err)
		}
	}
	if err := a.manager.RemoveService(api.WithRequest(ctx(t), "again"), "web"); overlay.KindOf(err) != overlay.NotFound {
		t.Errorf("by another request: %v", err)
	}
}
