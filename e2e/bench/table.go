//go:build linux

package main

import (
	"fmt"
	"strconv"
	"strings"
)

// starred explains the star of figure.Swarm.
const starred = "* Docker 20.10.24 with six hosts in namespaces on two cores, measured at another time; ms unless it says otherwise."

// table is the report for a terminal.
func (r report) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "heddle %s, Linux %s, %d cores (%s)\n\n", r.Version, r.Kernel, r.Cores, r.CPU)
	line := func(name, n, low, mid, p99, high, wanted, verdict, swarm string) {
		fmt.Fprintf(&b, "%-62s %6s %9s %9s %9s %9s   %-26s %-6s  %s\n", name, n, low, mid, p99, high, wanted, verdict, swarm)
	}
	line("", "n", "min", "median", "p99", "max", "wanted", "", "Swarm")
	for _, f := range r.Figures {
		line(f.Name+", "+f.Unit, strconv.Itoa(f.N), number(f.Min), number(f.Median), number(f.P99), number(f.Max), f.wanted(), f.verdict(), f.Swarm)
		if f.Note != "" {
			fmt.Fprintf(&b, "    %s\n", f.Note)
		}
	}
	fmt.Fprintf(&b, "\n%s\n", starred)
	return b.String()
}

// markdown is the report for a page.
func (r report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured at %s on Linux %s, %d cores (%s).\n\n", r.Version, r.Kernel, r.Cores, r.CPU)
	b.WriteString("| step | what | n | min | median | p99 | max | wanted | | Swarm |\n|---|---|--:|--:|--:|--:|--:|---|---|---|\n")
	for _, f := range r.Figures {
		name := f.Name + ", " + f.Unit
		if f.Note != "" {
			name += " (" + f.Note + ")"
		}
		verdict := f.verdict()
		if verdict == "MISSED" {
			verdict = "**missed**"
		}
		swarm := strings.ReplaceAll(f.Swarm, "*", `\*`)
		fmt.Fprintf(&b, "| `%s` | %s | %d | %s | %s | %s | %s | %s | %s | %s |\n", f.Step, name, f.N,
			number(f.Min), number(f.Median), number(f.P99), number(f.Max), f.wanted(), verdict, swarm)
	}
	fmt.Fprintf(&b, "\n%s\n", strings.ReplaceAll(starred, "*", `\*`))
	return b.String()
}

// number has three significant digits, or all before the point.
func number(v float64) string {
	switch a := max(v, -v); {
	case a >= 100 || v == 0:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
