package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"

	"github.com/heddle-net/heddle/overlay"
	"pgregory.net/rapid"
)

// TestTheFirstLevel pins what builds of the first feature level wrote and read: their log leads
// to their snapshot, and this build writes the same bytes for them.
func TestTheFirstLevel(t *testing.T) {
	s := replay(t, "commands-v1.jsonl")
	want := append(kept(t, "snapshot-v1.json")[0], '\n')
	if got := snapshot(t, s); !bytes.Equal(got, want) {
		t.Errorf("the log of the first level gives\n%s\nwant\n%s", got, want)
	}
	restored := New()
	if err := restored.Restore(bytes.NewReader(want)); err != nil {
		t.Fatal(err)
	}
	if got := snapshot(t, restored); !bytes.Equal(got, want) || restored.View().Level != 1 {
		t.Errorf("a restore of it gives level %d and\n%s", restored.View().Level, got)
	}
	f := s.FactsFor(nid("w1"))
	if f.Level != 1 {
		t.Errorf("its facts have level %d", f.Level)
	}
	f.Level = 0 // of which nothing was said
	if got, want := factsText(t, f), append(bytes.Join(kept(t, "facts-v1.json"), []byte("\n")), '\n'); !bytes.Equal(got, want) {
		t.Errorf("the facts are\n%s\nwant\n%s", got, want)
	}
	for _, e := range kept(t, "commands-v1.jsonl") {
		env, c, err := decode(e)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Encode(1, env.Req, reflect.ValueOf(c).Elem().Interface().(Command))
		if err != nil || !bytes.Equal(again, e) {
			t.Errorf("%s is written as %s (%v)", e, again, err)
		}
	}
}

// At the first level nothing is written that its builds don't read: of no command, and in no
// snapshot, a field that theirs have not, for they stop at what they don't know.
func TestNothingNewAtTheFirstLevel(t *testing.T) {
	fields := map[Kind]map[string]bool{}
	for _, e := range kept(t, "commands-v1.jsonl") {
		env, _, err := decode(e)
		if err != nil {
			t.Fatal(err)
		}
		if fields[env.Kind] == nil {
			fields[env.Kind] = map[string]bool{}
		}
		maps.Copy(fields[env.Kind], fieldsOf(t, env.Body))
	}
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		begin := initCmd()
		begin.Level = 1
		w.do(begin, CreateToken{token("t1", overlay.Worker)}, join("n1", "t1"), join("n2", "t1"), network4("a", "10.1.0.0/28"))
		for i := range rapid.IntRange(10, 40).Draw(t, "commands") {
			c := anyCommand(t)
			if c.kind() == KindSetLevel {
				continue
			}
			e, err := Encode(w.s.View().Level, "", c)
			if fields[c.kind()] == nil {
				if new, ok := errors.AsType[*TooNew](err); !ok || (new.Level != 2 && new.Level != 4) || new.Doing == "" {
					t.Fatalf("%s, which the first level has not, is written: %s %v", c.kind(), e, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			var env envelope
			if err := json.Unmarshal(e, &env); err != nil || env.Level != 1 {
				t.Fatalf("%s has another level (%v)", e, err)
			}
			for f := range fieldsOf(t, env.Body) {
				if !fields[env.Kind][f] {
					t.Fatalf("%s has the field %q", e, f)
				}
			}
			w.tryReq(fmt.Sprint("r", i), c)
			soundness(t, w)
		}
		for _, o := range w.s.t.done.list {
			if o.Error != nil && o.ref != (ref{}) {
				t.Fatalf("a refused %s is kept as %+v", o.Kind, o)
			}
		}
		if w.s.View().Level != 1 {
			t.Fatal("the level rose by itself")
		}
		for id, m := range w.s.t.members.m {
			if m.Removed != 0 || m.Forced {
				t.Fatalf("member %s is %+v", id, m)
			}
		}
		for id, n := range w.s.t.networks.m {
			if len(n.resting) > 0 {
				t.Fatalf("in network %s rest %v", id, n.resting)
			}
		}
	})
}

// fieldsOf are the names of a JSON object's fields.
func fieldsOf(t tb, b []byte) map[string]bool {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for f := range m {
		out[f] = true
	}
	return out
}

// TestLaterLevels holds logs, snapshots and facts that builds of the second and third level wrote.
func TestLaterLevels(t *testing.T) {
	for _, level := range []string{"level2", "level3"} {
		s := replay(t, "commands-"+level+".jsonl")
		for name, got := range map[string][]byte{"snapshot-" + level + ".json": snapshot(t, s), "facts-" + level + ".json": factsText(t, s.FactsFor(nid("w1")))} {
			if want := append(bytes.Join(kept(t, name), []byte("\n")), '\n'); !bytes.Equal(bytes.TrimSpace(got), bytes.TrimSpace(want)) {
				t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
			}
		}
	}
	red := network4("red")
	if _, err := Encode(2, "", red); err != nil {
		t.Error(err)
	}
	red.Spec.Encrypted = true
	var early *TooNew
	if _, err := Encode(2, "", red); !errors.As(err, &early) || early.Level != 3 {
		t.Errorf("an encrypted network at the second level: %v", err)
	}
	for _, c := range []Command{service("web"), UpdateService{ID: servID("web")}, RemoveService{servID("web")}} {
		if _, err := Encode(3, "", c); !errors.As(err, &early) || early.Level != 4 || early.Doing == "" {
			t.Errorf("%s at the third level: %v", c.kind(), err)
		}
		if _, err := Encode(4, "", c); err != nil {
			t.Error(err)
		}
	}
}

func TestTheLevelRises(t *testing.T) {
	w := newWorld(t)
	begin := initCmd()
	begin.Level = 1
	w.do(begin, CreateToken{token("wt", overlay.Worker)}, join("w1", "wt"), network4("blue"))
	if slices.ContainsFunc(w.log, func(e []byte) bool { return !bytes.Contains(e, []byte(`"level":1,`)) }) {
		t.Fatalf("a log of the first level is %s", w.log)
	}
	before := w.s.FactsFor(nid("w1"))
	if res := w.do(SetLevel{2}).(LevelResult); res.Level != 2 {
		t.Fatalf("the answer is %+v", res)
	}
	if e := w.log[len(w.log)-1]; !bytes.Contains(e, []byte(`"v":1,"level":2`)) {
		t.Errorf("what sets a level is not written at it, so that others say why they stop: %s", e)
	}
	d, ok := w.s.Since(before.Revision, nid("w1"))
	if f := d.Apply(before); !ok || f.Level != 2 {
		t.Errorf("a node is told of level %d", f.Level)
	}
	w.do(UpdateNetwork{ID: netID("blue"), Labels: map[string]string{"a": "b"}})

	rev := w.s.View().Revision
	for _, lower := range []int{1, 2} {
		if res := w.do(SetLevel{lower}).(LevelResult); res.Level != 2 || w.s.View().Revision != rev {
			t.Errorf("level %d makes %+v, revision %d", lower, res, w.s.View().Revision)
		}
	}
	for _, odd := range []string{`{"v":1,"level":2,"kind":"set-level","body":{"level":5}}`, `{"v":1,"level":2,"kind":"set-level","body":{"level":0}}`} {
		w.index++
		_, err := w.s.Apply(w.index, []byte(odd))
		wantErr(t, err, overlay.Invalid, "unknown")
	}
	if _, err := w.s.Apply(w.index+1, []byte(`{"v":1,"level":5,"kind":"set-level","body":{"level":5}}`)); !Fatal(err) {
		t.Errorf("a level that this build does not read: %v", err)
	}
	restored := New()
	if err := restored.Restore(bytes.NewReader(snapshot(t, w.s))); err != nil || restored.View().Level != 2 {
		t.Errorf("a snapshot loses the level: %d %v", restored.View().Level, err)
	}
}
