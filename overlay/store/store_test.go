package store

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/agent"
)

const (
	blue = overlay.NetworkID("b1000000000000000000000000000000")
	red  = overlay.NetworkID("c1000000000000000000000000000000")
	web  = overlay.EndpointID("e1000000000000000000000000000000")
	db   = overlay.EndpointID("e2000000000000000000000000000000")
	gone = overlay.EndpointID("e3000000000000000000000000000000")
	last = overlay.EndpointID("e4000000000000000000000000000000")
)

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// stated is a record in the form in which it is signed, of a life and number.
func stated(id overlay.NetworkID, e overlay.EndpointID, incarnation, number uint64) agent.OwnRecord {
	body, _ := json.Marshal(overlay.Record{V: 1, Network: id, Endpoint: e, Incarnation: incarnation, Number: number})
	return agent.OwnRecord{Network: id, Endpoint: e, Signed: overlay.Signed{Body: body}}
}

// What was saved is found again, and in whatever order changes come, the higher versions stay.
func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.db")
	s := open(t, path)
	row := func(id overlay.NetworkID, e overlay.EndpointID) *agent.Row {
		return &agent.Row{V: 1, Network: id, ID: e}
	}
	barred := []overlay.Grant{}
	for i, c := range []agent.Change{
		{Network: blue, Counter: agent.Counter{Incarnation: 1, Number: 7}, Put: row(blue, web), Records: []agent.OwnRecord{stated(blue, web, 1, 7)}},
		{Network: blue, Counter: agent.Counter{Incarnation: 1, Number: 5}, Records: []agent.OwnRecord{stated(blue, web, 1, 5)}}, // late
		{Network: blue, Counter: agent.Counter{Incarnation: 2, Number: 1}, Records: []agent.OwnRecord{stated(blue, web, 2, 1)}},
		{Network: blue, Delete: []overlay.EndpointID{web, db}, Put: row(blue, db), Barred: &barred}, // a row takes another's place
		{Network: blue, Records: []agent.OwnRecord{stated(blue, gone, 1, 9), stated(blue, last, 2, 3)}},
		{Network: blue, Records: []agent.OwnRecord{stated(blue, web, 2, 4)}, Floor: overlay.Version{Incarnation: 2, Number: 3}},
		{Network: red, Put: row(red, web), Records: []agent.OwnRecord{stated(red, web, 1, 1)}},
		{Network: red, Forget: true},
	} {
		if err := s.Save(c); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := open(t, path).Load()
	if err != nil {
		t.Fatal(err)
	}
	want := agent.Saved{
		Endpoints: []agent.Row{*row(blue, db)}, Records: []agent.OwnRecord{stated(blue, web, 2, 4)},
		Counters: map[overlay.NetworkID]agent.Counter{blue: {Incarnation: 2, Number: 1}},
		Barred:   map[overlay.NetworkID][]overlay.Grant{blue: {}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("what is found again differs:\n%s", d)
	}
}

func TestNextNumber(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "node.db"))
	for _, step := range []struct{ above, want uint64 }{{0, 1}, {0, 2}, {9, 10}, {3, 11}, {0, 12}} {
		if n, err := s.NextNumber(step.above); err != nil || n != step.want {
			t.Errorf("above %d it gives %d, %v; want %d", step.above, n, err, step.want)
		}
	}
}

func TestOpenTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.db")
	open(t, path)
	if _, err := Open(path); overlay.KindOf(err) != overlay.InUse {
		t.Errorf("a second daemon: %v", err)
	}
}

func TestClear(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "node.db"))
	if n, err := s.NextNumber(0); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	if err := s.Save(agent.Change{Network: blue, Put: &agent.Row{V: 1, ID: web}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Clear(); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load(); err != nil || len(got.Endpoints) > 0 {
		t.Errorf("after Clear: %+v, %v", got, err)
	}
	if n, err := s.NextNumber(0); err != nil || n != 1 {
		t.Errorf("after Clear it counts %d, %v", n, err)
	}
}
