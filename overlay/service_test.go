package overlay

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestServiceSpecs(t *testing.T) {
	good := ServiceSpec{Name: "web", Mode: ModeVIP, Ports: []ServicePort{{"http", "tcp", 80, 8080}, {"", "udp", 80, 80}}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*ServiceSpec){
		`service name "-x"`:       func(s *ServiceSpec) { s.Name = "-x" },
		"use --endpoint-mode vip": func(s *ServiceSpec) { s.Mode = "ipvs" },
		"dnsrr and --vip":         func(s *ServiceSpec) { s.Mode, s.VIPs = ModeDNSRR, []netip.Addr{addr("10.1.0.9")} },
		"two addresses of one family": func(s *ServiceSpec) {
			s.VIPs = []netip.Addr{addr("10.1.0.9"), addr("10.1.0.8")}
		},
		"are one; drop one":        func(s *ServiceSpec) { s.Ports = append(s.Ports, ServicePort{"", "tcp", 80, 1}) },
		"is not valid; write":      func(s *ServiceSpec) { s.Ports = append(s.Ports, ServicePort{"", "sctp", 80, 1}) },
		"65 ports are too many":    func(s *ServiceSpec) { s.Ports = make([]ServicePort, 65) },
		`health check "icmp"`:      func(s *ServiceSpec) { s.Health = Health{Kind: "icmp"} },
		"can't be a command":       func(s *ServiceSpec) { s.Health = Health{Kind: HealthCmd, Command: "true"} },
		"no tcp port to probe":     func(s *ServiceSpec) { s.Ports, s.Health = nil, Health{Kind: HealthTCP} },
		"health path":              func(s *ServiceSpec) { s.Health = Health{Kind: HealthHTTP, Path: "x"} },
		"out of range; use 100ms":  func(s *ServiceSpec) { s.Health = Health{Kind: HealthTCP, Interval: time.Millisecond} },
		"thresholds 1 and 1000":    func(s *ServiceSpec) { s.Health = Health{Kind: HealthTCP, Fall: 1000} },
		"publish mode":             func(s *ServiceSpec) { s.Publish = []Publish{{Port: 80, Target: 80, Proto: "tcp"}} },
		"ingress is on every node": func(s *ServiceSpec) { s.Publish = []Publish{{addr("192.0.2.1"), 80, 80, "tcp", PublishIngress}} },
		"published twice": func(s *ServiceSpec) {
			s.Publish = []Publish{{addr("192.0.2.1"), 80, 80, "tcp", PublishLocal}, {Port: 80, Target: 81, Proto: "tcp", Mode: PublishIngress}}
		},
		"label": func(s *ServiceSpec) { s.Selector = map[string]string{"": "x"} },
	} {
		s := good
		change(&s)
		if err := s.Validate(); err == nil || KindOf(err) != Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestPortsThatClash(t *testing.T) {
	one, two := addr("192.0.2.1"), addr("192.0.2.2")
	for _, c := range []struct {
		a, b Publish
		want bool
	}{
		{Publish{Port: 80, Proto: "tcp"}, Publish{Port: 80, Proto: "tcp"}, true},
		{Publish{Port: 80, Proto: "tcp"}, Publish{Port: 80, Proto: "udp"}, false},
		{Publish{Port: 80, Proto: "tcp"}, Publish{Port: 81, Proto: "tcp"}, false},
		{Publish{Addr: one, Port: 80, Proto: "tcp"}, Publish{Addr: two, Port: 80, Proto: "tcp"}, false},
		{Publish{Addr: one, Port: 80, Proto: "tcp"}, Publish{Port: 80, Proto: "tcp"}, true},
		{Publish{Proto: "tcp"}, Publish{Proto: "tcp"}, false}, // each gets one of its own
	} {
		if got := c.a.Clashes(c.b); got != c.want || c.b.Clashes(c.a) != c.want {
			t.Errorf("%s and %s clash: %v", c.a, c.b, got)
		}
	}
}

func TestServiceUpdates(t *testing.T) {
	web := ServiceSpec{
		Name: "web", Mode: ModeVIP, VIPs: []netip.Addr{addr("10.1.0.254")}, Ports: []ServicePort{{"http", "tcp", 80, 8080}, {"", "udp", 53, 53}},
		Selector: map[string]string{"tier": "front"}, Health: Health{Kind: HealthTCP}, Labels: map[string]string{"team": "loom", "a": "b"},
		Publish: []Publish{{Port: 80, Target: 8080, Proto: "tcp", Mode: PublishIngress}},
	}
	if err := web.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		u    ServiceUpdate
		want func(*ServiceSpec)
		err  string
	}{
		"nothing":           {err: "changes nothing"},
		"a port is moved":   {u: ServiceUpdate{DropPorts: []ProtoPort{{"tcp", 80}}, Ports: []ServicePort{{"http", "tcp", 80, 9}}}, want: func(s *ServiceSpec) { s.Ports = []ServicePort{s.Ports[1], {"http", "tcp", 80, 9}} }},
		"a port twice":      {u: ServiceUpdate{Ports: []ServicePort{{"", "tcp", 80, 9}}}, err: "are one"},
		"an odd port":       {u: ServiceUpdate{Ports: []ServicePort{{"", "sctp", 80, 9}}}, err: "is not valid"},
		"no such port":      {u: ServiceUpdate{DropPorts: []ProtoPort{{"udp", 80}}}, err: "no port 80/udp"},
		"no port to probe":  {u: ServiceUpdate{DropPorts: []ProtoPort{{"tcp", 80}}}, err: "no tcp port to probe"},
		"a published port":  {u: ServiceUpdate{DropPublish: []ProtoPort{{"tcp", 80}}, Publish: []Publish{{Port: 81, Target: 1, Proto: "tcp", Mode: PublishLocal}}}, want: func(s *ServiceSpec) { s.Publish = []Publish{{Port: 81, Target: 1, Proto: "tcp", Mode: PublishLocal}} }},
		"no such publish":   {u: ServiceUpdate{DropPublish: []ProtoPort{{"tcp", 81}}}, err: "does not publish port 81/tcp"},
		"published twice":   {u: ServiceUpdate{Publish: []Publish{{Port: 80, Target: 1, Proto: "tcp", Mode: PublishLocal}}}, err: "published twice"},
		"another selector":  {u: ServiceUpdate{Selector: map[string]string{"x": "y"}}, want: func(s *ServiceSpec) { s.Selector = map[string]string{"x": "y"} }},
		"no selector":       {u: ServiceUpdate{Selector: map[string]string{}}, want: func(s *ServiceSpec) { s.Selector = nil }},
		"no probes":         {u: ServiceUpdate{Health: &Health{}}, want: func(s *ServiceSpec) { s.Health = Health{} }},
		"odd probes":        {u: ServiceUpdate{Health: &Health{Kind: "icmp"}}, err: "unknown"},
		"a command":         {u: ServiceUpdate{Health: &Health{Kind: HealthCmd, Command: "true"}}, err: "can't be a command"},
		"labels":            {u: ServiceUpdate{DropLabels: []string{"a", "none"}, Labels: map[string]string{"team": "weft"}}, want: func(s *ServiceSpec) { s.Labels = map[string]string{"team": "weft"} }},
		"the last label":    {u: ServiceUpdate{DropLabels: []string{"a", "team"}}, want: func(s *ServiceSpec) { s.Labels = nil }},
		"a malformed label": {u: ServiceUpdate{Labels: map[string]string{"": "x"}}, err: "label"},
	} {
		before, _ := json.Marshal(web)
		sent, _ := json.Marshal(tc.u)
		var u ServiceUpdate
		if err := json.Unmarshal(sent, &u); err != nil {
			t.Fatal(err)
		}
		err := u.Validate()
		var got ServiceSpec
		if err == nil {
			got, err = u.Apply(web)
		}
		if after, _ := json.Marshal(web); !bytes.Equal(before, after) {
			t.Errorf("%s: the old spec is %s", name, after)
		}
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %v, want %q", name, err, tc.err)
			}
			continue
		}
		want := web
		tc.want(&want)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v %v, want %+v", name, got, err, want)
		}
	}
}

func TestFindService(t *testing.T) {
	id := func(c string) ServiceID { return ServiceID(strings.Repeat(c, 32)) }
	all := []ServiceRow{
		{ID: id("a"), Name: "web", Network: "blue", NetworkID: blueID},
		{ID: id("b"), Name: "web", Network: "red"},
		{ID: id("c"), Name: "db", Network: "red"},
		{ID: id("c")[:31] + "d", Name: "queue", Network: "red"},
	}
	for ref, want := range map[string]string{
		"db": "cc", "red/web": "bb", "blue/web": "aa", string(blueID) + "/web": "aa", "b": "bb", string(id("c")): "cc",
		"web": `2 networks have a service "web"; write NETWORK/NAME, which is one of blue/web, red/web`,
		"cc":  "write more of it", "x": `there is no service "x"`, "blue/db": `no service "db" in network "blue"`, "": "there is no service",
	} {
		got, err := FindService(ref, all, ServiceRow.ServiceName)
		if text := string(got.ID) + " " + fmt.Sprint(err); !strings.Contains(text, want) {
			t.Errorf("%q: %s, want %q", ref, text, want)
		}
	}
}
