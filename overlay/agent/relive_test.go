package agent

import (
	"testing"

	"github.com/heddle-net/heddle/overlay"
)

// Others hold records of this node from a life that it has forgotten, more than it has said since or
// as many: what stands is stated under a new incarnation, and stays under it.
func TestForgottenLife(t *testing.T) {
	for _, theirs := range []uint64{9, 1} {
		forgottenLife(t, theirs)
	}
}

func forgottenLife(t *testing.T, theirs uint64) {
	w := newWorld()
	a, stop := start(t, w)
	e := attach(t, a, "web")
	<-w.told
	w.set(func() { w.stated = overlay.Version{Incarnation: 1, Number: theirs} })
	w.peersCh <- struct{}{}
	seen := map[overlay.EndpointID]overlay.Record{}
	for range 2 {
		var r overlay.Record
		if err := (<-w.told).Decode(overlay.DomainRecord, &r); err != nil {
			t.Fatal(err)
		}
		seen[r.Endpoint] = r
	}
	if r := seen[e.ID]; r.Incarnation != 2 || r.Deleted || len(r.IPs) != 2 {
		t.Errorf("web was stated as %+v", r)
	}
	w.set(func() { w.stated = overlay.Version{Incarnation: 2, Number: 2} })
	stop()
	a, _ = start(t, w)
	for range len(w.saved.Records) { // what the disk keeps is said again at a start
		select {
		case <-w.told:
		default:
		}
	}
	attach(t, a, "db")
	var r overlay.Record
	for r.Workload != "db" {
		if err := (<-w.told).Decode(overlay.DomainRecord, &r); err != nil {
			t.Fatal(err)
		}
	}
	if r.Incarnation != 2 || r.Number != 3 {
		t.Errorf("after a restart it states %d.%d, want 2.3", r.Incarnation, r.Number)
	}
}
