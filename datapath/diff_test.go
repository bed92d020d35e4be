package datapath_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/datapathtest"
)

// drawConfig draws a wanted state out of a small world, so that successive draws collide.
func drawConfig(t *rapid.T, k *datapathtest.Kernel) datapath.Config {
	var c datapath.Config
	free := map[int]bool{}
	for i := range 4 {
		free[i] = true
		k.AddWorkload(workload(i))
	}
	vteps := []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("2001:db8::4")}
	for n := range rapid.IntRange(0, 2).Draw(t, "networks") {
		o := datapathtest.Overlay{ID: fmt.Sprintf("n%d", n), VNI: datapathtest.MinVNI + uint32(rapid.IntRange(0, 1).Draw(t, "vni")*2+n), Local: netip.MustParseAddr("192.0.2.1")}
		o.Members = vteps[:rapid.IntRange(0, 3).Draw(t, "members")]
		for e := range 4 {
			switch where := rapid.IntRange(0, 7).Draw(t, "endpoint"); {
			case where < 4 && free[where]:
				free[where] = false
				o.Endpoints = append(o.Endpoints, datapathtest.Endpoint{N: e, NS: workload(where)})
			case where < 6:
				o.Endpoints = append(o.Endpoints, datapathtest.Endpoint{N: e, VTEP: vteps[where%3]})
			case where == 6:
				o.Endpoints = append(o.Endpoints, datapathtest.Endpoint{N: e, Make: fmt.Sprintf("w%d-%d", n, e)})
			}
		}
		one := o.Config()
		if n == 0 && rapid.Bool().Draw(t, "sealed") {
			one = o.Sealed()
		}
		alter(t, &one)
		c.Namespaces = append(c.Namespaces, one.Namespaces...)
		c.Links = append(c.Links, one.Links...)
		c.Addresses = append(c.Addresses, one.Addresses...)
		c.Neighbors = append(c.Neighbors, one.Neighbors...)
		c.FDB = append(c.FDB, one.FDB...)
		c.Routes = append(c.Routes, one.Routes...)
		c.WGPeers = append(c.WGPeers, one.WGPeers...)
		addFilter(&c, one.Filters[0])
	}
	return c
}

func addFilter(c *datapath.Config, f datapath.Filter) {
	for i := range c.Filters {
		if c.Filters[i].NS == f.NS {
			c.Filters[i].Allowed = append(c.Filters[i].Allowed, f.Allowed...)
			return
		}
	}
	c.Filters = append(c.Filters, f)
}

func workload(i int) datapath.NS {
	return datapath.NS{Path: fmt.Sprintf("/proc/%d/ns/net", i), Inode: uint64(i + 1)}
}

// alter changes what can change in a network's own objects.
func alter(t *rapid.T, c *datapath.Config) {
	mtu := rapid.SampledFrom([]int{1450, 1400}).Draw(t, "mtu")
	for i := range c.Links {
		c.Links[i].MTU = mtu
		if c.Links[i].Kind != datapath.WireGuard && rapid.IntRange(0, 9).Draw(t, "mac") == 0 {
			c.Links[i].MAC[5] ^= 0x80
		}
	}
	if bits := rapid.IntRange(13, 16).Draw(t, "bits"); bits > 13 {
		c.Addresses[0].Prefix = netip.PrefixFrom(c.Addresses[0].Prefix.Addr(), bits)
		c.Addresses[1].Prefix = netip.PrefixFrom(c.Addresses[1].Prefix.Addr(), 4*bits)
	} else {
		c.Addresses = c.Addresses[2:]
	}
}

func apply(t *rapid.T, k *datapathtest.Kernel, want datapath.Config) {
	have, _ := k.Read(t.Context(), &want)
	for _, run := range datapath.Runs(datapath.Diff(have, &want)) {
		for _, op := range rapid.Permutation(run).Draw(t, "run") { // none needs another
			if err := k.Apply(t.Context(), op); err != nil {
				t.Fatal(err)
			}
			have.Apply(op)
		}
	}
	if got, want := k.String(), datapathtest.StateOf(want).String(); got != want {
		t.Fatalf("the kernel holds\n%swant\n%s", got, want)
	}
	seen, _ := k.Read(t.Context(), &want)
	if got := have.String(); got != seen.String() {
		t.Fatalf("the mirror holds\n%sthe kernel\n%s", got, seen)
	}
	if d := datapath.Drift(have, seen); len(d) > 0 {
		t.Fatalf("drift %v", d)
	}
	if ops := datapath.Diff(seen, &want); len(ops) > 0 {
		t.Fatalf("still to do: %v", ops)
	}
}

func TestDiffReachesWhatIsWanted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := datapathtest.NewKernel()
		for range 5 {
			apply(t, k, drawConfig(t, k))
			damage(t, k)
		}
		apply(t, k, datapath.Config{})
		if s := k.String(); s != "\n" {
			t.Fatalf("an empty Config leaves\n%s", s)
		}
	})
}

// What is known of a state makes a difference to the time alone.
func TestDiffOfWhatIsSettled(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, have := datapathtest.NewKernel(), datapath.NewState()
		var want datapath.Config
		for range 5 {
			if want = nudged(t, want); rapid.Bool().Draw(t, "all new") {
				want = drawConfig(t, k)
			}
			ops := datapath.Diff(have, &want)
			if settled, plain := fmt.Sprint(ops), fmt.Sprint(datapath.Diff(have.Clone(), &want)); settled != plain {
				t.Fatalf("settled, what is to be done is\n%s\nelse\n%s", settled, plain)
			}
			for _, op := range ops {
				have.Apply(op)
			}
			settled := want
			have.Settle(&settled)
		}
	})
}

// nudged is a wanted state with small changes, so that most of its entries stay.
func nudged(t *rapid.T, c datapath.Config) datapath.Config {
	seldom := func(what string) bool { return rapid.IntRange(0, 5).Draw(t, what) == 0 }
	c.Links, c.Namespaces = slices.Clone(c.Links), slices.Clone(c.Namespaces)
	for i := range c.Links {
		if seldom("mac") {
			c.Links[i].MAC[5] ^= 0x80
		}
		if seldom("no master") {
			c.Links[i].Master = ""
		}
	}
	for i := range c.Namespaces {
		c.Namespaces[i].Partial = rapid.Bool().Draw(t, "partial")
	}
	c.Addresses = slices.DeleteFunc(slices.Clone(c.Addresses), func(datapath.Address) bool { return seldom("no address") })
	c.FDB = slices.DeleteFunc(slices.Clone(c.FDB), func(datapath.FDBEntry) bool { return seldom("no entry") })
	return c
}

// damage takes away some rows that nothing else hangs on.
func damage(t *rapid.T, k *datapathtest.Kernel) {
	k.Edit(func(s *datapath.State) {
		for key, f := range s.FDB {
			switch rapid.IntRange(0, 5).Draw(t, "damage") {
			case 0:
				delete(s.FDB, key)
			case 1:
				if f.VTEP.IsValid() {
					f.VTEP = datapath.Damaged
					s.FDB[key] = f
				}
			}
		}
		for key, l := range s.Links {
			if rapid.IntRange(0, 5).Draw(t, "down") == 0 {
				l.Up = false
				s.Links[key] = l
			}
		}
	})
}

func TestDiffGrowsWithTheChange(t *testing.T) {
	o := datapathtest.Overlay{ID: "n1", VNI: datapathtest.MinVNI, Local: netip.MustParseAddr("192.0.2.1"), Members: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}
	for n := range 1000 {
		o.Endpoints = append(o.Endpoints, datapathtest.Endpoint{N: n, VTEP: o.Members[0]})
	}
	have := datapathtest.StateOf(o.Config())
	more := o
	more.Endpoints = append(more.Endpoints, datapathtest.Endpoint{N: 2000, VTEP: o.Members[0]})
	want := more.Config()
	if ops := datapath.Diff(have, &want); len(ops) != 3 {
		t.Errorf("one remote endpoint more: %v, want one FDB and two neighbours", ops)
	}
	want = o.Config()
	if ops := datapath.Diff(datapathtest.StateOf(more.Config()), &want); len(ops) != 3 {
		t.Errorf("one remote endpoint less: %v", ops)
	}
}

// TestGolden shows the state that a small network makes, and the operations in their order.
func TestGolden(t *testing.T) {
	c := datapathtest.Overlay{
		ID: "n1", VNI: datapathtest.MinVNI, Local: netip.MustParseAddr("192.0.2.1"), Members: []netip.Addr{netip.MustParseAddr("192.0.2.2")},
		Endpoints: []datapathtest.Endpoint{{N: 1, Make: "web"}, {N: 2, VTEP: netip.MustParseAddr("192.0.2.2")}},
	}.Config()
	var got string
	for _, op := range datapath.Diff(datapath.NewState(), &c) {
		got += op.String() + "\n"
	}
	got += "\n" + datapathtest.StateOf(c).String() + "\n"
	for _, op := range datapath.Diff(datapathtest.StateOf(c), &datapath.Config{}) {
		got += op.String() + "\n"
	}
	file := filepath.Join("testdata", "network.golden")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func BenchmarkDiff(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			o := datapathtest.Overlay{ID: "n1", VNI: datapathtest.MinVNI, Local: netip.MustParseAddr("192.0.2.1"), Members: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}
			for n := range n {
				o.Endpoints = append(o.Endpoints, datapathtest.Endpoint{N: n, VTEP: o.Members[0]})
			}
			have := datapathtest.StateOf(o.Config())
			o.Endpoints = append(o.Endpoints, datapathtest.Endpoint{N: n + 1, VTEP: o.Members[0]})
			want := o.Config()
			for b.Loop() {
				if len(datapath.Diff(have, &want)) != 3 {
					b.Fatal("not three operations")
				}
			}
		})
	}
}

// After a start a node does not know all entries yet. What it does not want stays until it
// does; what it wants is added and changed.
func TestDiffOfPartialKnowledge(t *testing.T) {
	ns := datapath.Namespace{Name: "heddle-n1", Owner: "n1"}
	dev := datapath.Link{NS: ns.NS(), Name: "vxlan0", Owner: "n1", Kind: datapath.VXLAN, MTU: 1450, VXLAN: datapath.VXLANAttr{VNI: 1 << 23, Port: 4789, Local: netip.MustParseAddr("192.0.2.1")}}
	vtep := netip.MustParseAddr("192.0.2.2")
	entry := func(last byte, to string) datapath.FDBEntry {
		return datapath.FDBEntry{NS: ns.NS(), Link: dev.Name, MAC: datapath.MAC{2, 0, 0, 0, 0, last}, VTEP: netip.MustParseAddr(to), Owner: "e"}
	}
	neighbor := datapath.Neighbor{NS: ns.NS(), Link: dev.Name, IP: netip.MustParseAddr("10.0.0.9"), MAC: datapath.MAC{2, 0, 0, 0, 0, 9}, Owner: "e"}
	config := func(partial bool) *datapath.Config {
		n := ns
		n.Partial = partial
		return &datapath.Config{
			Namespaces: []datapath.Namespace{n}, Links: []datapath.Link{dev},
			Filters: []datapath.Filter{{Port: 4789, MinVNI: 1 << 23, Partial: partial, Allowed: []datapath.Allow{{netip.MustParseAddr("192.0.2.3"), 1 << 23}}}},
		}
	}
	full := config(false)
	full.FDB, full.Neighbors = []datapath.FDBEntry{entry(1, "192.0.2.2"), entry(2, "192.0.2.2")}, []datapath.Neighbor{neighbor}
	full.Filters[0].Allowed = append(full.Filters[0].Allowed, datapath.Allow{vtep, 1 << 23})
	have := datapath.NewState()
	for _, op := range datapath.Diff(have, full) {
		have.Apply(op)
	}
	partial := config(true)
	partial.FDB = []datapath.FDBEntry{entry(2, "192.0.2.3"), entry(3, "192.0.2.3")} // one moved, one more
	for _, op := range datapath.Diff(have, partial) {
		switch op.(type) {
		case datapath.DelFDB, datapath.DelNeighbor, datapath.DelAllow, datapath.SetNamespace:
			t.Errorf("partial knowledge led to %v", op)
		}
		have.Apply(op)
	}
	if len(have.FDB) != 3 || have.FDB[entry(2, "192.0.2.3").Key()].VTEP != netip.MustParseAddr("192.0.2.3") {
		t.Errorf("entries: %v", have.FDB)
	}
	if ops := datapath.Diff(have, partial); len(ops) > 0 {
		t.Errorf("a second time there is still %v to do", ops)
	}
	partial.Namespaces[0].Partial, partial.Filters[0].Partial = false, false
	for _, op := range datapath.Diff(have, partial) {
		if _, set := op.(datapath.SetNamespace); set {
			t.Errorf("whole knowledge led to %v", op)
		}
		have.Apply(op)
	}
	if len(have.FDB) != 2 || len(have.Neighbors) != 0 || len(have.Filters[datapath.NS{}].Allowed) != 1 {
		t.Errorf("with whole knowledge %v %v %v are left", have.FDB, have.Neighbors, have.Filters[datapath.NS{}].Allowed)
	}
}

// An entry is announced to workloads that may remember another MAC behind its address: one that is
// known to have been there, or any before this process first looked.
func TestDiffAnnounces(t *testing.T) {
	ns := datapath.Namespace{Name: "heddle-n1", Owner: "n1"}
	entry := datapath.Neighbor{NS: ns.NS(), Link: "br0", IP: netip.MustParseAddr("10.0.0.9"), MAC: datapath.MAC{2, 0, 0, 0, 0, 9}, Owner: "e"}
	other := entry
	other.MAC[5]++
	none := &datapath.Config{Namespaces: []datapath.Namespace{ns}}
	with := func(n datapath.Neighbor) *datapath.Config {
		return &datapath.Config{Namespaces: []datapath.Namespace{ns}, Neighbors: []datapath.Neighbor{n}}
	}
	for _, tt := range []struct {
		name    string
		inherit bool
		before  []*datapath.Config
		want    int
	}{
		{"a new address", false, []*datapath.Config{none}, 0},
		{"another MAC", false, []*datapath.Config{with(other)}, 1},
		{"another MAC, gone since", false, []*datapath.Config{with(other), none}, 1},
		{"the same, gone since", false, []*datapath.Config{with(entry), none}, 0},
		{"new since the start", true, nil, 1},
		{"new since the start, gone since", true, []*datapath.Config{with(entry), none}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			have := datapath.NewState()
			have.Apply(datapath.SetNamespace{Namespace: ns})
			if tt.inherit {
				have.Inherit()
			}
			for _, c := range tt.before {
				for _, op := range datapath.Diff(have, c) {
					have.Apply(op)
				}
			}
			seen := have.Clone()
			seen.Behind, seen.Served = map[datapath.NeighborKey]datapath.MAC{}, map[datapath.NS]bool{}
			seen.Remember(have) // as after a read
			got := 0
			for _, op := range datapath.Diff(seen, with(entry)) {
				if _, ok := op.(datapath.Announce); ok {
					got++
				}
			}
			if got != tt.want {
				t.Errorf("%d announcements, want %d", got, tt.want)
			}
		})
	}
}
