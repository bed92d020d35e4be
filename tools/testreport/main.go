// Testreport runs `go test` with its arguments and prints its closing lines: a line for each
// package, the whole output of tests that failed, and why tests were skipped. It fails when
// go test does, when no test ran, and, with CI=true, when a test was skipped.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action     string
	Package    string
	ImportPath string // of build output
	Test       string
	Output     string
}

type report struct {
	out                     io.Writer
	output                  map[string][]string // by package and test, until its result is known
	passed, failed, skipped int
}

func main() {
	cmd := exec.Command("go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	r := report{out: os.Stdout, output: map[string][]string{}}
	readErr := r.read(pipe)
	err = cmd.Wait()
	fmt.Printf("%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	if why := r.verdict(os.Getenv("CI") == "true"); err != nil || readErr != nil || why != "" {
		fmt.Fprintln(os.Stderr, "FAIL", why)
		os.Exit(1)
	}
}

func (r *report) verdict(ci bool) string {
	switch {
	case r.failed > 0:
		return "tests failed"
	case r.passed == 0:
		return "no test ran"
	case ci && r.skipped > 0:
		return "tests were skipped, which CI does not allow"
	}
	return ""
}

func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var e event
		if json.Unmarshal(line, &e) != nil {
			fmt.Fprintf(r.out, "%s", line)
			continue
		}
		r.take(e)
	}
}

func (r *report) take(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		if e.Test != "" {
			r.output[key] = append(r.output[key], e.Output)
		} else if e.Output != "PASS\n" && !strings.Contains(e.Output, "[no test files]") {
			fmt.Fprint(r.out, e.Output)
		}
	case "pass", "fail", "skip":
		if e.Test == "" {
			return
		}
		switch e.Action {
		case "pass":
			r.passed++
		case "fail":
			r.failed++
		case "skip":
			r.skipped++
		}
		if e.Action != "pass" {
			for _, s := range r.output[key] {
				if !strings.HasPrefix(s, "=== ") {
					fmt.Fprint(r.out, s)
				}
			}
		}
		delete(r.output, key)
	}
}
