//go:build linux

package main

import (
	"os"
	"testing"

	"github.com/heddle-net/heddle/e2e/lab"
)

func TestMedianInterval(t *testing.T) {
	var hundred []float64
	for i := range 100 {
		hundred = append(hundred, float64(99-i))
	}
	for _, tc := range []struct {
		samples   []float64
		low, high float64
	}{
		{[]float64{7}, 7, 7},
		{[]float64{3, 1}, 1, 3},
		{hundred, 40, 60},
	} {
		if low, high := medianInterval(tc.samples); low != tc.low || high != tc.high {
			t.Errorf("of %d samples: %v to %v, not %v to %v", len(tc.samples), low, high, tc.low, tc.high)
		}
	}
}

// A flow goes by the VXLAN, in both families, and counts what arrives.
func TestFlows(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces")
	}
	l, err := lab.New(t.Context(), t.Name(), lab.Config{Hosts: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w, err := handmade(t.Context(), l.Host(1), l.Host(2), 1450)
	if err != nil {
		t.Fatal(err)
	}
	var last flow
	for _, f := range []family{ipv4, ipv6} {
		for name, open := range map[string]func(family) (flow, error){tcp: w.stream, udp: w.packets} {
			flow, err := open(f)
			if err != nil {
				t.Fatal(err)
			}
			defer flow.close()
			if rate, err := flow.run(); err != nil || rate <= 0 {
				t.Errorf("%s over %s: %v, %v", name, f, rate, err)
			}
			if name == udp {
				last = flow
			}
		}
	}
	if err := l.Cut(l.Host(2)); err != nil {
		t.Fatal(err)
	}
	if rate, err := last.run(); err != nil || rate != 0 {
		t.Errorf("over a cut cable: %v, %v; want none", rate, err)
	}
}
