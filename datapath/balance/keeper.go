package balance

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/heddle-net/heddle/datapath"
)

// keeper keeps one namespace.
type keeper struct {
	*Loop
	ns   datapath.NS
	wake chan struct{} // size 1

	mu    sync.Mutex
	want  []*datapath.VIP
	leave bool   // nothing is wanted any more
	asked uint64 // counts changes of what is wanted
	done  uint64 // the newest that was worked on to its end
	err   error
	look  bool   // others may have changed something
	known uint32 // generation that stand is of; 0 is none
	next  uint32 // generation that is being made; 0 is none

	// The keeper's goroutine owns the rest.
	rules  Rules // nil while closed
	used   time.Time
	inode  uint64
	stand  []*datapath.VIP
	there  bool                     // with what all VIPs share
	ending map[string]*datapath.VIP // by service: whose flows are to be looked at
	gone   map[netip.Addr]bool      // addresses whose flows are
	calm   time.Time                // until when others' changes are left alone
	fails  int                      // in a row
	told   bool                     // of them
}

func newKeeper(l *Loop, ns datapath.NS) *keeper {
	return &keeper{Loop: l, ns: ns, wake: make(chan struct{}, 1), ending: map[string]*datapath.VIP{}, gone: map[netip.Addr]bool{}}
}

func (k *keeper) stir() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// ask changes what is wanted.
func (k *keeper) ask(vips []*datapath.VIP, leave bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.asked > 0 && leave == k.leave && slices.Equal(vips, k.want) {
		return
	}
	if k.leave && !leave { // it may be another namespace by now
		k.known, k.look = 0, true
	}
	k.want, k.leave = vips, leave
	k.asked++
	k.stir()
}

// hear is news of a generation.
func (k *keeper) hear(generation uint32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if generation != 0 && (generation == k.known || generation == k.next) {
		return // its own doing
	}
	k.look = true
	k.stir()
}

func (k *keeper) settled() (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.done == k.asked, k.err
}

func (k *keeper) unwanted() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.leave
}

// know notes of which generation stand is, and which is being made.
func (k *keeper) know(known, next uint32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known, k.next = known, next
}

const longTime = time.Hour

// keep works until ctx ends, or nothing is wanted any more.
func (k *keeper) keep(ctx context.Context) {
	due, timer := time.Now(), time.NewTimer(0)
	defer timer.Stop()
	defer k.close()
	for {
		woken := false
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
			woken = true
		case <-timer.C:
		}
		if woken || !time.Now().Before(due) {
			again, over := k.pass(ctx)
			if over {
				return
			}
			due = time.Now().Add(again)
		}
		wait := time.Until(due)
		if idle := time.Since(k.used); k.rules != nil && idle >= linger {
			k.close()
		} else if k.rules != nil {
			wait = min(wait, linger-idle)
		}
		timer.Reset(wait)
	}
}

func (k *keeper) close() {
	if k.rules != nil {
		k.rules.Close()
		k.rules = nil
	}
}

// pass brings the namespace to what is wanted, and says when to come again at the latest.
func (k *keeper) pass(ctx context.Context) (again time.Duration, over bool) {
	k.mu.Lock()
	asked, leave := k.asked, k.leave
	k.mu.Unlock()
	var err error
	if leave {
		err = k.goAway(ctx)
	} else {
		asked, err = k.bring(ctx)
	}
	if ctx.Err() != nil {
		return longTime, true
	}
	if again = longTime; err != nil {
		again = min(k.cfg.RetryMin<<min(k.fails, 20), k.cfg.RetryMax)
		absent := datapath.FaultOf(err) == datapath.NoNamespace
		if absent { // who makes the namespace says so, and nobody when it has
			again = min(again, absentRetry)
		}
		if k.fails++; k.fails >= tellAfter && !absent && !k.told {
			k.told = true
			k.log.Warn("service addresses are not as wanted; trying again", "namespace", k.ns, "err", err)
		}
	} else {
		if k.told {
			k.log.Info("service addresses are as wanted again", "namespace", k.ns)
		}
		k.fails, k.told = 0, false
	}
	k.mu.Lock()
	if k.look {
		again = min(again, max(0, time.Until(k.calm)))
	}
	k.mu.Unlock()
	over = leave && err == nil && k.retire(k)
	k.finish(asked, err)
	return again, over
}

// finish tells that what was asked was worked on.
func (k *keeper) finish(asked uint64, err error) {
	k.mu.Lock()
	same := k.done == asked && k.err == nil && err == nil
	k.done, k.err = asked, err
	k.mu.Unlock()
	if !same {
		k.signal()
	}
}

const (
	tellAfter   = 5 // attempts that fail before it is worth a word: the namespace may be about to go
	absentRetry = 250 * time.Millisecond
)

// goAway takes all away, where there is something to take it from.
func (k *keeper) goAway(ctx context.Context) error {
	if !acquire(ctx, k.quick) {
		return ctx.Err()
	}
	defer release(k.quick)
	err := k.open()
	if err == nil {
		k.know(0, 0)
		err = k.rules.Remove()
	}
	if datapath.FaultOf(err) != "" {
		return nil // the namespace is gone, or what is there is not heddle's
	}
	return err
}

// bring makes what stands what is wanted, the newest, and says which that was.
func (k *keeper) bring(ctx context.Context) (asked uint64, err error) {
	for refused := 0; ; {
		k.mu.Lock()
		want, look := k.want, k.look && !time.Now().Before(k.calm)
		asked, k.look = k.asked, k.look && !look
		known := k.known != 0
		if k.leave {
			k.mu.Unlock()
			return asked, nil
		}
		k.mu.Unlock()
		var todo []datapath.VIPChange
		if known {
			todo = datapath.ChangedVIPs(k.stand, want)
			if !look && len(todo) == 0 {
				k.finish(asked, nil)
				if len(k.ending) == 0 && len(k.gone) == 0 {
					return asked, nil
				}
			}
		}
		now := part(todo)
		slots := k.quick
		if len(now) < len(todo) || known && !look && len(todo) == 0 { // flows end after all have the rules
			slots = k.bulk
		}
		if !acquire(ctx, slots) {
			return asked, ctx.Err()
		}
		err := k.step(want, now, len(now) == len(todo), look)
		release(slots)
		switch {
		case errors.Is(err, datapath.ErrOtherGeneration) && refused < mostRefused:
			refused++
		case err != nil:
			return asked, err
		}
	}
}

// mostRefused is how often in a row others may be quicker.
const mostRefused = 5

func acquire(ctx context.Context, slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func release(slots chan struct{}) { <-slots }

// part are the first changes, as many as are done at once.
func part(todo []datapath.VIPChange) []datapath.VIPChange {
	size := 0
	for i, c := range todo {
		if c.Now != nil {
			for _, p := range c.Now.Ports {
				size += len(p.Backends)
			}
		}
		if size += perVIP; size >= chunk {
			return todo[:i+1]
		}
	}
	return todo
}

func (k *keeper) open() (err error) {
	k.used = time.Now()
	if k.rules != nil {
		if now, err := k.kernel.Inode(k.ns); err == nil && now == k.inode {
			return nil
		}
		k.close()
	}
	if k.rules, err = k.kernel.Open(k.ns); err != nil {
		k.rules = nil
		return err
	}
	if inode := k.rules.Inode(); inode != k.inode { // a namespace of heddle's was made anew
		k.inode = inode
		k.know(0, 0)
	}
	return nil
}

// step does one thing: it reads, or writes changes, or ends flows after the last of them.
func (k *keeper) step(want []*datapath.VIP, changes []datapath.VIPChange, last, look bool) error {
	defer func() { k.used = time.Now() }()
	if err := k.open(); err != nil {
		return err
	}
	if look && k.known != 0 {
		now, err := k.rules.Generation()
		if err != nil {
			return err
		}
		if now != k.known {
			k.know(0, 0)
		}
	}
	switch {
	case k.known == 0:
		return k.read(want)
	case len(changes) > 0 && len(want) == 0:
		return k.remove()
	case len(changes) > 0:
		return k.write(want, changes, last)
	}
	return k.flush()
}

// read finds out what stands. What flows there are nobody knows.
func (k *keeper) read(want []*datapath.VIP) error {
	begin := time.Now()
	s, err := k.rules.Read(want)
	k.calm = time.Now().Add(reading * time.Since(begin))
	if err != nil {
		return err
	}
	k.stand, k.there = s.VIPs, s.Sound
	if len(want) == 0 && s.There {
		return k.remove()
	}
	for _, v := range want {
		k.ending[v.Service] = v
	}
	k.know(s.Generation, 0)
	return nil
}

// remove takes all away, where no VIP is wanted: without rules no connection is tracked.
func (k *keeper) remove() error {
	k.know(0, 0)
	if err := k.rules.Remove(); err != nil {
		return err
	}
	k.stand, k.there = nil, false
	clear(k.ending)
	clear(k.gone)
	now, err := k.rules.Generation()
	if err == nil {
		k.know(now, 0)
	}
	return err
}

func (k *keeper) write(want []*datapath.VIP, changes []datapath.VIPChange, last bool) error {
	k.know(k.known, k.known+1)
	now, err := k.rules.Write(k.known, !k.there, changes)
	if err != nil {
		k.know(0, 0)
		return err
	}
	k.know(now, 0)
	if k.there = true; last {
		k.stand = want
	} else {
		k.stand = datapath.WithChanges(k.stand, changes)
	}
	for _, c := range changes {
		if c.Ends() {
			k.end(c)
		}
	}
	return nil
}

func (k *keeper) end(c datapath.VIPChange) {
	delete(k.ending, c.Was.Service)
	for _, a := range c.Was.Addrs {
		k.gone[a] = true
	}
	if c.Now != nil {
		k.ending[c.Now.Service] = c.Now
	}
}

// flush ends the flows that are to end, by what stands now.
func (k *keeper) flush() error {
	if len(k.ending) == 0 && len(k.gone) == 0 {
		return nil
	}
	var now []*datapath.VIP
	for _, v := range k.stand {
		looked := k.ending[v.Service] != nil
		for _, a := range v.Addrs {
			looked = looked || k.gone[a]
			delete(k.gone, a)
		}
		if looked {
			now = append(now, v)
		}
	}
	var gone []netip.Addr
	for a := range k.gone {
		gone = append(gone, a)
	}
	if err := k.rules.Flush(now, gone); err != nil {
		return err
	}
	clear(k.ending)
	clear(k.gone)
	return nil
}
