// Package reconcile keeps the kernel as wanted: one loop that compares what the kernel
// holds with the wanted state and does what is missing.
//
// What the kernel holds is kept as a mirror that every operation updates, so that a change
// costs operations in proportion to itself. The kernel is read whole at start, on doubt and
// on a slow timer. What is right is never touched; a daemon that ends leaves all as it is.
package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/heddle-net/heddle/datapath"
)

// Kernel is what the loop needs of the kernel. It is used by the loop's goroutine alone.
type Kernel interface {
	// Read is everything that the kernel holds of heddle's.
	Read(ctx context.Context, want *datapath.Config) (*datapath.State, error)
	// Apply does one operation. An error with a datapath.Fault changes nothing and says
	// what stands in the way; after any other the kernel must be read again.
	Apply(ctx context.Context, op datapath.Op) error
	// ApplyEntries does a run of operations on entries, as datapath.Runs makes them. The Nth error
	// is of the Nth operation, and like one of Apply.
	ApplyEntries(ctx context.Context, ops []datapath.Op) []error
	// Release is called after each round: what is open of others' namespaces is closed.
	Release()
	// Stirred signals that TakeNews has something.
	Stirred() <-chan struct{}
	// TakeNews is what notifications said since the last call, whoever made the changes. With
	// lost some are missing.
	TakeNews() (news []datapath.News, lost bool)
}

// Config sets the loop's timing. Zero values mean the defaults.
type Config struct {
	Resync   time.Duration // between two full readings; 30 s
	RetryMin time.Duration // until what failed is tried again, doubling; 100 ms
	RetryMax time.Duration // 30 s
}

// Validate sets defaults and refuses what can't work.
func (c *Config) Validate() error {
	for _, d := range []struct {
		name string
		v    *time.Duration
		def  time.Duration
	}{{"Resync", &c.Resync, 30 * time.Second}, {"RetryMin", &c.RetryMin, 100 * time.Millisecond}, {"RetryMax", &c.RetryMax, 30 * time.Second}} {
		if *d.v < 0 {
			return fmt.Errorf("reconcile: %s is %v; use a positive duration, or 0 for %v", d.name, *d.v, d.def)
		}
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if c.RetryMin > c.RetryMax {
		return fmt.Errorf("reconcile: RetryMin %v is more than RetryMax %v; lower it", c.RetryMin, c.RetryMax)
	}
	return nil
}

// Status is what the loop knows of itself.
type Status struct {
	Set     uint64                   // newest generation that was set
	Applied uint64                   // newest generation that was worked on to its end
	Errors  map[datapath.Owner]error // what could not be done, by owner; "" is the node as a whole
	Drift   map[string]uint64        // operations that repaired what others had changed, by kind
	Read    time.Time                // when the kernel was last read whole
	Ops     uint64                   // operations done
}

// Loop is the reconciler. Its methods may be called from any goroutine.
type Loop struct {
	kernel Kernel
	cfg    Config
	log    *slog.Logger
	wake   chan struct{} // size 1: something to look at
	plans  chan plan

	mu     sync.Mutex
	want   *datapath.Config
	status Status
	doubt  bool
	done   chan struct{} // closed and replaced at the end of each round
}

// New makes a loop that does nothing before Run. Until the first Set it touches nothing.
func New(k Kernel, cfg Config, log *slog.Logger) (*Loop, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Loop{
		kernel: k, cfg: cfg, log: log,
		wake:   make(chan struct{}, 1),
		plans:  make(chan plan),
		done:   make(chan struct{}),
		status: Status{Errors: map[datapath.Owner]error{}, Drift: map[string]uint64{}},
	}, nil
}

// Set makes c the wanted state and returns its generation, for Wait. c must not be changed
// afterwards.
func (l *Loop) Set(c datapath.Config) uint64 {
	l.mu.Lock()
	l.want = &c
	l.status.Set++
	gen := l.status.Set
	l.mu.Unlock()
	l.signal()
	return gen
}

// Doubt says that the kernel may not be as it was left, so that it is read again at once.
func (l *Loop) Doubt() {
	l.mu.Lock()
	l.doubt = true
	l.mu.Unlock()
	l.signal()
}

func (l *Loop) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Wait returns when the generation, or a later one, was worked on: nil when everything of
// these owners is in the kernel, else what stands in the way of the first that lacks
// something. Errors of the node as a whole count for every owner. Failed owners are tried
// again later, whoever waits.
func (l *Loop) Wait(ctx context.Context, gen uint64, owners ...datapath.Owner) error {
	for {
		l.mu.Lock()
		done := l.done
		if l.status.Applied >= gen {
			err := l.status.Errors[""]
			for _, o := range owners {
				if err == nil {
					err = l.status.Errors[o]
				}
			}
			l.mu.Unlock()
			return err
		}
		l.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("wait for the kernel's state: %w", ctx.Err())
		}
	}
}

// Status is a copy.
func (l *Loop) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.status
	s.Errors = maps.Clone(s.Errors)
	s.Drift = maps.Clone(s.Drift)
	return s
}

// Run works until ctx ends, and leaves the kernel as it is.
func (l *Loop) Run(ctx context.Context) error {
	w := worker{Loop: l}
	timer := time.NewTimer(l.cfg.Resync)
	defer timer.Stop()
	settle := time.NewTimer(0)
	<-settle.C
	defer settle.Stop()
	settling := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.kernel.Stirred():
			if !settling {
				settle.Reset(max(newsSettle, time.Until(w.calm)))
				settling = true
			}
			continue
		case p := <-l.plans:
			w.plan(p)
			continue
		case <-settle.C:
			settling = false
			if !w.surprised() {
				continue
			}
		case <-l.wake:
		case <-timer.C:
		}
		timer.Reset(w.round(ctx))
	}
}
