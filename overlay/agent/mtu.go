package agent

import (
	"cmp"
	"time"
)

// growTime is how long all participants must agree on a larger MTU before it is used: who has
// not heard of it would be sent what it can't take.
const growTime = time.Minute

// heldMTU is the MTU that a network has here. It follows what the participants can carry: down at
// once, up after growTime.
type heldMTU struct {
	now   int // in use; 0 before the first
	next  int // larger, to be used soon; 0 for none
	since time.Time
}

// follow takes in what the participants can carry, and returns the MTU to use.
func (h *heldMTU) follow(least int, at time.Time) int {
	switch {
	case h.now == 0 || least <= h.now:
		*h = heldMTU{now: least}
	case h.next == 0 || least < h.next:
		h.next, h.since = least, cmp.Or(h.since, at)
	case least > h.next:
		h.next, h.since = least, at
	}
	if h.next != 0 && at.Sub(h.since) >= growTime {
		*h = heldMTU{now: h.next}
	}
	return h.now
}
