package main

import (
	"io"
	"strings"
	"testing"
)

func TestVerdict(t *testing.T) {
	pass := `{"Action":"pass","Package":"p","Test":"A"}` + "\n"
	for _, c := range []struct {
		name, in string
		ci       bool
		want     string
	}{
		{"all pass", pass, true, ""},
		{"nothing ran", `{"Action":"pass","Package":"p"}` + "\n", false, "no test ran"},
		{"a failure", pass + `{"Action":"fail","Package":"p","Test":"B"}` + "\n", false, "tests failed"},
		{"a skip at home", pass + `{"Action":"skip","Package":"p","Test":"B"}` + "\n", false, ""},
		{"a skip in CI", pass + `{"Action":"skip","Package":"p","Test":"B"}` + "\n", true, "tests were skipped, which CI does not allow"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := report{out: io.Discard, output: map[string][]string{}}
			if err := r.read(strings.NewReader(c.in)); err != nil {
				t.Fatal(err)
			}
			if got := r.verdict(c.ci); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestFailuresAreShownWhole(t *testing.T) {
	var b strings.Builder
	r := report{out: &b, output: map[string][]string{}}
	in := `{"Action":"output","Package":"p","Test":"A","Output":"noise\n"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"B","Output":"why it broke\n"}
{"Action":"fail","Package":"p","Test":"B"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
`
	if err := r.read(strings.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), "why it broke\nFAIL\tp\t0.1s\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
