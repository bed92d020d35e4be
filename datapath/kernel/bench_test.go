package kernel

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/datapathtest"
	"github.com/heddle-net/heddle/datapath/netns"
)

// latencies reports the median and the 99th percentile.
func latencies(b *testing.B, d []time.Duration) {
	slices.Sort(d)
	b.ReportMetric(float64(d[len(d)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(d[len(d)*99/100].Microseconds()), "p99-us")
}

func benchNode(b *testing.B, remote int) *node {
	h := underlay(b, 1)[0]
	n := startNode(b, h, datapathtest.Overlay{ID: "n1", VNI: datapathtest.MinVNI + 1, Local: vtep(0), Members: nil})
	n.o.Members = append(n.o.Members, vtep(1))
	for i := range remote {
		n.o.Endpoints = append(n.o.Endpoints, datapathtest.Endpoint{N: 10000 + i, VTEP: vtep(1)})
	}
	n.apply(b)
	return n
}

// BenchmarkAttach is Set until the interface is up and its addresses usable.
func BenchmarkAttach(b *testing.B) {
	for _, made := range []bool{false, true} {
		b.Run(map[bool]string{false: "namespace of others", true: "own namespace"}[made], func(b *testing.B) {
			n := benchNode(b, 0)
			var took []time.Duration
			for i := range 100 {
				e := datapathtest.Endpoint{N: i + 1}
				if e.Make = fmt.Sprintf("w%d", i); !made {
					must(b, n.lab.Make(e.Make, func() error { return nil }))
					inode, err := netns.Inode(n.lab.Path(e.Make))
					must(b, err)
					e.NS, e.Make = datapath.NS{Path: n.lab.Path(e.Make), Inode: inode}, ""
				}
				n.o.Endpoints = append(n.o.Endpoints, e)
				start := time.Now()
				n.apply(b, e.Owner())
				took = append(took, time.Since(start))
			}
			latencies(b, took)
		})
	}
}

// BenchmarkRemote is Set until one remote endpoint more can be reached.
func BenchmarkRemote(b *testing.B) {
	for _, remote := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprint(remote, " there"), func(b *testing.B) {
			n := benchNode(b, remote)
			var took []time.Duration
			for i := range 100 {
				e := datapathtest.Endpoint{N: i + 1, VTEP: vtep(1)}
				n.o.Endpoints = append(n.o.Endpoints, e)
				c := n.o.Config()
				start := time.Now()
				must(b, n.loop.Wait(b.Context(), n.loop.Set(c), e.Owner()))
				took = append(took, time.Since(start))
			}
			latencies(b, took)
		})
	}
}

// BenchmarkNetwork is Set until an empty network is there.
func BenchmarkNetwork(b *testing.B) {
	h := underlay(b, 1)[0]
	n := startNode(b, h, datapathtest.Overlay{})
	var took []time.Duration
	var all datapath.Config
	for i := range 20 {
		c := datapathtest.Overlay{ID: fmt.Sprintf("n%d", i), VNI: datapathtest.MinVNI + uint32(i), Local: vtep(0)}.Config()
		all.Namespaces = append(all.Namespaces, c.Namespaces...)
		all.Links = append(all.Links, c.Links...)
		all.Addresses = append(all.Addresses, c.Addresses...)
		all.Filters = c.Filters
		start := time.Now()
		must(b, n.loop.Wait(b.Context(), n.loop.Set(all)))
		took = append(took, time.Since(start))
	}
	latencies(b, took)
}

// BenchmarkTenThousand programs 10,000 remote endpoints, and reads them.
func BenchmarkTenThousand(b *testing.B) {
	n := benchNode(b, 0)
	for i := range 10000 {
		n.o.Endpoints = append(n.o.Endpoints, datapathtest.Endpoint{N: 10000 + i, VTEP: vtep(1)})
	}
	c := n.o.Config()
	start := time.Now()
	must(b, n.loop.Wait(b.Context(), n.loop.Set(c), "n1"))
	b.ReportMetric(float64(time.Since(start).Milliseconds()), "write-ms")
	n.stop()
	start = time.Now()
	_, err := n.Read(b.Context(), &c)
	must(b, err)
	b.ReportMetric(float64(time.Since(start).Milliseconds()), "read-ms")
}
