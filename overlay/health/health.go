// Package health judges by probes whether an endpoint works.
//
// It is pure: whoever probes hands in what came of it. An endpoint has one health, whatever services
// it is in: it is healthy when it passes all checks, its own and those of all its services.
package health

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/heddle-net/heddle/overlay"
)

// Checks are the checks of an endpoint: its own and those of the services that it is in, each once
// and with nothing left open. Commands are its own alone: services come from other hosts.
func Checks(r *overlay.Record, own overlay.Health, services []overlay.Service) []overlay.Health {
	var all []overlay.Health
	add := func(h overlay.Health) {
		if h = h.DefaultHealth(); h.ValidateHealth() == nil && (h.Port != 0 || h.Kind == overlay.HealthCmd) && !slices.Contains(all, h) {
			all = append(all, h)
		}
	}
	for _, s := range services {
		if s.Network != r.Network || !s.Selects(r) {
			continue
		}
		if h := s.Health; h.Kind != overlay.HealthCmd {
			h.Port = s.ProbePort()
			add(h)
		}
		if own.Port == 0 && own.Kind != overlay.HealthCmd {
			own.Port = s.ProbePort()
		}
	}
	add(own)
	slices.SortFunc(all, func(a, b overlay.Health) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Command, b.Command))
	})
	return all
}

// Target is where an endpoint is probed: at its IPv4 address, where it has one.
func Target(ips []netip.Addr, h overlay.Health) netip.AddrPort {
	if len(ips) == 0 {
		return netip.AddrPort{}
	}
	i := max(0, slices.IndexFunc(ips, netip.Addr.Is4))
	return netip.AddrPortFrom(ips[i], h.Port)
}

// Course is what the probes of one check have come to. One caller at a time.
type Course struct {
	rise, fall int
	verdict    Verdict
	against    int // results in a row that speak against the state, or while starting failures
}

// Verdict is the state that a check leaves an endpoint in, and why.
type Verdict struct {
	State string // overlay.HealthStarting, HealthHealthy or HealthUnhealthy
	Cause string // of what keeps it from being healthy, as far as it is known
}

// Begin starts a course in a state: of a new endpoint starting, else as it was stated last.
func Begin(h overlay.Health, v Verdict) *Course {
	h = h.DefaultHealth()
	return &Course{rise: h.Rise, fall: h.Fall, verdict: v}
}

// Verdict is what holds now.
func (c *Course) Verdict() Verdict { return c.verdict }

// Take takes a probe's result in, "" for a success and else what failed, and says whether the
// verdict has changed. The first success makes a starting endpoint healthy. It stays starting while
// there is none, and the cause is told once it has failed as often as others may.
func (c *Course) Take(failed string) (changed bool) {
	before := c.verdict
	if agrees := (failed == "") == (c.verdict.State == overlay.HealthHealthy); agrees && c.verdict.State != overlay.HealthStarting {
		c.against = 0
		return false
	}
	c.against++
	switch c.verdict.State {
	case overlay.HealthStarting:
		if failed == "" {
			c.verdict = Verdict{State: overlay.HealthHealthy}
		} else if c.against >= c.fall && c.verdict.Cause == "" {
			c.verdict.Cause = failed
		}
	case overlay.HealthUnhealthy:
		if c.against >= c.rise {
			c.verdict = Verdict{State: overlay.HealthHealthy}
		}
	default:
		if c.against >= c.fall {
			c.verdict = Verdict{overlay.HealthUnhealthy, failed}
		}
	}
	if c.verdict.State != before.State {
		c.against = 0
	}
	return c.verdict != before
}

// Sum is the health that an endpoint is stated with by the verdicts of all its checks, in their
// order: the worst, with its cause. Without checks it is "".
func Sum(all []Verdict) string {
	for _, worst := range []string{overlay.HealthUnhealthy, overlay.HealthStarting, overlay.HealthHealthy} {
		of := slices.DeleteFunc(slices.Clone(all), func(v Verdict) bool { return v.State != worst })
		if len(of) == 0 {
			continue
		}
		if i := slices.IndexFunc(of, func(v Verdict) bool { return v.Cause != "" }); i >= 0 {
			return worst + ": " + Line(of[i].Cause)
		}
		return worst
	}
	return ""
}

// Stated is the verdict that a stated health stands for. What was not stated counts as healthy, and
// so does what is stated by none of these words.
func Stated(health string) Verdict {
	state, cause := overlay.SplitHealth(health)
	if state != overlay.HealthStarting && state != overlay.HealthUnhealthy {
		return Verdict{State: overlay.HealthHealthy}
	}
	return Verdict{state, cause}
}

// maxLine bounds a cause, in bytes.
const maxLine = 200

// Line makes one line of a cause: what does not print is a space, and of what is too long the
// beginning goes.
func Line(s string) string {
	s = strings.ToValidUTF8(s, " ")
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if len(s) <= maxLine {
		return s
	}
	s = s[len(s)-maxLine+len("…"):]
	for !utf8.RuneStart(s[0]) {
		s = s[1:]
	}
	return "…" + s
}
