package services

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/overlay"
)

func id(c string) string { return strings.Repeat(c, 32) }

func service(name string) overlay.Service {
	return overlay.Service{ID: overlay.ServiceID(id("5")), ServiceSpec: overlay.ServiceSpec{Name: name, Mode: overlay.ModeVIP}}
}

func record(n int, change func(*overlay.Record)) *overlay.Record {
	r := &overlay.Record{
		Endpoint: overlay.EndpointID(fmt.Sprintf("%032x", n)), Owner: overlay.NodeID(id("a")), Workload: fmt.Sprint("w", n),
		IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})}, Service: "web",
	}
	change(r)
	return r
}

// text is a judgement in a line: workloads, with what they are out for, and "!" for those used.
func text(s *Service) string {
	var out []string
	for _, b := range s.Backends {
		t := b.Workload + string(b.Out)
		if b.Used {
			t += "!"
		}
		out = append(out, t)
	}
	return strings.Join(out, " ")
}

func TestWhoStandsBehindAService(t *testing.T) {
	selecting := service("web")
	selecting.Selector = map[string]string{"tier": "front", "zone": "1"}
	b := overlay.NodeID(id("b"))
	health := func(h string) func(*overlay.Record) { return func(r *overlay.Record) { r.Health = h } }
	onB := func(r *overlay.Record) { r.Owner = b }
	for _, c := range []struct {
		name    string
		service overlay.Service
		records []*overlay.Record
		nodes   map[overlay.NodeID]overlay.Node
		want    string
	}{
		{"by name", service("web"), []*overlay.Record{record(2, func(*overlay.Record) {}), record(1, func(*overlay.Record) {}), record(3, func(r *overlay.Record) { r.Service = "shop" })}, nil, "w1! w2!"},
		{"by all labels", selecting, []*overlay.Record{
			record(1, func(r *overlay.Record) {
				r.Service, r.Labels = "", map[string]string{"tier": "front", "zone": "1", "x": "y"}
			}),
			record(2, func(r *overlay.Record) { r.Service, r.Labels = "", map[string]string{"tier": "front"} }),
			record(3, func(r *overlay.Record) { r.Labels = map[string]string{"tier": "front", "zone": "1"} }),
		}, nil, "w1! w3!"},
		{"without addresses, or gone", service("web"), []*overlay.Record{record(1, func(r *overlay.Record) { r.IPs = nil }), record(2, func(r *overlay.Record) { r.Deleted = true })}, nil, ""},
		{"by its health", service("web"), []*overlay.Record{
			record(1, health("healthy")), record(2, health("unhealthy: connection refused")), record(3, health("starting")), record(4, health("leaving")), record(5, health("")),
		}, nil, "w1! w2unhealthy w3starting w4leaving w5!"},
		{"all unhealthy", service("web"), []*overlay.Record{record(1, health("unhealthy"))}, nil, "w1unhealthy"},
		{"on a suspended node", service("web"), []*overlay.Record{record(1, func(*overlay.Record) {}), record(2, onB)}, nil, "w1! w2suspended"},
		{"on suspended nodes only", service("web"), []*overlay.Record{record(1, health("unhealthy")), record(2, onB), record(3, func(r *overlay.Record) { r.Owner, r.Health = b, "leaving" })}, nil, "w1unhealthy w2suspended! w3leaving"},
		{
			"on a draining node", service("web"),
			[]*overlay.Record{record(1, func(*overlay.Record) {}), record(2, func(r *overlay.Record) { r.Owner = overlay.NodeID(id("c")) })},
			map[overlay.NodeID]overlay.Node{overlay.NodeID(id("c")): {Availability: overlay.Drain}},
			"w1! w2draining",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := Input{Services: []overlay.Service{c.service}, Records: c.records, Nodes: c.nodes, Suspended: map[overlay.NodeID]time.Time{b: time.Unix(9, 0)}}
			s := Judge(in, nil)[0]
			if got := text(s); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			for _, b := range s.Backends {
				if b.Out == Suspended && b.Since != time.Unix(9, 0) {
					t.Errorf("%s is suspended since %s", b.Workload, b.Since)
				}
				if b.Out == Unhealthy && strings.Contains(in.Records[0].Health, ": ") && b.Detail == "" {
					t.Errorf("%s lost the cause", b.Workload)
				}
			}
		})
	}
}

// What has not changed is answered by the same pointer, and what has by another.
func TestOnlyWhatChangesIsNew(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 5).Draw(t, "services")
		in := Input{}
		for i := range n {
			s := service(fmt.Sprint("s", i))
			s.ID = overlay.ServiceID(fmt.Sprintf("%032x", i))
			in.Services = append(in.Services, s)
		}
		for i := range rapid.IntRange(0, 12).Draw(t, "records") {
			in.Records = append(in.Records, record(i, func(r *overlay.Record) { r.Service = fmt.Sprint("s", rapid.IntRange(0, n-1).Draw(t, "of")) }))
		}
		before := Judge(in, nil)
		slices.Reverse(in.Records) // their order means nothing
		changed := -1
		if len(in.Records) > 0 && rapid.Bool().Draw(t, "change") {
			r := *in.Records[0]
			r.Health, in.Records[0] = "unhealthy", &r
			_, _ = fmt.Sscanf(r.Service, "s%d", &changed)
		}
		for i, s := range Judge(in, before) {
			if same := s == before[i]; same == (i == changed) {
				t.Fatalf("service %d: the same %v, though %d changed", i, same, changed)
			}
		}
	})
}
