//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/e2e/cluster"
)

// report is figures with what they hold for.
type report struct {
	conditions
	Figures []figure `json:"figures"`
}

type conditions struct {
	Version string `json:"version"` // of the program that was measured: git describe
	Cores   int    `json:"cores"`
	CPU     string `json:"cpu"`
	Kernel  string `json:"kernel"`
}

func newReport(ctx context.Context) (report, error) {
	r := report{conditions: conditions{Cores: runtime.NumCPU(), CPU: cpu()}}
	bin, err := cluster.Bin()
	if err != nil {
		return r, err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "heddle"), "version", "--format", "{{.Version}}").Output()
	if err != nil {
		return r, fmt.Errorf("ask the program for its version: %w", err)
	}
	r.Version = strings.TrimSpace(string(out))
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return r, fmt.Errorf("ask for the kernel's release: %w", err)
	}
	r.Kernel = unix.ByteSliceToString(u.Release[:])
	return r, nil
}

// cpu is the processor's name, as far as the kernel has one.
func cpu() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// keep adds to the report what the file has from other steps, if that was measured under the
// same conditions, and writes the file anew.
func (r report) keep(file string) (report, error) {
	b, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return r, err
	default:
		var old report
		if err := json.Unmarshal(b, &old); err != nil {
			return r, fmt.Errorf("read the figures in %s: %w; remove the file", file, err)
		}
		r = r.beside(old)
	}
	if b, err = json.MarshalIndent(r, "", "  "); err != nil {
		return r, err
	}
	return r, os.WriteFile(file, append(b, '\n'), 0o644)
}

// beside is the report with the figures that an older one of the same conditions has from
// other steps, in the order of the steps.
func (r report) beside(old report) report {
	if old.conditions != r.conditions {
		return r
	}
	kept := slices.DeleteFunc(old.Figures, func(f figure) bool {
		return slices.ContainsFunc(r.Figures, func(g figure) bool { return f.Step == g.Step })
	})
	r.Figures = append(r.Figures, kept...)
	place := map[string]int{}
	for _, s := range stages() {
		for _, step := range s.steps {
			place[step.name] = len(place)
		}
	}
	slices.SortStableFunc(r.Figures, func(a, b figure) int { return place[a.Step] - place[b.Step] })
	return r
}

// The page's table stands between these lines.
const (
	pageBegin = "<!-- figures: written by heddle-bench -->\n"
	pageEnd   = "<!-- end of figures -->\n"
)

// write puts the report into a page, between its markers.
func (r report) write(page string) error {
	b, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(b, []byte(pageBegin))
	_, after, ok2 := bytes.Cut(rest, []byte(pageEnd))
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the figures: it needs the lines %q and %q", page, strings.TrimSpace(pageBegin), strings.TrimSpace(pageEnd))
	}
	return os.WriteFile(page, slices.Concat(before, []byte(pageBegin), []byte(r.markdown()), []byte(pageEnd), after), 0o644)
}
