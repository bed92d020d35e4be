package table

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/overlay"
)

// speaker is an owner whose endpoints come and go: what it holds of its own records, and all that
// it ever said.
type speaker struct {
	number uint64
	own    map[int]overlay.Claim // by endpoint
	ever   []overlay.Claim
}

func (s *speaker) say(e int, ip string, floor uint64) overlay.Claim {
	s.number++
	c := claim(a, 1, s.number, e, ip, 1)
	c.Record.Floor = floor
	s.own[e] = c
	s.ever = append(s.ever, c)
	return c
}

// raise states again what stands up to a number, and then that all up to it counts no more.
func (s *speaker) raise(floor uint64) (said []overlay.Claim) {
	for e, c := range s.own {
		switch {
		case c.Record.Number > floor:
		case c.Record.Deleted:
			delete(s.own, e)
		default:
			said = append(said, s.say(e, c.Record.IPs[0].String(), 0))
		}
	}
	return append(said, s.say(1000+int(s.number), "", floor))
}

func (s *speaker) live() (ns []uint64) {
	for _, c := range s.own {
		if !c.Record.Deleted {
			ns = append(ns, c.Record.Number)
		}
	}
	slices.Sort(ns)
	return ns
}

func numbers(cs []*overlay.Claim) (ns []uint64) {
	for _, c := range cs {
		ns = append(ns, c.Record.Number)
	}
	slices.Sort(ns)
	return ns
}

// held is what a table has of owner a.
func held(t *Table) *owner {
	_, o := t.owner(net, a)
	return o
}

// exchange gives one table a part of what it lacks of the other's.
func exchange(to, from *Table, most int) (more bool) {
	for _, b := range from.Missing(net, to.Digest(net)) {
		if more = len(b.Claims) > most; more {
			b = b.First(most)
		}
		to.MergeBatch(net, b)
	}
	return more
}

// Endpoints come and go, what counts no more is dropped, pushes are lost, late and doubled, and
// whoever meets whom brings what it has, a part at a time. When all have met the owner, they hold
// what it holds, and nothing that comes late changes that.
func TestWhatIsDroppedStaysGone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		owner := speaker{own: map[int]overlay.Claim{}}
		tables := []*Table{New(), New(), New(), New()} // the first is the owner's
		pick := func(what string) *Table { return tables[rapid.IntRange(0, len(tables)-1).Draw(t, what)] }
		t.Repeat(map[string]func(*rapid.T){
			"change": func(t *rapid.T) {
				e, ip := rapid.IntRange(0, 5).Draw(t, "endpoint"), ""
				if rapid.Bool().Draw(t, "stands") {
					ip = fmt.Sprint("10.0.0.", e+1)
				}
				tables[0].Merge(owner.say(e, ip, 0))
			},
			"raise": func(t *rapid.T) {
				if owner.number == 0 {
					return
				}
				for _, c := range owner.raise(rapid.Uint64Range(1, owner.number).Draw(t, "floor")) {
					tables[0].Merge(c)
				}
			},
			"push": func(t *rapid.T) {
				if len(owner.ever) > 0 {
					pick("to").Merge(owner.ever[rapid.IntRange(0, len(owner.ever)-1).Draw(t, "of what was ever said")])
				}
			},
			"meet": func(t *rapid.T) {
				to, from := pick("to"), pick("from")
				if to != from && to != tables[0] { // an owner takes nothing of its own from others
					exchange(to, from, rapid.IntRange(1, 4).Draw(t, "most"))
				}
			},
			"": func(t *rapid.T) {
				if d := cmp.Diff(owner.live(), numbers(tables[0].Live(net))); d != "" {
					t.Fatalf("the owner's own table differs from what it says:\n%s", d)
				}
			},
		})
		for _, to := range tables[1:] {
			for exchange(to, tables[0], 3) {
			}
			for range 2 {
				o := held(to)
				if d := cmp.Diff(owner.live(), numbers(to.Live(net))); d != "" {
					t.Fatalf("live endpoints differ:\n%s", d)
				}
				if len(o.claims) > len(owner.own) {
					t.Fatalf("%d claims are held, and the owner has %d", len(o.claims), len(owner.own))
				}
				for _, c := range owner.ever { // late
					to.Merge(c)
				}
			}
		}
	})
}

// A floor counts when all that was stated again is there: what stands is never missing between.
func TestAFloorWaitsForWhatStands(t *testing.T) {
	owner := speaker{own: map[int]overlay.Claim{}}
	tb := New()
	tb.Merge(owner.say(1, "10.0.0.1", 0))
	tb.Merge(owner.say(2, "10.0.0.2", 0))
	tb.Merge(owner.say(2, "", 0))
	said := owner.raise(3)
	for _, c := range slices.Backward(said) {
		tb.Merge(c)
		if live := tb.Live(net); len(live) != 1 {
			t.Errorf("after record %d it has %v", c.Record.Number, names(live))
		}
	}
	if n := len(held(tb).claims); n != 2 {
		t.Errorf("%d claims are held, want the endpoint and the floor", n)
	}
}

// Who was cut off while an endpoint went, and its tombstone after it, drops it as well.
func TestAnEndpointWhoseTombstoneIsGone(t *testing.T) {
	owner := speaker{own: map[int]overlay.Claim{}}
	near, far, third := New(), New(), New()
	c := owner.say(1, "10.0.0.1", 0)
	near.Merge(c)
	far.Merge(c)
	near.Merge(owner.say(1, "", 0))
	for _, c := range owner.raise(2) {
		near.Merge(c)
	}
	exchange(third, far, 9) // the one that was cut off passes on what it has
	if len(third.Live(net)) != 1 {
		t.Fatal("the third has not heard of the endpoint")
	}
	for name, tb := range map[string]*Table{"cut off": far, "third": third} {
		exchange(tb, near, 9)
		if live := tb.Live(net); len(live) > 0 {
			t.Errorf("%s: %v", name, names(live))
		}
	}
	if exchange(near, far, 9); near.Merge(c) || len(near.Live(net)) > 0 {
		t.Error("it came back")
	}
}

// Attached and detached 100,000 times: what is held stays small, also by who never heard of it.
func TestTombstonesDoNotPileUp(t *testing.T) {
	owner := speaker{own: map[int]overlay.Claim{}}
	tb, late := New(), New()
	most := 0
	for e := range 100_000 {
		tb.Merge(owner.say(e, "10.0.0.1", 0))
		if e%1000 != 0 { // a few stay
			tb.Merge(owner.say(e, "", 0))
		}
		if e%500 == 499 {
			for _, c := range owner.raise(owner.number - 100) {
				tb.Merge(c)
			}
		}
		most = max(most, len(held(tb).claims))
	}
	exchange(late, tb, 10_000)
	if late := len(held(late).claims); most > 1000 || late > 300 || len(held(tb).ahead) > 0 {
		t.Errorf("up to %d claims were held; who comes late gets %d", most, late)
	}
}

// Numbers under which nothing is ever said keep no mark back.
func TestSkip(t *testing.T) {
	version := func(i, n uint64) overlay.Version { return overlay.Version{Incarnation: i, Number: n} }
	tb := New()
	for _, step := range []struct {
		do   func()
		want overlay.Version
	}{
		{func() { tb.Skip(net, a, version(1, 1), version(1, 1)) }, version(1, 1)},
		{func() { tb.Skip(net, a, version(1, 4), version(1, 5)) }, version(1, 1)},
		{func() { tb.Merge(claim(a, 1, 2, 1, "10.0.0.1", 1)) }, version(1, 2)},
		{func() { tb.Merge(claim(a, 1, 3, 1, "10.0.0.1", 1)) }, version(1, 5)},
		{func() { tb.Skip(net, a, version(2, 1), version(2, 9)) }, version(2, 9)},
		{func() { tb.Skip(net, a, version(1, 1), version(1, 99)) }, version(2, 9)},
	} {
		step.do()
		if m := tb.Mark(net, a); m != step.want {
			t.Errorf("the mark is %v, want %v", m, step.want)
		}
	}
}
