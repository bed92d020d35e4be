package agent

import (
	"testing"
	"time"
)

func TestTheMTUShrinksAtOnceAndGrowsLater(t *testing.T) {
	begin := time.Unix(1e9, 0)
	var h heldMTU
	for _, step := range []struct {
		after time.Duration
		least int
		want  int
		why   string
	}{
		{0, 1450, 1450, "the first counts at once"},
		{time.Second, 1350, 1350, "down at once"},
		{2 * time.Second, 8950, 1350, "not up at once"},
		{61 * time.Second, 8950, 1350, "nor after 59 s"},
		{62 * time.Second, 8950, 8950, "after a minute"},
		{63 * time.Second, 1350, 1350, "down at once"},
		{64 * time.Second, 1450, 1350, "agreement begins"},
		{100 * time.Second, 8950, 1350, "and again with a larger value"},
		{130 * time.Second, 8950, 1350, "66 s after the first, 30 s after the second"},
		{140 * time.Second, 1450, 1350, "less of it was agreed on all the time"},
		{160 * time.Second, 1450, 1450, "for a minute"},
		{170 * time.Second, 8950, 1450, "again"},
		{180 * time.Second, 1450, 1450, "taken back"},
		{231 * time.Second, 8950, 1450, "a minute after the first try, which does not count"},
	} {
		if got := h.follow(step.least, begin.Add(step.after)); got != step.want {
			t.Errorf("%s after the begin (%s): %d, want %d", step.after, step.why, got, step.want)
		}
	}
}
