package state

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/heddle-net/heddle/overlay"
)

// TestUnreadable holds what stops a manager: never an answer, never skipped.
func TestUnreadable(t *testing.T) {
	for _, tc := range []struct{ name, entry, part string }{
		{"nothing", ``, "no command"},
		{"no JSON", `{`, "no command"},
		{"null", `null`, "command version 0"},
		{"later version", `{"v":2,"level":1,"kind":"grant","body":{},"more":1}`, "command version 2"},
		{"higher level", `{"v":1,"level":5,"kind":"grant","body":{}}`, "feature level 5"},
		{"no level", `{"v":1,"kind":"grant","body":{}}`, "feature level 0"},
		{"unknown kind", `{"v":1,"level":1,"kind":"dance","body":{}}`, `"dance" is unknown`},
		{"reserved kind", `{"v":1,"level":1,"kind":"recover","body":{}}`, `"recover" is unknown`},
		{"unknown field", `{"v":1,"level":1,"kind":"grant","body":{"colour":1}}`, "colour"},
		{"unknown field outside", `{"v":1,"level":1,"kind":"grant","body":{},"more":1}`, "more"},
		{"no body", `{"v":1,"level":1,"kind":"grant"}`, "grant can't be read"},
		{"wrong type", `{"v":1,"level":1,"kind":"grant","body":{"want":"x"}}`, "grant can't be read"},
		{"two commands", `{"v":1,"level":1,"kind":"grant","body":{}}{}`, "no command"},
		{"long request ID", `{"v":1,"level":1,"kind":"grant","body":{},"req":"` + strings.Repeat("x", 65) + `"}`, "can't be read"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := cluster3(t)
			before := snapshot(t, w.s)
			_, err := w.s.Apply(w.index+1, []byte(tc.entry))
			if !Fatal(err) || overlay.KindOf(err) != overlay.Unread || !strings.Contains(err.Error(), tc.part) {
				t.Errorf("%v (fatal %v, %s), want %q", err, Fatal(err), overlay.KindOf(err), tc.part)
			}
			if !bytes.Equal(before, snapshot(t, w.s)) {
				t.Error("it changed the state")
			}
		})
	}
	w := cluster3(t)
	if _, err := w.s.Apply(w.index, w.log[0]); !Fatal(err) {
		t.Errorf("an index twice: %v", err)
	}
	if _, err := Encode(Level, strings.Repeat("x", 65), Grant{}); err == nil {
		t.Error("a long request ID was encoded")
	}
}

func TestBadSnapshots(t *testing.T) {
	w := cluster3(t)
	w.do(network4("blue", "10.1.0.0/29"), network4("red"), Grant{Network: netID("blue"), Node: nid("w1")}, Grant{Network: netID("blue"), Node: nid("w2")}, RemoveNode{Node: nid("w2")})
	good := string(snapshot(t, w.s))
	replaced := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the snapshot has no %s", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for _, tc := range []struct{ name, file, part string }{
		{"nothing", "", "can't be read"},
		{"cut short", good[:len(good)/2], "can't be read"},
		{"later version", replaced(`{"v":1`, `{"v":2`), "snapshot version 2"},
		{"higher level", replaced(`"level":4`, `"level":9`), "feature level 9"},
		{"unknown field", replaced(`"applied"`, `"x":1,"applied"`), "can't be read"},
		{"no key", replaced(`"signingKeys":[`, `"signingKeys":[],"tokens":{},"members":{},"done":[],"gossipKeys":[`), "malformed"},
		{"VNI twice", replaced(`"vni":8388608`, `"vni":8388609`), "twice"},
		{"fence outside", replaced(`"first":"10.1.0.3","last":"10.1.0.3"`, `"first":"10.1.0.3","last":"10.2.0.3"`), "no run"},
		{"fence over a lease", replaced(`"first":"10.1.0.3","last":"10.1.0.3"`, `"first":"10.1.0.2","last":"10.1.0.2"`), "leased twice"},
		{"another's row", replaced(`"nodes":{"`, `"nodes":{"x`), "another ID"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := New()
			if err := s.Restore(strings.NewReader(good)); err != nil {
				t.Fatal(err)
			}
			err := s.Restore(strings.NewReader(tc.file))
			if !Fatal(err) || !strings.Contains(err.Error(), tc.part) {
				t.Errorf("%v, want %q", err, tc.part)
			}
			if got := string(snapshot(t, s)); got != good {
				t.Error("half of it was restored")
			}
		})
	}
	gone := errors.New("disk gone")
	if err := New().Restore(iotest.ErrReader(gone)); !errors.Is(err, gone) || Fatal(err) {
		t.Errorf("%v", err)
	}
}

// TestRetry repeats requests: the answer is the first one's, and nothing happens twice.
func TestRetry(t *testing.T) {
	w := cluster3(t)
	for _, tc := range []struct {
		req string
		cmd Command
	}{
		{"network", network4("blue", "10.1.0.0/28")},
		{"refused", changed(network4("blue"), func(c *CreateNetwork) { c.ID = netID("x") })},
		{"grant", Grant{Network: netID("blue"), Node: nid("w1"), Want: 1}},
		{"token", CreateToken{token("new", overlay.Worker)}},
		{"rotate", RotateTokens{token("newer", overlay.Worker)}},
		{"remove node", RemoveNode{Node: nid("w2")}},
		{"remove network", RemoveNetwork{netID("blue")}},
	} {
		t.Run(tc.req, func(t *testing.T) {
			first, err1 := w.tryReq(tc.req, tc.cmd)
			restored := New()
			if err := restored.Restore(bytes.NewReader(snapshot(t, w.s))); err != nil {
				t.Fatal(err)
			}
			for _, s := range []*State{w.s, restored} {
				e, _ := Encode(Level, tc.req, tc.cmd)
				again, err2 := s.Apply(w.index+1, e)
				if asJSON(t, first) != asJSON(t, again) || fmt.Sprint(err1) != fmt.Sprint(err2) || overlay.KindOf(err1) != overlay.KindOf(err2) {
					t.Errorf("%v %v, then %v %v", first, err1, again, err2)
				}
			}
			w.index++
		})
	}
	_, err := w.tryReq("grant", network4("red"))
	wantErr(t, err, overlay.Invalid, "was a grant before")
	_, err = w.tryReq("network", network4("blue"))
	wantErr(t, err, overlay.NotFound, "no network")
	for i := range remembered { // push them out
		w.tryReq(fmt.Sprint(i), RevokeToken{"x"})
	}
	if _, err := w.tryReq("network", network4("blue")); err != nil {
		t.Errorf("a request is remembered too long: %v", err)
	}
	if n := len(w.s.t.done.list); n != remembered || len(w.s.t.done.byReq) != n {
		t.Errorf("%d requests, %d by ID", n, len(w.s.t.done.byReq))
	}
	restored := New()
	if err := restored.Restore(bytes.NewReader(snapshot(t, w.s))); err != nil || !bytes.Equal(snapshot(t, restored), snapshot(t, w.s)) {
		t.Errorf("a full list of requests does not survive a snapshot: %v", err)
	}
	w.tryReq("last", RevokeToken{"x"})
	if restored.Apply(w.index, w.log[len(w.log)-1]); !bytes.Equal(snapshot(t, restored), snapshot(t, w.s)) {
		t.Error("after a restore, requests are forgotten in another order")
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestChanged(t *testing.T) {
	w := cluster3(t)
	rev := w.s.View().Revision
	past, here, ahead := w.s.Changed(rev-1), w.s.Changed(rev), w.s.Changed(rev+1)
	if !isClosed(past) || isClosed(here) || isClosed(ahead) || w.s.Changed(rev) != here {
		t.Fatal("wrong from the start")
	}
	w.try(RevokeToken{"x"})
	w.do(SetRole{nid("w1"), overlay.Worker})
	if isClosed(here) {
		t.Fatal("closed by a command that changed nothing")
	}
	restored := New()
	wait := restored.Changed(0)
	if err := restored.Restore(bytes.NewReader(snapshot(t, w.s))); err != nil || !isClosed(wait) {
		t.Fatalf("a restore is no change: %v", err)
	}
	w.do(network4("blue")) // three entries later
	if !isClosed(here) || !isClosed(ahead) || len(w.s.waiting) != 0 {
		t.Fatal("not closed")
	}
}

// TestWhoSeesWhat pins what a delta has for a participant, a bystander, a manager and a node
// that is out.
func TestWhoSeesWhat(t *testing.T) {
	w := cluster3(t)
	w.do(network4("blue"), Grant{Network: netID("blue"), Node: nid("m1")})
	rev := w.s.View().Revision
	w.do(Grant{Network: netID("blue"), Node: nid("w1")})
	since := func(rev uint64, node string) overlay.Delta {
		t.Helper()
		d, ok := w.s.Since(rev, nid(node))
		if !ok || d.Revision != w.s.View().Revision {
			t.Fatalf("%s: %v, revision %d", node, ok, d.Revision)
		}
		return d
	}
	if d := since(rev, "w1"); len(d.Networks) != 1 || len(d.Leases) != 2 {
		t.Errorf("who enters gets %+v", d)
	}
	entered := w.s.View().Revision
	w.do(Grant{Network: netID("blue"), Node: nid("w1")})
	if d := since(entered, "w1"); len(d.Networks) != 0 || len(d.Leases) != 1 {
		t.Errorf("a refill gives %+v", d)
	}
	if d := since(rev, "w2"); len(d.Networks)+len(d.Leases)+len(d.GoneLeases)+len(d.GoneNets) != 0 {
		t.Errorf("a bystander gets %+v", d)
	}
	if d := since(rev, "m1"); len(d.Networks) != 0 || len(d.Leases) != 1 {
		t.Errorf("a participant gets %+v", d)
	}
	if f := w.s.FactsFor(nid("w2")); len(f.Networks)+len(f.Leases) != 0 || len(f.Nodes) != 3 || len(f.GossipKeys) != 1 {
		t.Errorf("a bystander sees %+v", f)
	}
	rev = w.s.View().Revision
	w.do(RemoveNetwork{netID("blue")}, RemoveNode{Node: nid("w2")})
	if d := since(rev, "w1"); len(d.GoneNets) != 1 || len(d.GoneNodes) != 1 || len(d.Removals) != 1 {
		t.Errorf("after the removals: %+v", d)
	}
	if f := w.s.FactsFor(nid("w2")); len(f.Nodes)+len(f.GossipKeys) != 0 || len(f.Removals) != 1 {
		t.Errorf("a removed node sees %+v", f)
	}
	if _, ok := w.s.Since(rev, nid("w2")); ok {
		t.Error("a removed node gets a difference")
	}
	w.do(SetRole{nid("w1"), overlay.Manager})
	if _, ok := w.s.Since(rev, nid("w1")); ok {
		t.Error("a promoted node gets a difference")
	}
	w.do(join("w3", "wt"), network4("red"), Grant{Network: netID("red"), Node: nid("m1")}, Grant{Network: netID("red"), Node: nid("w3")})
	f := w.s.FactsFor(nid("w3"))
	w.do(RemoveNetwork{netID("red")}, network4("red"), Grant{Network: netID("red"), Node: nid("w3")}) // all in one difference
	if d := since(f.Revision, "w3"); asJSON(t, d.Apply(f)) != asJSON(t, w.s.FactsFor(nid("w3"))) {
		t.Errorf("after a removal and a return: %+v", d)
	}
	restored := New()
	if err := restored.Restore(bytes.NewReader(snapshot(t, w.s))); err != nil {
		t.Fatal(err)
	}
	if _, ok := restored.Since(f.Revision, nid("w3")); ok {
		t.Error("a restored state tells differences to what it has not seen")
	}
	ahead := w.index + 100
	if d, ok := w.s.Since(ahead, nid("w1")); !ok || d.Revision != ahead {
		t.Errorf("ahead of this manager: %+v %v", d, ok)
	}
}

func TestJournalIsBounded(t *testing.T) {
	w := cluster3(t)
	rev := w.s.View().Revision
	for i := range maxJournal * 3 / 2 {
		w.do(UpdateNode{Node: nid("w2"), Control: netip.AddrPortFrom(addr("192.0.2.1"), uint16(1+i%2))})
	}
	if _, ok := w.s.Since(rev, nid("w1")); ok {
		t.Error("the journal remembers everything")
	}
	d, ok := w.s.Since(w.s.View().Revision-maxJournal+1, nid("w1"))
	if !ok || len(d.Nodes) != 1 {
		t.Errorf("%v %d nodes", ok, len(d.Nodes))
	}
	if n := len(w.s.journal.list); n > maxJournal*3/2 {
		t.Errorf("%d entries", n)
	}
}
