package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/datapathtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	workloadA = datapath.NS{Path: "/proc/1/ns/net", Inode: 1}
	workloadB = datapath.NS{Path: "/proc/2/ns/net", Inode: 2}
	peer      = netip.MustParseAddr("192.0.2.2")
)

func sample(endpoints ...datapathtest.Endpoint) datapath.Config {
	return datapathtest.Overlay{
		ID: "n1", VNI: datapathtest.MinVNI, Local: netip.MustParseAddr("192.0.2.1"), Members: []netip.Addr{peer}, Endpoints: endpoints,
	}.Config()
}

// start runs a loop until the test ends or the returned function is called.
func start(t *testing.T, k Kernel) (*Loop, func()) {
	t.Helper()
	l, err := New(k, Config{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stop := func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		done <- context.Canceled
	}
	t.Cleanup(stop)
	return l, stop
}

// bubble runs fn with virtual time.
func bubble(t *testing.T, fn func(t *testing.T)) {
	if underRace {
		t.Skip("synctest crashes under -race")
	}
	synctest.Test(t, fn)
}

func wait(t *testing.T, l *Loop, gen uint64, owners ...datapath.Owner) {
	t.Helper()
	if err := l.Wait(t.Context(), gen, owners...); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, k *datapathtest.Kernel, c datapath.Config) {
	t.Helper()
	if got, want := k.String(), datapathtest.StateOf(c).String(); got != want {
		t.Fatalf("the kernel holds\n%swant\n%s", got, want)
	}
}

func newKernel() *datapathtest.Kernel {
	k := datapathtest.NewKernel()
	k.AddWorkload(workloadA)
	k.AddWorkload(workloadB)
	return k
}

func TestComesGoesAndIsAdopted(t *testing.T) {
	k := newKernel()
	l, stop := start(t, k)
	local := datapathtest.Endpoint{N: 1, NS: workloadA}
	c := sample(local, datapathtest.Endpoint{N: 2, VTEP: peer})
	wait(t, l, l.Set(c), "n1", local.Owner())
	expect(t, k, c)
	k.Ops()
	wait(t, l, l.Set(c), "n1")
	stop()

	l, _ = start(t, k)
	gen := l.Set(c)
	wait(t, l, gen, "n1")
	if ops := k.Ops(); len(ops) > 0 {
		t.Errorf("operations though all was right: %v", ops)
	}
	if s := l.Status(); s.Applied != gen || s.Ops != 0 || s.Read.IsZero() || len(s.Drift) > 0 {
		t.Errorf("status %+v", s)
	}
	wait(t, l, l.Set(datapath.Config{}), "n1")
	expect(t, k, datapath.Config{})
}

func TestNothingIsTouchedBeforeSet(t *testing.T) {
	c := sample(datapathtest.Endpoint{N: 1, NS: workloadA})
	bubble(t, func(t *testing.T) {
		k := newKernel()
		k.Edit(func(s *datapath.State) { *s = *datapathtest.StateOf(c) })
		l, stop := start(t, k)
		l.Doubt()
		time.Sleep(time.Hour)
		stop()
		if ops := k.Ops(); len(ops) > 0 || k.Reads() > 0 {
			t.Errorf("%d readings, operations %v", k.Reads(), ops)
		}
	})
}

func TestBrokenWorkloadFailsAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		k := newKernel()
		k.DelWorkload(workloadA)
		l, _ := start(t, k)
		broken, sound := datapathtest.Endpoint{N: 1, NS: workloadA}, datapathtest.Endpoint{N: 2, NS: workloadB}
		c := sample(broken, sound)
		gen := l.Set(c)
		wait(t, l, gen, "n1", sound.Owner())
		err := l.Wait(t.Context(), gen, "n1", broken.Owner())
		if datapath.FaultOf(err) != datapath.NoNamespace {
			t.Errorf("the broken one: %v", err)
		}
		if n := k.Reads(); n != 1 {
			t.Errorf("%d readings; a known fault is no doubt", n)
		}
		k.AddWorkload(workloadA)
		time.Sleep(time.Minute)
		wait(t, l, gen, broken.Owner())
		expect(t, k, c)
	})
}

func TestBrokenNetworkNamesItsCause(t *testing.T) {
	k := newKernel()
	k.FailWith(func(op datapath.Op) error {
		if op, ok := op.(datapath.SetNamespace); ok && op.Name == "heddle-n1" {
			return datapath.Errorf(datapath.Foreign, "namespace heddle-n1 is not heddle's")
		}
		return nil
	})
	l, _ := start(t, k)
	e := datapathtest.Endpoint{N: 1, NS: workloadA}
	gen := l.Set(sample(e))
	if err := l.Wait(t.Context(), gen, e.Owner()); datapath.FaultOf(err) != datapath.Foreign {
		t.Errorf("the endpoint of a broken network: %v", err)
	}
}

func TestNoAllowSetNoVXLAN(t *testing.T) {
	k := newKernel()
	k.FailWith(func(op datapath.Op) error {
		if _, ok := op.(datapath.SetFilter); ok {
			return datapath.Errorf(datapath.Unsupported, "no nf_tables")
		}
		return nil
	})
	l, _ := start(t, k)
	gen := l.Set(sample())
	if err := l.Wait(t.Context(), gen, "n1"); datapath.FaultOf(err) != datapath.Unsupported {
		t.Errorf("without a filter: %v", err)
	}
	if strings.Contains(k.String(), "local 192.0.2.1 up") {
		t.Error("the VXLAN device is up without an allow-set")
	}
}

func TestUnexpectedFailureIsLookedAtAtOnce(t *testing.T) {
	k := newKernel()
	l, _ := start(t, k)
	c := sample()
	wait(t, l, l.Set(c), "n1")
	k.Edit(func(s *datapath.State) { s.Apply(datapath.DelNamespace{Namespace: c.Namespaces[0]}) })
	c = sample(datapathtest.Endpoint{N: 1, NS: workloadA})
	wait(t, l, l.Set(c), "n1", "endpoint1")
	expect(t, k, c)
	if d := l.Status().Drift; d["namespace"] != 1 || d["link"] != 2 {
		t.Errorf("drift %v", d)
	}
}

func TestDriftIsRepairedInTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		k := newKernel()
		l, _ := start(t, k)
		c := sample(datapathtest.Endpoint{N: 1, VTEP: peer})
		wait(t, l, l.Set(c), "n1")
		for _, wakeUp := range []func(){func() { time.Sleep(31 * time.Second) }, func() { l.Doubt(); synctest.Wait() }} {
			k.Edit(func(s *datapath.State) { clear(s.FDB); clear(s.Neighbors) })
			wakeUp()
			expect(t, k, c)
		}
		if d := l.Status().Drift; d["fdb"] != 2 || d["neighbor"] != 4 {
			t.Errorf("drift %v", d)
		}
	})
}

// What notifications tell is repaired at once; what they tell of the loop's own doing, and noise,
// costs no reading.
func TestNews(t *testing.T) {
	bubble(t, func(t *testing.T) {
		k := newKernel()
		l, _ := start(t, k)
		c := sample(datapathtest.Endpoint{N: 1, VTEP: peer})
		wait(t, l, l.Set(c), "n1")
		for range 100 {
			k.Tell(datapath.NeighborNews{Neighbor: c.Neighbors[0]}, datapath.FDBNews{FDBEntry: c.FDB[0], Self: true})
			time.Sleep(10 * time.Millisecond)
		}
		if n := k.Reads(); n != 1 {
			t.Errorf("%d readings because of what was done here", n-1)
		}
		for _, news := range [][]datapath.News{{datapath.NeighborNews{Neighbor: c.Neighbors[0], Gone: true}}, nil} { // nil: lost
			before := k.Reads()
			k.Edit(func(s *datapath.State) { clear(s.Neighbors) })
			k.Tell(news...)
			time.Sleep(100 * time.Millisecond)
			expect(t, k, c)
			if n := k.Reads() - before; n != 1 {
				t.Errorf("%d readings", n)
			}
		}
	})
}

func TestLastingFailureIsTriedLessAndLess(t *testing.T) {
	bubble(t, func(t *testing.T) {
		k := newKernel()
		tries := 0
		k.FailWith(func(op datapath.Op) error {
			if op.Owner() == "endpoint1" {
				tries++
				return errors.New("input/output error")
			}
			return nil
		})
		l, _ := start(t, k)
		gen := l.Set(sample(datapathtest.Endpoint{N: 1, NS: workloadA}, datapathtest.Endpoint{N: 2, NS: workloadB}))
		if err := l.Wait(t.Context(), gen, "endpoint1"); err == nil {
			t.Error("no error for the failing one")
		}
		wait(t, l, gen, "endpoint2")
		time.Sleep(10 * time.Minute)
		if tries > 60 || k.Reads() > 60 || tries < 20 {
			t.Errorf("%d tries, %d readings in ten minutes", tries, k.Reads())
		}
		k.FailWith(nil)
		time.Sleep(30 * time.Second)
		wait(t, l, gen, "endpoint1")
	})
}

func TestWaitEnds(t *testing.T) {
	l, err := New(newKernel(), Config{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Wait(ctx, l.Set(sample())); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait without Run: %v", err)
	}
}

func TestConfig(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    Config
		want string
	}{
		{"defaults", Config{}, ""},
		{"negative", Config{Resync: -1}, "Resync"},
		{"crossed", Config{RetryMin: time.Hour}, "RetryMin"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.c.Validate()
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q in it", err, tt.want)
			}
		})
	}
}
