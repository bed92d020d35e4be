package health

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/overlay"
)

const (
	starting  = overlay.HealthStarting
	healthy   = overlay.HealthHealthy
	unhealthy = overlay.HealthUnhealthy
)

// Results are written as letters: + for a success, - for a failure. After each stands where it
// leads, if that is news.
func TestCourse(t *testing.T) {
	for _, c := range []struct {
		name       string
		rise, fall int
		from       string
		results    string
		want       string // the states that are told, each behind the number of results
	}{
		{"the first success", 3, 2, starting, "--+", "2 starting: refused, 3 healthy"},
		{"a success at once", 1, 2, starting, "+++", "1 healthy"},
		{"never a success", 1, 3, starting, "-------", "3 starting: refused"},
		{"one failure is none", 1, 2, healthy, "-+-+-+", ""},
		{"failures in a row", 1, 2, healthy, "+--", "3 unhealthy: refused"},
		{"the first failure counts", 1, 1, healthy, "-", "1 unhealthy: refused"},
		{"back by one success", 1, 2, healthy, "--+", "2 unhealthy: refused, 3 healthy"},
		{"back by three in a row", 3, 2, unhealthy, "++-+++", "6 healthy"},
		{"it stays away", 2, 2, unhealthy, "-----", ""},
		{"thresholds left open", 0, 0, healthy, "-+--", "4 unhealthy: refused"},
		{"failures before a state changed don't count after", 1, 2, unhealthy, "-+-+", "2 healthy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			course := Begin(overlay.Health{Kind: overlay.HealthTCP, Rise: c.rise, Fall: c.fall}, Verdict{State: c.from})
			var told []string
			for i, r := range c.results {
				if course.Take(map[rune]string{'-': "refused"}[r]) {
					told = append(told, fmt.Sprint(i+1, " ", Sum([]Verdict{course.Verdict()})))
				}
			}
			if got := strings.Join(told, ", "); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// Whatever comes, a state changes only by as many results in a row as it takes, and at once then.
func TestCourseGoesByRowsOfResults(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rise, fall := rapid.IntRange(1, 4).Draw(t, "rise"), rapid.IntRange(1, 4).Draw(t, "fall")
		c := Begin(overlay.Health{Kind: overlay.HealthTCP, Rise: rise, Fall: fall}, Verdict{State: healthy})
		state, row, last := healthy, 0, true
		for _, ok := range rapid.SliceOf(rapid.Bool()).Draw(t, "results") {
			if row++; ok != last {
				row = 1
			}
			last = ok
			if ok && state == unhealthy && row >= rise {
				state = healthy
			} else if !ok && state == healthy && row >= fall {
				state = unhealthy
			}
			before := c.Verdict()
			if c.Take(map[bool]string{false: "why"}[ok]) != (before != c.Verdict()) || c.Verdict().State != state {
				t.Fatalf("it is %v after %d of %v, want %s", c.Verdict(), row, ok, state)
			}
		}
	})
}

func TestSum(t *testing.T) {
	v := func(state, cause string) Verdict { return Verdict{state, cause} }
	for want, all := range map[string][]Verdict{
		"":                     nil,
		"healthy":              {v(healthy, ""), v(healthy, "")},
		"starting":             {v(healthy, ""), v(starting, "")},
		"starting: why":        {v(starting, ""), v(starting, "why"), v(healthy, "")},
		"unhealthy: this":      {v(starting, "not this"), v(unhealthy, "this"), v(unhealthy, "nor this"), v(healthy, "")},
		"unhealthy: two lines": {v(unhealthy, "two\n\tlines\x1b")},
	} {
		if got := Sum(all); got != want {
			t.Errorf("%v is %q, want %q", all, got, want)
		}
		if len(all) == 1 && Stated(want) != v(unhealthy, "two lines") {
			t.Errorf("%q stands for %v", want, Stated(want))
		}
	}
	for _, other := range []string{"", "healthy", "leaving", "of a later version: x"} {
		if Stated(other) != v(healthy, "") {
			t.Errorf("%q stands for %v", other, Stated(other))
		}
	}
}

func TestLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.StringN(100, 400, -1), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "cause")
		l := Line(s)
		if len(l) > maxLine || !utf8.ValidString(l) || strings.ContainsAny(l, "\n\r\t\x1b\x00") || Line(l) != l {
			t.Fatalf("%q of %d bytes", l, len(l))
		}
	})
}

func service(name string, port uint16, h overlay.Health) overlay.Service {
	return overlay.Service{Network: "blue", ServiceSpec: overlay.ServiceSpec{
		Name: name, Mode: overlay.ModeVIP, Ports: []overlay.ServicePort{{Proto: "tcp", Port: 80, Target: port}}, Health: h,
	}}
}

func TestChecks(t *testing.T) {
	tcp, http := overlay.Health{Kind: overlay.HealthTCP}, overlay.Health{Kind: overlay.HealthHTTP, Path: "/up", Interval: time.Second}
	command := overlay.Health{Kind: overlay.HealthCmd, Command: "true"}
	elsewhere := service("web", 80, tcp)
	elsewhere.Network = "red"
	selects := service("front", 8443, http)
	selects.Selector = map[string]string{"tier": "front"}
	hostile := service("web", 8080, command)
	portless := service("web", 8080, tcp)
	portless.Ports = nil
	for _, c := range []struct {
		name     string
		own      overlay.Health
		services []overlay.Service
		want     string
	}{
		{"none", overlay.Health{}, []overlay.Service{service("web", 8080, overlay.Health{}), service("db", 5432, tcp)}, ""},
		{"a service's", overlay.Health{}, []overlay.Service{service("web", 8080, tcp), elsewhere}, "tcp 8080"},
		{"its own, at the service's port", http, []overlay.Service{service("web", 8080, overlay.Health{})}, "http 8080 /up"},
		{"its own, at a port of its own", overlay.Health{Kind: overlay.HealthTCP, Port: 9}, []overlay.Service{service("web", 8080, overlay.Health{})}, "tcp 9"},
		{"its own, at no port", tcp, nil, ""},
		{"of two services", overlay.Health{}, []overlay.Service{service("web", 8080, tcp), selects}, "http 8443 /up, tcp 8080"},
		{"the same twice", tcp, []overlay.Service{service("web", 8080, tcp), service("web", 8080, tcp)}, "tcp 8080"},
		{"a command", command, []overlay.Service{service("web", 8080, tcp)}, "cmd 0 true, tcp 8080"},
		{"a command of another host's", overlay.Health{}, []overlay.Service{hostile}, ""},
		{"of a later version", overlay.Health{Kind: "grpc", Port: 7}, []overlay.Service{portless}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &overlay.Record{Network: "blue", Service: "web", Labels: map[string]string{"tier": "front"}}
			var got []string
			for _, h := range Checks(r, c.own, c.services) {
				if h != h.DefaultHealth() {
					t.Errorf("%+v leaves something open", h)
				}
				got = append(got, strings.TrimSpace(fmt.Sprint(h.Kind, " ", h.Port, " ", h.Path, h.Command)))
			}
			if got := strings.Join(got, ", "); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestTarget(t *testing.T) {
	four, six := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")
	h := overlay.Health{Port: 80}
	for want, ips := range map[string][]netip.Addr{"10.0.0.2:80": {six, four}, "[fd00::2]:80": {six}, "invalid AddrPort": nil} {
		if got := Target(ips, h).String(); got != want {
			t.Errorf("%v: %s, want %s", ips, got, want)
		}
	}
}
