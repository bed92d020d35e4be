package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

func (c *cli) doctorCmd() *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use: "doctor", Short: "Look for what is wrong on this node, and say what mends it; needs no manager", Args: noArgs,
		Long: "Compare the kernel with what heddle wants of it, try the ports, packet sizes and checksums between\n" +
			"this node and its peers, and look at everything on this host that may stand in the way: firewalls,\n" +
			"settings, limits, programs that manage links. Nothing is changed. Peers get echo requests, and some of\n" +
			"their workloads a few packets to port 9 from a workload here. Where no daemon answers, the host alone\n" +
			"is looked at. The exit code is 1 when there is a problem, 0 also with warnings.",
	}
	parsed(cmd.Flags(), &f, "format", "table|json|TEMPLATE", "print a table, JSON, or by a Go template", parseFormat)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (overlay.Diagnosis, error) { return cl.Doctor(ctx) })
		if errors.Is(err, local.ErrNoDaemon) {
			d, err = examineHost(err.Error())
		}
		switch {
		case err != nil:
			return err
		case f.json:
			err = printJSON(c.out, d)
		case f.tmpl != nil:
			err = printRows(cmd, f, []overlay.Diagnosis{d})
		default:
			err = c.printDiagnosis(d)
		}
		if err == nil && d.Count(overlay.Problem) > 0 {
			return &exitError{exitFailed, fmt.Errorf("problems were found: %d; what mends each stands below it", d.Count(overlay.Problem))}
		}
		return err
	}
	return cmd
}

// mostDrift is how many rows of drift a table has: a lost namespace or a flushed table may be
// thousands.
const mostDrift = 40

func (c *cli) printDiagnosis(d overlay.Diagnosis) error {
	var counts []string
	for _, v := range []overlay.Verdict{overlay.Problem, overlay.Warning, overlay.Good} {
		if n := d.Count(v); n > 0 {
			counts = append(counts, fmt.Sprintf("%s: %d", v, n))
		}
	}
	c.printf("%s, heddle %s: %s\n", d.Name, d.Version, strings.Join(counts, ", "))
	if len(d.Repaired) > 0 {
		var kinds []string
		for _, k := range slices.Sorted(maps.Keys(d.Repaired)) {
			kinds = append(kinds, fmt.Sprintf("%s %d", k, d.Repaired[k]))
		}
		c.printf("changed by others and repaired since the daemon's start: %s\n", strings.Join(kinds, ", "))
	}
	err := section(c, "not as wanted in the kernel", d.Drift[:min(len(d.Drift), mostDrift)],
		text("WHAT", func(r overlay.DriftRow) string { return r.What }),
		text("WHERE", func(r overlay.DriftRow) string { return r.Where }),
		text("FOUND", func(r overlay.DriftRow) string { return r.Found }),
		text("HEDDLE WOULD", func(r overlay.DriftRow) string { return r.Do }))
	if more := len(d.Drift) - mostDrift; more > 0 {
		c.printf("and %d more; --format json has them all\n", more)
	}
	c.printf("\n")
	width := 0
	for _, f := range d.Findings {
		width = max(width, len(f.Name))
	}
	for _, f := range d.Findings {
		c.printf("%-7s  %-*s  %s\n", f.Verdict, width, f.Name, f.Found)
		if f.Mend != "" {
			c.printf("%-7s  %-*s  → %s\n", "", width, "", f.Mend)
		}
	}
	return err
}
