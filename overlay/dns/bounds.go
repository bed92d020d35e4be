package dns

import (
	"sync"
	"time"

	"github.com/heddle-net/heddle/datapath"
)

// What one workload may take, so that others get theirs. What is above is dropped, not queued.
const (
	perSecond    = 22000 // questions by UDP
	burst        = 2200
	mostForwards = 64 // under way, of one workload
	allForwards  = 512
	mostStreams  = 16 // TCP connections, of one workload
	allStreams   = 256
)

// bounds count what workloads take.
type bounds struct {
	mu       sync.Mutex
	of       map[datapath.NS]*usage
	forwards int
	streams  int
}

type usage struct {
	tokens   float64
	at       time.Time // of tokens
	forwards int
	streams  int
}

// get is the usage of a workload. The caller holds mu.
func (b *bounds) get(ns datapath.NS, now time.Time) *usage {
	u := b.of[ns]
	if u == nil {
		if b.of == nil {
			b.of = map[datapath.NS]*usage{}
		}
		b.forget(now)
		u = &usage{tokens: burst, at: now}
		b.of[ns] = u
	}
	return u
}

// forget drops those that took nothing for a while: they would begin with the same.
func (b *bounds) forget(now time.Time) {
	for ns, u := range b.of {
		if u.forwards == 0 && u.streams == 0 && now.Sub(u.at) > time.Second {
			delete(b.of, ns)
		}
	}
}

// question says whether a workload may ask one more.
func (b *bounds) question(ns datapath.NS, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	u := b.get(ns, now)
	u.tokens = min(burst, u.tokens+now.Sub(u.at).Seconds()*perSecond)
	u.at = now
	if u.tokens < 1 {
		return false
	}
	u.tokens--
	return true
}

// forward takes a place among the questions that are forwarded; done gives it back.
func (b *bounds) forward(ns datapath.NS, now time.Time) (done func(), ok bool) {
	return b.take(ns, now, func(u *usage) (*int, *int) { return &u.forwards, &b.forwards }, mostForwards, allForwards)
}

// stream takes a place among the connections; done gives it back.
func (b *bounds) stream(ns datapath.NS, now time.Time) (done func(), ok bool) {
	return b.take(ns, now, func(u *usage) (*int, *int) { return &u.streams, &b.streams }, mostStreams, allStreams)
}

func (b *bounds) take(ns datapath.NS, now time.Time, which func(*usage) (own, all *int), most, mostAll int) (done func(), ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	own, all := which(b.get(ns, now))
	if *own >= most || *all >= mostAll {
		return nil, false
	}
	*own++
	*all++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		*own--
		*all--
	}, true
}
