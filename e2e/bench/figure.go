//go:build linux

package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// figure is one row: what was measured, and what the design wants of it.
type figure struct {
	Step   string  `json:"step"` // that measured it
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	N      int     `json:"n"` // samples
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	P99    float64 `json:"p99"`
	Max    float64 `json:"max"`
	Want   []want  `json:"want,omitempty"`
	// Swarm is Docker Swarm's figure. A star marks one of the design's table, which was
	// measured at another time in a lab of the same kind.
	Swarm string `json:"swarm,omitempty"`
	Note  string `json:"note,omitempty"` // how it was measured, where the name does not say it
}

// want is a bound of one of a row's statistics.
type want struct {
	Of    stat    `json:"of"`
	Bound float64 `json:"bound"`
	Least bool    `json:"least,omitempty"` // the bound is the least, not the most
}

type stat string

const (
	least  stat = "min"
	median stat = "median"
	p99    stat = "p99"
	most   stat = "max"
)

func atMost(of stat, bound float64) want  { return want{Of: of, Bound: bound} }
func atLeast(of stat, bound float64) want { return want{Of: of, Bound: bound, Least: true} }

func (w want) String() string {
	sign := "≤"
	if w.Least {
		sign = "≥"
	}
	return fmt.Sprintf("%s %s %g", w.Of, sign, w.Bound)
}

// measure fills the statistics in.
func (f *figure) measure(samples []float64) {
	s := slices.Sorted(slices.Values(samples))
	f.N = len(s)
	if f.N == 0 {
		return
	}
	f.Min, f.Median, f.P99, f.Max = s[0], (s[(f.N-1)/2]+s[f.N/2])/2, quantile(s, 0.99), s[f.N-1]
}

// quantile is the smallest sample that at least that share of all does not exceed. The
// samples are sorted, and there is one.
func quantile(sorted []float64, share float64) float64 {
	rank := int(math.Ceil(share * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

func (f figure) stat(of stat) float64 {
	switch of {
	case least:
		return f.Min
	case median:
		return f.Median
	case p99:
		return f.P99
	}
	return f.Max
}

// verdict is "met", "MISSED", or "" where nothing is wanted.
func (f figure) verdict() string {
	if len(f.Want) == 0 {
		return ""
	}
	for _, w := range f.Want {
		if got := f.stat(w.Of); f.N == 0 || w.Least && got < w.Bound || !w.Least && got > w.Bound {
			return "MISSED"
		}
	}
	return "met"
}

func (f figure) wanted() string {
	var out []string
	for _, w := range f.Want {
		out = append(out, w.String())
	}
	return strings.Join(out, ", ")
}
