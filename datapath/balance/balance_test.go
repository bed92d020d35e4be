package balance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/datapath"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a kernel: namespaces with what is in force there.
type world struct {
	mu      sync.Mutex
	places  map[datapath.NS]*place
	changed func(datapath.NS, uint32, bool)
	open    int
}

type place struct {
	*world
	ns         datapath.NS
	inode      uint64
	generation uint32
	there      bool
	vips       []*datapath.VIP
	writes     [][]datapath.VIPChange
	flushed    [][]*datapath.VIP
	reads      int
	fail       error
	cost       time.Duration // of a write
}

func newWorld(names ...datapath.NS) *world {
	w := &world{places: map[datapath.NS]*place{}}
	for i, ns := range names {
		w.places[ns] = &place{world: w, ns: ns, inode: uint64(i + 1), generation: 1}
	}
	return w
}

func (w *world) Open(ns datapath.NS) (Rules, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.places[ns]
	if p == nil {
		return nil, datapath.Errorf(datapath.NoNamespace, "no namespace %s", ns)
	}
	w.open++
	return p, nil
}

func (w *world) Inode(ns datapath.NS) (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.places[ns]
	if p == nil {
		return 0, datapath.Errorf(datapath.NoNamespace, "no namespace %s", ns)
	}
	return p.inode, nil
}

func (w *world) Forget(datapath.NS) {}

func (w *world) Watch(ctx context.Context, changed func(datapath.NS, uint32, bool)) error {
	w.mu.Lock()
	w.changed = changed
	w.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

// do has something done in a namespace, by somebody else.
func (w *world) do(ns datapath.NS, f func(p *place)) {
	w.mu.Lock()
	p := w.places[ns]
	f(p)
	p.generation++
	g, changed := p.generation, w.changed
	w.mu.Unlock()
	changed(ns, g, false)
}

func (w *world) look(ns datapath.NS, f func(p *place)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w.places[ns])
}

func (p *place) Inode() uint64 { return p.inode }

func (p *place) Generation() (uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.generation, nil
}

func (p *place) Read(want []*datapath.VIP) (datapath.Standing, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reads++
	return datapath.Standing{Generation: p.generation, There: p.there, Sound: p.there, VIPs: p.vips}, p.fail
}

func (p *place) Write(g uint32, anew bool, changes []datapath.VIPChange) (uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g != p.generation {
		return 0, datapath.ErrOtherGeneration
	}
	if p.fail != nil {
		return 0, p.fail
	}
	if anew != !p.there {
		return 0, fmt.Errorf("made anew: %v", anew)
	}
	cost := p.cost
	p.mu.Unlock()
	time.Sleep(cost)
	p.mu.Lock()
	p.there, p.writes = true, append(p.writes, slices.Clone(changes))
	p.vips = datapath.WithChanges(p.vips, changes)
	p.generation++
	if p.changed != nil {
		p.changed(p.ns, p.generation, false)
	}
	return p.generation, nil
}

func (p *place) Flush(now []*datapath.VIP, gone []netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flushed = append(p.flushed, now)
	return nil
}

func (p *place) Remove() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.there, p.vips = false, nil
	p.generation++
	return nil
}

func (p *place) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
}

func vip(n, backends int) *datapath.VIP {
	p := datapath.VIPPort{Proto: "udp", Port: 53}
	for i := range backends {
		p.Backends = append(p.Backends, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 53))
	}
	return &datapath.VIP{Service: fmt.Sprintf("%05d", n), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})}, Ports: []datapath.VIPPort{p}}
}

func vips(n, backends int) (out []*datapath.VIP) {
	for i := range n {
		out = append(out, vip(i, backends))
	}
	return out
}

var a, b = datapath.NS{Path: "/a", Inode: 1}, datapath.NS{Path: "/b", Inode: 2}

// bubble runs a loop with virtual time.
func bubble(t *testing.T, w *world, fn func(t *testing.T, l *Loop)) {
	synctest.Test(t, func(t *testing.T) {
		l := New(w, Config{}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		synctest.Wait()
		fn(t, l)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if w.open != 0 {
			t.Errorf("%d namespaces are still open", w.open)
		}
	})
}

func (w *world) stands(t *testing.T, ns datapath.NS, want []*datapath.VIP) {
	t.Helper()
	w.look(ns, func(p *place) {
		if !slices.Equal(p.vips, want) || p.there != (len(want) > 0) {
			t.Errorf("%d VIPs are in force in %s, want %d", len(p.vips), ns, len(want))
		}
	})
}

// A change is one transaction, of what has changed; what is right is not written, after a start
// neither.
func TestChangesAlone(t *testing.T) {
	w := newWorld(a, b)
	all := vips(3, 2)
	w.places[a].vips, w.places[a].there = all, true
	bubble(t, w, func(t *testing.T, l *Loop) {
		l.Set([]datapath.Balancer{{NS: a, VIPs: all}, {NS: b, VIPs: all[:1]}})
		if err := l.Wait(t.Context(), a, b); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.look(a, func(p *place) {
			if len(p.writes) > 0 || len(p.flushed) != 1 || len(p.flushed[0]) != 3 {
				t.Errorf("what was there was written %v, and flows looked at %v", p.writes, p.flushed)
			}
		})
		next := slices.Clone(all)
		next[1] = vip(1, 1)
		l.Set([]datapath.Balancer{{NS: a, VIPs: next}, {NS: b, VIPs: all[:1]}})
		if err := l.Wait(t.Context(), a, b); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.stands(t, a, next)
		w.look(a, func(p *place) {
			if len(p.writes) != 1 || len(p.writes[0]) != 1 || p.writes[0][0] != (datapath.VIPChange{Was: all[1], Now: next[1]}) {
				t.Errorf("written: %v", p.writes)
			}
			if len(p.flushed) != 2 || len(p.flushed[1]) != 1 || p.flushed[1][0] != next[1] {
				t.Errorf("flows looked at: %v", p.flushed)
			}
		})
		w.look(b, func(p *place) {
			if len(p.writes) != 1 {
				t.Errorf("in the other namespace: %v", p.writes)
			}
		})
		time.Sleep(time.Second)
		w.look(a, func(p *place) {
			if p.reads != 1 || p.open != 0 {
				t.Errorf("read %d times; %d namespaces are open", p.reads, p.open)
			}
		})
		l.Set([]datapath.Balancer{{NS: a}})
		time.Sleep(time.Second)
		w.stands(t, a, nil)
		w.stands(t, b, nil)
	})
}

// A namespace that is loaded with much, or fails, holds up neither the others nor what changes
// meanwhile in it.
func TestLoadsHoldUpNobody(t *testing.T) {
	c, d := datapath.NS{Path: "/c"}, datapath.NS{Path: "/d"}
	w := newWorld(a, b, c, d)
	many, few := vips(2000, 10), vips(2, 1)
	for _, ns := range []datapath.NS{a, c, d} {
		w.places[ns].cost = 20 * time.Millisecond
	}
	bubble(t, w, func(t *testing.T, l *Loop) {
		l.Set([]datapath.Balancer{{NS: a, VIPs: many}, {NS: b, VIPs: few}, {NS: c, VIPs: many}, {NS: d, VIPs: many}, {NS: datapath.NS{Path: "/missing"}, VIPs: many}})
		begin := time.Now()
		if err := l.Wait(t.Context(), b); err != nil || time.Since(begin) > 0 {
			t.Errorf("the small one took %s, %v", time.Since(begin), err)
		}
		time.Sleep(100 * time.Millisecond) // a load is under way
		next := slices.Clone(many)
		next[0] = vip(0, 3)
		l.Set([]datapath.Balancer{{NS: a, VIPs: next}, {NS: b, VIPs: few[:1]}})
		begin = time.Now()
		if err := l.Wait(t.Context(), b); err != nil || time.Since(begin) > 0 {
			t.Errorf("a small change took %s, %v", time.Since(begin), err)
		}
		for range 10 {
			time.Sleep(10 * time.Millisecond)
		}
		w.look(a, func(p *place) {
			if len(p.vips) == len(many) || len(p.vips) == 0 || p.vips[0] != next[0] {
				t.Errorf("a change waits for the load: %d there", len(p.vips))
			}
		})
		if err := l.Wait(t.Context(), a); err != nil {
			t.Error(err)
		}
		w.stands(t, a, next)
		if err := l.Errs()[datapath.NS{Path: "/missing"}]; err != nil {
			t.Errorf("of a namespace that is not wanted any more: %v", err)
		}
	})
}

// A namespace that is made late has its rules soon afterwards, and nobody is told: who makes it is.
func TestNamespacesComeLate(t *testing.T) {
	w := newWorld()
	all := vips(5, 2)
	bubble(t, w, func(t *testing.T, l *Loop) {
		var said strings.Builder
		l.log = slog.New(slog.NewTextHandler(&said, nil))
		l.Set([]datapath.Balancer{{NS: a, VIPs: all}})
		time.Sleep(10 * time.Second)
		w.mu.Lock()
		w.places[a] = &place{world: w, ns: a, inode: 1, generation: 1}
		w.mu.Unlock()
		begin := time.Now()
		for l.Wait(t.Context(), a) != nil && time.Since(begin) < time.Minute {
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(begin); took > 300*time.Millisecond {
			t.Errorf("it was %s without its rules", took)
		}
		w.stands(t, a, all)
		if said.Len() > 0 {
			t.Errorf("it was said: %s", said.String())
		}
	})
}

// A namespace that goes, and comes again at once as another, has its rules: whether the keeper of the one
// before rests, has it open still, or is writing there.
func TestNamespacesComeAgain(t *testing.T) {
	for name, rest := range map[string]time.Duration{"rests": time.Second, "has it open": 20 * time.Millisecond, "writes": 0} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(a)
			w.places[a].cost = 10 * time.Millisecond
			all := vips(5, 2)
			bubble(t, w, func(t *testing.T, l *Loop) {
				l.Set([]datapath.Balancer{{NS: a, VIPs: all}})
				time.Sleep(5*time.Millisecond + rest)
				l.Set(nil)
				w.mu.Lock()
				w.places[a] = &place{world: w, ns: a, inode: 7, generation: 1}
				w.mu.Unlock()
				l.Set([]datapath.Balancer{{NS: a, VIPs: all}})
				if err := l.Wait(t.Context(), a); err != nil {
					t.Error(err)
				}
				w.stands(t, a, all)
			})
		})
	}
}

// What others destroy is repaired as soon as it is told, and at the sweep when it is not.
func TestRepairs(t *testing.T) {
	w := newWorld(a)
	all := vips(5, 2)
	bubble(t, w, func(t *testing.T, l *Loop) {
		l.Set([]datapath.Balancer{{NS: a, VIPs: all}})
		time.Sleep(time.Second)
		w.do(a, func(p *place) { p.there, p.vips = false, nil })
		time.Sleep(10 * time.Millisecond)
		w.stands(t, a, all)
		w.look(a, func(p *place) { p.there, p.vips = false, nil; p.generation++ })
		time.Sleep(31 * time.Second)
		w.stands(t, a, all)
		w.look(a, func(p *place) { p.inode, p.there, p.vips, p.generation = 77, false, nil, 1 }) // made anew by heddle
		w.changed(a, 0, false)
		time.Sleep(10 * time.Millisecond)
		w.stands(t, a, all)
		for range 1000 { // others change rules of their own
			w.do(a, func(*place) {})
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		l.Set([]datapath.Balancer{{NS: a, VIPs: all[1:]}})
		w.look(a, func(p *place) { p.generation++ }) // nobody has told of it yet
		if err := l.Wait(t.Context(), a); err != nil {
			t.Error(err)
		}
		w.stands(t, a, all[1:])
	})
}

// What fails is tried again, less and less, and told to who waits.
func TestFailuresAreTriedAgain(t *testing.T) {
	w := newWorld(a)
	bubble(t, w, func(t *testing.T, l *Loop) {
		broken := errors.New("broken")
		w.look(a, func(p *place) { p.fail = broken })
		l.Set([]datapath.Balancer{{NS: a, VIPs: vips(1, 1)}})
		if err := l.Wait(t.Context(), a); !errors.Is(err, broken) || !errors.Is(l.Errs()[a], broken) {
			t.Errorf("%v, %v", err, l.Errs())
		}
		time.Sleep(time.Hour)
		w.look(a, func(p *place) {
			if p.reads < 100 || p.reads > 300 { // at the sweeps too
				t.Errorf("read %d times in an hour", p.reads)
			}
			p.fail = nil
		})
		time.Sleep(31 * time.Second)
		if err := l.Wait(t.Context(), a); err != nil || len(l.Errs()) > 0 {
			t.Errorf("%v, %v", err, l.Errs())
		}
	})
}
