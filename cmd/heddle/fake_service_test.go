package main

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// serveServices answers for services in the managers' place.
func (d *fakeDaemon) serveServices(serve func(pattern string, answer func(*http.Request) (any, error))) {
	find := func(r *http.Request) (overlay.ServiceRow, error) {
		return overlay.FindService(r.PathValue("ref"), d.services, overlay.ServiceRow.ServiceName)
	}
	serve("GET /v1/services", func(*http.Request) (any, error) { return d.services, nil })
	serve("GET /v1/services/{ref}", func(r *http.Request) (any, error) { return find(r) })
	serve("DELETE /v1/services/{ref}", func(r *http.Request) (any, error) {
		_, err := find(r)
		return nil, err
	})
	serve("POST /v1/services", func(r *http.Request) (any, error) {
		var q overlay.ServiceRequest
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			return nil, err
		}
		if q.Name == "shop" {
			return nil, overlay.Errorf(overlay.Exists, "network blue has a service shop already; take another name")
		}
		row := overlay.ServiceRow{ID: id[overlay.ServiceID]("d9"), Name: q.Name, Network: q.Network, Mode: q.Mode, VIPs: q.VIPs, Publish: q.Publish}
		if q.Mode == overlay.ModeVIP && len(q.VIPs) == 0 {
			row.VIPs = []netip.Addr{netip.MustParseAddr("10.64.0.9"), netip.MustParseAddr("fd00:20::9")}
		}
		choosePorts(row.Publish)
		return row, q.Validate()
	})
	serve("PATCH /v1/services/{ref}", func(r *http.Request) (any, error) {
		row, err := find(r)
		var u overlay.ServiceUpdate
		if err == nil {
			err = json.NewDecoder(r.Body).Decode(&u)
		}
		if err != nil {
			return nil, err
		}
		spec, err := u.Apply(overlay.ServiceSpec{Name: row.Name, Mode: row.Mode, VIPs: row.VIPs, Ports: row.Ports, Publish: row.Publish, Selector: row.Selector, Health: row.Health, Labels: row.Labels})
		row.Publish = spec.Publish
		choosePorts(row.Publish)
		return row, err
	})
}

func choosePorts(all []overlay.Publish) {
	for i := range all {
		if all[i].Port == 0 {
			all[i].Port = overlay.FirstDynamicPort + uint16(i)
		}
	}
}

// sampleServices have one of each reason why a backend is out.
func sampleServices() []overlay.ServiceRow {
	ip := netip.MustParseAddr
	backend := func(n, workload, node string, used bool, out, detail string, since time.Duration) overlay.BackendRow {
		nodes := map[string]overlay.NodeID{"alpha": id[overlay.NodeID]("a1"), "beta": id[overlay.NodeID]("b2"), "gamma": id[overlay.NodeID]("b3")}
		b := overlay.BackendRow{Endpoint: id[overlay.EndpointID](n), Workload: workload, Node: node, NodeID: nodes[node], IPs: []netip.Addr{ip("10.64.0.1" + n[1:])}, Used: used, Out: out, Detail: detail}
		if since != 0 {
			b.Since = epoch.Add(-since)
		}
		return b
	}
	shop := []overlay.BackendRow{
		backend("e1", "web1", "alpha", true, "", "", 3*time.Hour),
		backend("e2", "web2", "alpha", false, "unhealthy", "GET /ready: 503 Service Unavailable", 90*time.Second),
		backend("e3", "web3", "beta", false, "leaving", "", 2*time.Second),
		backend("e4", "web4", "beta", false, "draining", "", 0),
		backend("e5", "web5", "gamma", false, "starting", "", 400*time.Millisecond),
		backend("e6", "web6", "gamma", true, "", "", 26*time.Hour),
	}
	shop[0].IPs = append(shop[0].IPs, ip("fd00:20::11"))
	shop[0].Connections = 12
	shop[5].Connections = 1
	return []overlay.ServiceRow{
		{
			ID: id[overlay.ServiceID]("d1"), Name: "shop", NetworkID: id[overlay.NetworkID]("b1"), Network: "blue", Mode: overlay.ModeVIP,
			VIPs: []netip.Addr{ip("10.64.0.5"), ip("fd00:20::5")}, Created: 17, Updated: 19, Backends: shop,
			Ports:    []overlay.ServicePort{{Name: "web", Proto: "tcp", Port: 80, Target: 8080}, {Proto: "udp", Port: 53, Target: 53}},
			Publish:  []overlay.Publish{{Port: 8080, Target: 80, Proto: "tcp", Mode: overlay.PublishIngress}, {Addr: ip("fd00::7"), Port: 53, Target: 53, Proto: "udp", Mode: overlay.PublishLocal}},
			Selector: map[string]string{"tier": "front"}, Labels: map[string]string{"team": "a"},
			Health: overlay.Health{Kind: overlay.HealthHTTP, Path: "/ready", Fall: 3},
		},
		{
			ID: id[overlay.ServiceID]("d2"), Name: "shop", NetworkID: id[overlay.NetworkID]("b4"), Network: "red", Mode: overlay.ModeDNSRR, Created: 18, Updated: 18,
			Backends: []overlay.BackendRow{backend("e7", "web", "beta", true, "suspended", "", 40*time.Second)},
		},
		{
			ID: id[overlay.ServiceID]("d3"), Name: "dns", NetworkID: id[overlay.NetworkID]("b4"), Network: "red", Mode: overlay.ModeVIP, VIPs: []netip.Addr{ip("fd00:30::5")},
			Ports: []overlay.ServicePort{{Proto: "udp", Port: 53, Target: 5353}}, Publish: []overlay.Publish{{Target: 53, Proto: "udp", Mode: overlay.PublishLocal}},
		},
	}
}
