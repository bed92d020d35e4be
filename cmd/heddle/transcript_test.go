package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// Each file of testdata is a transcript: after a "$ " line, which is run, stand the requests
// that it sent ("> "), its stdout ("| "), its stderr ("! ") and its exit code where it is not
// 0. A "# fake: …" line changes the daemon; "< " is what the next command reads.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(want))
			if got == string(want) {
				return
			}
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("%s differs (go test ./cmd/heddle -update writes it anew):\n%s", file, firstDifference(got, string(want)))
		})
	}
}

func replay(t *testing.T, script string) string {
	d := startFake(t)
	var b strings.Builder
	stdin := ""
	for line := range strings.Lines(script) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "# fake: "):
			d.become(t, strings.TrimPrefix(line, "# fake: "))
		case strings.HasPrefix(line, "< "):
			stdin += line[2:] + "\n"
		case strings.HasPrefix(line, "$ "):
			fmt.Fprintln(&b, line)
			runLine(t, d, &b, line[2:], stdin)
			stdin = ""
			continue
		case line != "" && !strings.HasPrefix(line, "#"):
			continue // an earlier answer
		}
		fmt.Fprintln(&b, line)
	}
	return b.String()
}

func runLine(t *testing.T, d *fakeDaemon, b *strings.Builder, line, stdin string) {
	env, args := words(t, line)
	code, stdout, stderr := d.exec(t.Context(), stdin, env, args...)
	for _, r := range d.asked() {
		fmt.Fprintln(b, "> "+r)
	}
	show := func(mark, s string) {
		s = strings.ReplaceAll(s, d.socket, "SOCKET")
		for l := range strings.Lines(s) {
			fmt.Fprintln(b, strings.TrimRight(mark+l, "\n "))
		}
	}
	show("| ", stdout)
	show("! ", stderr)
	if code != 0 {
		fmt.Fprintln(b, "exit", code)
	}
	if strings.Contains(stdout+stderr, secretToken) {
		t.Errorf("%s: the token is in the output", line)
	}
	if code != 0 && strings.Count(stderr, "\n") == 0 {
		t.Errorf("%s: exit %d without a word", line, code)
	}
	for l := range strings.Lines(stderr) {
		if !strings.HasPrefix(l, "heddle: ") {
			t.Errorf("%s: stray line on stderr: %q", line, l)
		}
	}
}

func (d *fakeDaemon) become(t *testing.T, what string) {
	switch what {
	case "in no cluster":
		d.outside = true
	case "removed":
		d.removed = true
	case "no manager answers":
		d.alone = true
	case "no manager was heard":
		d.alone, d.unheard = true, true
	case "empty":
		d.networks, d.nodes, d.tokens, d.endpoints, d.services = nil, nil, nil, nil, nil
	case "gamma is silent":
		d.silent = []string{"gamma"}
	case "has problems":
		d.problems = []string{"192.0.2.3 does not answer on 5378/udp; open it there: nft add rule …"}
	default:
		t.Fatalf("the fake can't be %q", what)
	}
}

// words splits a line as a shell does, for single quotes and leading K=V.
func words(t *testing.T, line string) (env map[string]string, args []string) {
	t.Helper()
	env = map[string]string{}
	var all []string
	var w strings.Builder
	in, quoted := false, false
	for _, r := range line + " " {
		switch {
		case r == '\'':
			in, quoted = true, !quoted
		case r == ' ' && !quoted:
			if in {
				all = append(all, w.String())
			}
			w.Reset()
			in = false
		default:
			in = true
			w.WriteRune(r)
		}
	}
	for i, s := range all {
		if s == "heddle" {
			return env, all[i+1:]
		}
		k, v, _ := strings.Cut(s, "=")
		env[k] = v
	}
	t.Fatalf("%q does not run heddle", line)
	return nil, nil
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		var a, b string
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b {
			return fmt.Sprintf("line %d\n got %q\nwant %q", i+1, a, b)
		}
	}
	return ""
}
