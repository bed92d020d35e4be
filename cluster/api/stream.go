package api

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

const (
	beatEvery  = time.Second
	writeLimit = 10 * time.Second // for one line of a stream
)

// event is a line of a watch stream.
type event struct {
	Hello *overlay.Hello `json:"hello,omitempty"`
	Delta *overlay.Delta `json:"delta,omitempty"`
	Beat  *Beat          `json:"beat,omitempty"`
}

// watch streams what the caller may see, from the revision that it has, and a beat each second.
func watch(w http.ResponseWriter, r *http.Request, s Source, node overlay.NodeID, hello overlay.Hello, done <-chan struct{}) {
	rev, _ := strconv.ParseUint(r.URL.Query().Get("since"), 10, 64)
	epoch, _ := strconv.ParseUint(r.URL.Query().Get("epoch"), 10, 64)
	w.Header().Set("Content-Type", "application/x-ndjson")
	out, enc := http.NewResponseController(w), json.NewEncoder(w)
	send := func(e event) bool {
		_ = out.SetWriteDeadline(time.Now().Add(writeLimit))
		return enc.Encode(e) == nil && out.Flush() == nil
	}
	if !send(event{Hello: &hello}) {
		return
	}
	first := s.FactsFor(node)
	if first != nil && first.Epoch != epoch {
		rev = 0 // from another life of the cluster
	}
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	place := overlay.Place{}
	if first != nil {
		place = first.Place
	}
	beat := true
	for {
		changed := s.Changed(rev)
		if d, ok := nextSince(s, place, rev, node); ok {
			if !send(event{Delta: &d}) {
				return
			}
			rev = d.Revision
			continue
		}
		if beat {
			b := s.Beat()
			if !send(event{Beat: &b}) {
				return
			}
		}
		select {
		case <-tick.C:
			beat = true
		case <-changed:
			beat = false
		case <-r.Context().Done():
			return
		case <-done:
			return
		}
	}
}
