//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStatistics(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i) // 100 to 1, not sorted
	}
	for _, tc := range []struct {
		name                   string
		samples                []float64
		low, median, p99, high float64
	}{
		{"none", nil, 0, 0, 0, 0},
		{"one", []float64{7}, 7, 7, 7, 7},
		{"two", []float64{3, 1}, 1, 2, 3, 3},
		{"three", []float64{5, 1, 2}, 1, 2, 5, 5},
		{"a hundred", hundred, 1, 50.5, 99, 100},
		{"two hundred", append(hundred, hundred...), 1, 50.5, 99, 100},
		{"negative", []float64{-2, -1, 4, 1}, -2, 0, 4, 4},
	} {
		first := append([]float64(nil), tc.samples...)
		var f figure
		f.measure(tc.samples)
		if f.N != len(tc.samples) || f.Min != tc.low || f.Median != tc.median || f.P99 != tc.p99 || f.Max != tc.high {
			t.Errorf("%s: %+v", tc.name, f)
		}
		for i := range first {
			if first[i] != tc.samples[i] {
				t.Fatalf("%s: the samples were put into another order", tc.name)
			}
		}
	}
}

func TestVerdict(t *testing.T) {
	f := figure{N: 3, Min: 1, Median: 5, P99: 20, Max: 21}
	for _, tc := range []struct {
		want []want
		is   string
	}{
		{nil, ""},
		{[]want{atMost(median, 5)}, "met"},
		{[]want{atMost(median, 4.9)}, "MISSED"},
		{[]want{atMost(median, 5), atMost(p99, 19)}, "MISSED"},
		{[]want{atMost(most, 20)}, "MISSED"},
		{[]want{atMost(p99, 20), atMost(most, 21)}, "met"},
		{[]want{atLeast(median, 5)}, "met"},
		{[]want{atLeast(median, 6)}, "MISSED"},
	} {
		if f.Want = tc.want; f.verdict() != tc.is {
			t.Errorf("%s: %q, not %q", f.wanted(), f.verdict(), tc.is)
		}
	}
	none := figure{Want: []want{atMost(median, 5)}}
	if none.verdict() != "MISSED" {
		t.Error("a figure without samples is met")
	}
}

func TestNumber(t *testing.T) {
	for v, s := range map[float64]string{0: "0", 0.123: "0.12", 9.876: "9.88", 12.34: "12.3", 1306.185: "1306", -0.5: "-0.50", -12.34: "-12.3"} {
		if number(v) != s {
			t.Errorf("%v is %s, not %s", v, number(v), s)
		}
	}
}

func TestReports(t *testing.T) {
	same := conditions{Version: "v1", Cores: 2}
	old := report{same, []figure{{Step: "leader", Name: "old"}, {Step: "disk", Name: "a"}, {Step: "disk", Name: "b"}}}
	young := report{same, []figure{{Step: "leader", Name: "new"}}}
	if got := names(young.beside(old)); got != "a b new" {
		t.Errorf("the figures together are %q", got)
	}
	old.Version = "v0"
	if got := names(young.beside(old)); got != "new" {
		t.Errorf("the figures of another version are there: %q", got)
	}
}

func TestThePageKeepsItsText(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	r := report{conditions{Version: "v1"}, []figure{{Step: "disk", Name: "a", Unit: "ms", Swarm: "7*", Want: []want{atMost(median, 5)}}}}
	if err := os.WriteFile(page, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.write(page); err == nil {
		t.Error("a page without the markers was written")
	}
	if err := os.WriteFile(page, []byte("before\n"+pageBegin+"old\n"+pageEnd+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.write(page); err != nil {
			t.Fatal(err)
		}
	}
	b, _ := os.ReadFile(page)
	row := "| `disk` | a, ms | 0 | 0 | 0 | 0 | 0 | median ≤ 5 | **missed** | 7\\* |\n"
	if got := string(b); !strings.HasPrefix(got, "before\n"+pageBegin) || !strings.HasSuffix(got, pageEnd+"after\n") || strings.Count(got, row) != 1 || strings.Contains(got, "old") {
		t.Errorf("the page is\n%s", got)
	}
}

func names(r report) string {
	var out []string
	for _, f := range r.Figures {
		out = append(out, f.Name)
	}
	return strings.Join(out, " ")
}
