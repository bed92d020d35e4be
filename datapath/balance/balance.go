// Package balance keeps the rules for service addresses as wanted, in each namespace where programs
// ask for services.
//
// Each namespace has a keeper of its own, so that neither a large load nor one that fails holds up
// the others, or anything else: not a start, not an attachment. What changes is written alone, all
// that waits for a namespace in one transaction. What is right is never touched; a daemon that ends
// leaves all as it is.
package balance

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/heddle-net/heddle/datapath"
)

// Rules are the rules for service addresses of an open namespace, which they keep alive until they
// are closed. One goroutine uses them.
type Rules interface {
	// Inode is the namespace's.
	Inode() uint64
	// Generation names the state of all rules there; each transaction makes another.
	Generation() (uint32, error)
	// Read is what is there. An error with a datapath.Fault says what stands in the way.
	Read(want []*datapath.VIP) (datapath.Standing, error)
	// Write does all of the changes, or none where the generation is another. With anew it first
	// makes all that they have in common, in place of what is there.
	Write(generation uint32, anew bool, changes []datapath.VIPChange) (uint32, error)
	// Flush ends flows to VIPs whose backends are neither used nor kept, and all to addresses that
	// are none any more.
	Flush(now []*datapath.VIP, gone []netip.Addr) error
	// Remove takes all away.
	Remove() error
	Close()
}

// Kernel opens namespaces, and hears of changes in them.
type Kernel interface {
	Open(datapath.NS) (Rules, error)
	// Inode is that of the namespace which is at its path now.
	Inode(datapath.NS) (uint64, error)
	// Watch calls changed when rules in a namespace that was opened have changed, with their
	// generation then, or 0 when it may be another namespace. With lost some calls are missing.
	Watch(ctx context.Context, changed func(ns datapath.NS, generation uint32, lost bool)) error
	// Forget says that a namespace is of no more interest.
	Forget(datapath.NS)
}

// Config sets the loop's bounds and timing. Zero values mean the defaults.
type Config struct {
	Sweep    time.Duration // between two looks for changes that nobody told of; 30 s
	RetryMin time.Duration // until what failed is tried again, doubling; 20 ms
	RetryMax time.Duration // 30 s
}

const (
	atOnce  = 4                     // namespaces that are changed at a time
	loads   = 2                     // and those of them that take more than one transaction
	chunk   = 1000                  // backends, or so, in a transaction
	perVIP  = 10                    // backends that a VIP's own cost is worth
	linger  = 50 * time.Millisecond // after which a namespace is closed: to close it at once takes as long as a change
	reading = 10                    // one part of so many of the time is spent on reading because of others' changes
)

// Loop keeps all namespaces. Its methods may be called from any goroutine.
type Loop struct {
	kernel Kernel
	cfg    Config
	log    *slog.Logger
	quick  chan struct{} // slots
	bulk   chan struct{}
	work   sync.WaitGroup

	mu      sync.Mutex
	keepers map[datapath.NS]*keeper
	run     context.Context // nil while nothing runs
	moved   chan struct{}   // closed and replaced when a keeper has done something
}

// New makes a loop that does nothing before Run.
func New(k Kernel, cfg Config, log *slog.Logger) *Loop {
	for v, def := range map[*time.Duration]time.Duration{&cfg.Sweep: 30 * time.Second, &cfg.RetryMin: 20 * time.Millisecond, &cfg.RetryMax: 30 * time.Second} {
		if *v == 0 {
			*v = def
		}
	}
	return &Loop{
		kernel: k, cfg: cfg, log: log, quick: make(chan struct{}, atOnce), bulk: make(chan struct{}, loads),
		keepers: map[datapath.NS]*keeper{}, moved: make(chan struct{}),
	}
}

// Set says which VIPs are wanted in which namespaces. In a namespace that is not among them all goes.
// Neither the slice nor anything behind it must be changed afterwards.
func (l *Loop) Set(all []datapath.Balancer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	wanted := make(map[datapath.NS]bool, len(all))
	for _, b := range all {
		wanted[b.NS] = true
		k := l.keepers[b.NS]
		if k == nil {
			k = newKeeper(l, b.NS)
			l.keepers[b.NS] = k
			if l.run != nil {
				l.start(k)
			}
		}
		k.ask(b.VIPs, false)
	}
	for ns, k := range l.keepers {
		if !wanted[ns] {
			k.ask(nil, true)
		}
	}
}

func (l *Loop) start(k *keeper) {
	ctx := l.run
	l.work.Go(func() { k.keep(ctx) })
}

// Wait returns when what was set for the namespaces before has been worked on: nil when all of it is
// in force, else what stands in the way of the first that lacks something.
func (l *Loop) Wait(ctx context.Context, places ...datapath.NS) error {
	for {
		l.mu.Lock()
		moved, busy := l.moved, false
		var failed error
		for _, ns := range places {
			if k := l.keepers[ns]; k != nil {
				done, err := k.settled()
				busy = busy || !done
				if failed == nil {
					failed = err
				}
			}
		}
		l.mu.Unlock()
		if !busy {
			return failed
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for service addresses: %w", ctx.Err())
		}
	}
}

// Errs are what stands in the way, by namespace.
func (l *Loop) Errs() map[datapath.NS]error {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[datapath.NS]error{}
	for ns, k := range l.keepers {
		if _, err := k.settled(); err != nil {
			out[ns] = err
		}
	}
	return out
}

func (l *Loop) signal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.moved)
	l.moved = make(chan struct{})
}

// retire lets go of a keeper whose namespace is not wanted, unless it is again.
func (l *Loop) retire(k *keeper) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !k.unwanted() {
		return false
	}
	delete(l.keepers, k.ns)
	l.kernel.Forget(k.ns)
	return true
}

// Run works until ctx ends, and leaves all as it is.
func (l *Loop) Run(ctx context.Context) error {
	defer l.work.Wait()
	l.mu.Lock()
	l.run = ctx
	for _, k := range l.keepers {
		l.start(k)
	}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.run = nil
		l.mu.Unlock()
	}()
	l.work.Go(func() { l.watch(ctx) })
	sweep := time.NewTicker(l.cfg.Sweep)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-sweep.C:
			l.lookAtAll()
		}
	}
}

func (l *Loop) lookAtAll() {
	l.mu.Lock()
	all := maps.Clone(l.keepers)
	l.mu.Unlock()
	for _, k := range all {
		k.hear(0)
	}
}

// watch passes news on to the keepers.
func (l *Loop) watch(ctx context.Context) {
	for ctx.Err() == nil {
		err := l.kernel.Watch(ctx, func(ns datapath.NS, generation uint32, lost bool) {
			if lost {
				l.lookAtAll()
				return
			}
			l.mu.Lock()
			k := l.keepers[ns]
			l.mu.Unlock()
			if k != nil {
				k.hear(generation)
			}
		})
		if ctx.Err() != nil {
			return
		}
		l.log.Warn("changes of the rules for service addresses are seen late, at the next sweep; trying again", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(l.cfg.RetryMax):
		}
	}
}
