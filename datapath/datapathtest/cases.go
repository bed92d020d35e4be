package datapathtest

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	"github.com/heddle-net/heddle/datapath"
)

// Env is a kernel under test, with what others do to it.
type Env interface {
	Read(ctx context.Context, want *datapath.Config) (*datapath.State, error)
	Apply(ctx context.Context, op datapath.Op) error
	ApplyEntries(ctx context.Context, ops []datapath.Op) []error
	Release()
	Workload(t *testing.T, name string) datapath.NS // makes a namespace that is not heddle's
	EndWorkload(t *testing.T, ns datapath.NS)
	Foreign(t *testing.T, l datapath.LinkKey) // makes a link that is not heddle's
}

type step struct {
	name  string
	want  datapath.Config
	undo  []datapath.Op    // done by others before
	fault []datapath.Fault // expected; nothing else may fail
	ops   int              // how many operations are expected; 0 is any number, -1 none
}

// sample is one network with two local and two remote endpoints.
func sample(a, b datapath.NS) Overlay {
	return Overlay{
		ID: "n1", VNI: MinVNI + 1, Local: netip.MustParseAddr("192.0.2.1"),
		Members: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")},
		Endpoints: []Endpoint{
			{N: 1, NS: a},
			{N: 2, NS: b},
			{N: 3, VTEP: netip.MustParseAddr("192.0.2.2")},
			{N: 4, VTEP: netip.MustParseAddr("192.0.2.3")},
		},
	}
}

// Run puts a kernel through the cases. Each begins with a kernel of its own.
func Run(t *testing.T, newEnv func(t *testing.T) Env) {
	for name, steps := range map[string]func(t *testing.T, e Env) []step{
		"comes and goes":  comesAndGoes,
		"small changes":   smallChanges,
		"moved underlay":  movedUnderlay,
		"replacements":    replacements,
		"drift":           drift,
		"strangers":       strangers,
		"own namespaces":  ownNamespaces,
		"two of one name": twoNetworks,
		"uplinks":         uplinks,
		"entrances":       entrances,
		"sealed":          sealed,
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			for _, s := range steps(t, e) {
				s.run(t, e)
			}
		})
	}
}

func (s step) run(t *testing.T, e Env) {
	t.Helper()
	ctx := t.Context()
	for _, op := range s.undo {
		if err := e.Apply(ctx, op); err != nil {
			t.Fatalf("%s: undo: %v", s.name, err)
		}
	}
	e.Release()
	have, err := e.Read(ctx, &s.want)
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	ops := datapath.Diff(have, &s.want)
	if s.ops > 0 && len(ops) != s.ops || s.ops < 0 && len(ops) != 0 {
		t.Errorf("%s: %d operations, want %d: %v", s.name, len(ops), max(0, s.ops), ops)
	}
	var faults []datapath.Fault
	failed := map[datapath.Owner]bool{}
	for _, run := range datapath.Runs(ops) {
		run = slices.DeleteFunc(slices.Clone(run), func(op datapath.Op) bool { return failed[op.Owner()] })
		errs := e.ApplyEntries
		if len(run) == 1 {
			errs = func(ctx context.Context, ops []datapath.Op) []error { return []error{e.Apply(ctx, ops[0])} }
		}
		for i, err := range errs(ctx, run) {
			if err == nil {
				continue
			}
			if !slices.Contains(s.fault, datapath.FaultOf(err)) {
				t.Errorf("%s: %v", s.name, err)
			}
			t.Logf("%s: fault as expected: %v", s.name, err)
			faults = append(faults, datapath.FaultOf(err))
			failed[run[i].Owner()] = true
		}
	}
	e.Release()
	if !slices.Equal(faults, s.fault) {
		t.Errorf("%s: faults %v, want %v", s.name, faults, s.fault)
	}
	if len(s.fault) == 0 {
		s.check(t, e)
	}
}

// check reads again: all must be as wanted, and nothing left to do.
func (s step) check(t *testing.T, e Env) {
	t.Helper()
	have, err := e.Read(t.Context(), &s.want)
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	if got, want := have.String(), StateOf(s.want).String(); got != want {
		t.Errorf("%s: the kernel holds\n%swant\n%s", s.name, got, want)
	}
	if ops := datapath.Diff(have, &s.want); len(ops) > 0 {
		t.Errorf("%s: still to do: %v", s.name, ops)
	}
}

// StateOf is the state of a kernel that holds exactly what is wanted.
func StateOf(c datapath.Config) *datapath.State {
	s := datapath.NewState()
	for _, op := range datapath.Diff(s, &c) {
		s.Apply(op)
	}
	return s
}

// movedUnderlay: the host's own address changes; everything stays where it is.
func movedUnderlay(t *testing.T, e Env) []step {
	o := sample(e.Workload(t, "a"), e.Workload(t, "b"))
	before := o.Config()
	o.Local = netip.MustParseAddr("192.0.2.77")
	return []step{
		{name: "first", want: before},
		{name: "another address", want: o.Config(), ops: 1},
	}
}

func comesAndGoes(t *testing.T, e Env) []step {
	c := sample(e.Workload(t, "a"), e.Workload(t, "b")).Config()
	return []step{
		{name: "empty", ops: -1},
		{name: "first", want: c},
		{name: "again", want: c, ops: -1},
		{name: "empty again", want: datapath.Config{}},
		{name: "second", want: c},
	}
}

func smallChanges(t *testing.T, e Env) []step {
	a, b := e.Workload(t, "a"), e.Workload(t, "b")
	full := sample(a, b)
	fewer := full
	fewer.Endpoints = full.Endpoints[:2:2]
	fewer.Members = full.Members[:1:1]
	one := full
	one.Endpoints = full.Endpoints[1:]
	return []step{
		{name: "two local ones", want: fewer.Config()},
		{name: "two remote ones, one member", want: full.Config(), ops: 7},
		{name: "without a local one", want: one.Config(), ops: 4},
		{name: "with it again", want: full.Config(), ops: 8},
		{name: "without remote ones", want: fewer.Config(), ops: 7},
	}
}

func replacements(t *testing.T, e Env) []step {
	a, b := e.Workload(t, "a"), e.Workload(t, "b")
	full := sample(a, b)
	c := full.Config()
	moved := full.Config()
	for i := range moved.FDB {
		if moved.FDB[i].VTEP.IsValid() {
			moved.FDB[i].VTEP = full.Members[0]
		}
	}
	mtu := full.Config()
	for i := range mtu.Links {
		mtu.Links[i].MTU, mtu.Links[i].Peer.MTU = 1400, min(mtu.Links[i].Peer.MTU, 1400)
	}
	mac := full.Config()
	for i := range mac.Links {
		mac.Links[i].MAC[5] ^= 0x80
	}
	prefix := full.Config()
	for i, p := range []string{"10.64.255.254/15", "fd00:64::ffff/60"} {
		prefix.Addresses[i].Prefix = netip.MustParsePrefix(p)
	}
	other := full.Config()
	for i, p := range []string{"10.64.255.253/16", "fd00:64::fffe/64"} {
		other.Addresses[i].Prefix = netip.MustParsePrefix(p)
	}
	gateless := full.Config()
	gateless.Addresses = gateless.Addresses[1:] // IPv6 alone
	vni := full
	vni.VNI++
	swapped := full
	swapped.Endpoints = slices.Clone(full.Endpoints)
	swapped.Endpoints[0].NS, swapped.Endpoints[1].NS = b, a
	renamed := full
	renamed.ID = "n2" // wants the same VNI and the same far ends
	return []step{
		{name: "first", want: c},
		{name: "an endpoint moves to another node", want: moved, ops: 1},
		{name: "MTU", want: mtu},
		{name: "and back", want: c},
		{name: "MACs of the network's own links", want: mac},
		{name: "and back", want: c},
		{name: "another prefix length", want: prefix},
		{name: "and back", want: c},
		{name: "another gateway address in the same subnet", want: other, ops: 4},
		{name: "no IPv4 gateway", want: gateless},
		{name: "another VNI", want: vni.Config()},
		{name: "workloads swapped", want: swapped.Config()},
		{name: "the namespace's name", want: renamed.Config()},
	}
}

func drift(t *testing.T, e Env) []step {
	a, b := e.Workload(t, "a"), e.Workload(t, "b")
	o := sample(a, b)
	c := o.Config()
	rogue := datapath.Link{NS: o.NS(), Name: "rogue", Kind: datapath.Veth, MAC: datapath.MAC{2, 9, 9, 9, 9, 9}, MTU: 1450, Master: "br0", Peer: datapath.Peer{NS: o.NS(), Name: "rogue2", MAC: datapath.MAC{2, 9, 9, 9, 9, 8}, MTU: 1450}}
	bridge, vx, port := c.Links[0], c.Links[1], c.Links[2]
	flood := port
	flood.Port.Flood = true
	loose, more := c.Locks[0], c.Locks[0]
	loose.IPs = append(slices.Clone(loose.IPs), c.Locks[1].IPs...)
	more.Link = "vx0"
	unmarked := port
	unmarked.Owner, unmarked.Peer.Owner = "", ""
	steps := []step{{name: "first", want: c}}
	for _, undo := range []struct {
		name string
		ops  []datapath.Op
	}{
		{"fdb", []datapath.Op{datapath.DelFDB{FDBEntry: c.FDB[2]}}},
		{"local fdb", []datapath.Op{datapath.DelFDB{FDBEntry: c.FDB[0]}}},
		{"neighbor", []datapath.Op{datapath.DelNeighbor{Neighbor: c.Neighbors[0]}, datapath.DelNeighbor{Neighbor: c.Neighbors[1]}}},
		{"gateway", []datapath.Op{datapath.DelAddress{Address: c.Addresses[0]}, datapath.DelAddress{Address: c.Addresses[1]}}},
		{"address in the workload", []datapath.Op{datapath.DelAddress{Address: c.Addresses[2]}, datapath.DelAddress{Address: c.Addresses[3]}}},
		{"endpoint's link", []datapath.Op{datapath.DelLink{Link: port}}},
		{"bridge", []datapath.Op{datapath.DelLink{Link: bridge}}},
		{"VXLAN device", []datapath.Op{datapath.DelLink{Link: vx}}},
		{"lock", []datapath.Op{datapath.DelLock{Lock: c.Locks[0]}}},
		{"another lock", []datapath.Op{datapath.SetLock{Lock: loose}}},
		{"a lock too many", []datapath.Op{datapath.SetLock{Lock: more}}},
		{"port flags", []datapath.Op{datapath.SetLink{Link: flood}}},
		{"mark", []datapath.Op{datapath.SetLink{Link: unmarked}}},
		{"allow-set", []datapath.Op{datapath.DelAllow{Filter: datapath.Filter{Allowed: c.Filters[0].Allowed[:1]}}}},
		{"filter", []datapath.Op{datapath.DelFilter{}}},
		{"more allowed", []datapath.Op{datapath.AddAllow{Filter: datapath.Filter{Allowed: []datapath.Allow{{Source: netip.MustParseAddr("192.0.2.99"), VNI: MinVNI + 7}}}}}},
		{"a link of others in our namespace", []datapath.Op{datapath.AddLink{Link: rogue}}},
		{"an entry too many", []datapath.Op{datapath.SetFDB{FDBEntry: datapath.FDBEntry{NS: o.NS(), Link: "vx0", MAC: datapath.MAC{2, 7, 7, 7, 7, 7}, VTEP: o.Members[0]}}}},
		{"namespace", []datapath.Op{datapath.DelNamespace{Namespace: c.Namespaces[0]}}},
	} {
		steps = append(steps, step{name: undo.name, undo: undo.ops, want: c})
	}
	return steps
}

func strangers(t *testing.T, e Env) []step {
	a, b := e.Workload(t, "a"), e.Workload(t, "b")
	o := sample(a, b)
	e.Foreign(t, datapath.LinkKey{NS: a, Name: "eth0"})
	without := o
	without.Endpoints = o.Endpoints[1:]
	missing := without
	missing.Endpoints = append(slices.Clone(without.Endpoints), Endpoint{N: 9, NS: datapath.NS{Path: "/nonexistent/netns"}})
	replaced := without
	replaced.Endpoints = append(slices.Clone(without.Endpoints), Endpoint{N: 9, NS: datapath.NS{Path: a.Path, Inode: a.Inode + 1}})
	ended := without
	ended.Endpoints = without.Endpoints[1:]
	return []step{
		{name: "foreign link", want: o.Config(), fault: []datapath.Fault{datapath.Foreign}},
		{name: "without it", want: without.Config(), ops: -1},
		{name: "no such namespace", want: missing.Config(), fault: []datapath.Fault{datapath.NoNamespace}},
		{name: "another namespace at the path", want: replaced.Config(), fault: []datapath.Fault{datapath.Replaced}},
		{name: "without them", want: without.Config(), ops: -1},
	}
}

func ownNamespaces(t *testing.T, e Env) []step {
	o := sample(datapath.NS{}, datapath.NS{})
	o.Endpoints = slices.Clone(o.Endpoints)
	o.Endpoints[0].Make, o.Endpoints[1].Make = "web", "db"
	one := o
	one.Endpoints = o.Endpoints[1:]
	return []step{
		{name: "both", want: o.Config()},
		{name: "again", want: o.Config(), ops: -1},
		{name: "one", want: one.Config(), ops: 5},
		{name: "both again", want: o.Config()},
		{name: "none", want: datapath.Config{}},
	}
}

func twoNetworks(t *testing.T, e Env) []step {
	a, b, c := e.Workload(t, "a"), e.Workload(t, "b"), e.Workload(t, "c")
	first, second := sample(a, b), sample(c, c)
	second.ID, second.VNI, second.Endpoints = "n2", MinVNI+2, []Endpoint{{N: 1, NS: c}, {N: 7, VTEP: second.Members[0]}}
	both, one := first.Config(), second.Config()
	both.Namespaces = append(both.Namespaces, one.Namespaces...)
	both.Links = append(both.Links, one.Links...)
	both.Locks = append(both.Locks, one.Locks...)
	both.Addresses = append(both.Addresses, one.Addresses...)
	both.Neighbors = append(both.Neighbors, one.Neighbors...)
	both.FDB = append(both.FDB, one.FDB...)
	both.Filters[0].Allowed = append(both.Filters[0].Allowed, one.Filters[0].Allowed...)
	return []step{
		{name: "one", want: first.Config()},
		{name: "two with the same addresses", want: both},
		{name: "the other", want: one},
	}
}

func uplinks(t *testing.T, e Env) []step {
	a, b := e.Workload(t, "a"), e.Workload(t, "b")
	o := sample(a, b)
	open := o.Open()
	var up datapath.Link
	for _, l := range open.Links {
		if l.Name == "up0" {
			up = l
		}
	}
	other := o.Open()
	for i := range other.Routes {
		other.Routes[i].Metric++
	}
	closed, other53 := open.Namespaces[0], open.Namespaces[0]
	closed.Uplink, closed.Names, other53.Names = "", "", "10.64.255.253"
	steps := []step{
		{name: "closed", want: o.Config()},
		{name: "open", want: open},
		{name: "again", want: open, ops: -1},
		{name: "other metrics", want: other},
		{name: "back", want: open},
	}
	for _, undo := range []struct {
		name string
		op   datapath.Op
	}{
		{"a workload's route", datapath.DelRoute{Route: open.Routes[3]}},
		{"the network's route", datapath.DelRoute{Route: open.Routes[1]}},
		{"the route to nowhere", datapath.DelRoute{Route: open.Routes[2]}},
		{"the loopback's route", datapath.DelRoute{Route: open.Routes[0]}},
		{"the uplink", datapath.DelLink{Link: up}},
		{"the host's part", datapath.DelEgress{}},
		{"the namespace's part", datapath.SetNamespace{Namespace: closed}},
		{"where names are asked for", datapath.SetNamespace{Namespace: other53}},
	} {
		steps = append(steps, step{name: undo.name, undo: []datapath.Op{undo.op}, want: open})
	}
	return append(steps, step{name: "closed again", want: o.Config()}, step{name: "nothing", want: datapath.Config{}})
}

func sealed(t *testing.T, e Env) []step {
	a, b := e.Workload(t, "a"), e.Workload(t, "b")
	o := sample(a, b)
	o.Local, o.Members = netip.MustParseAddr("fd07::1"), []netip.Addr{netip.MustParseAddr("fd07::2"), netip.MustParseAddr("fd07::3")}
	o.Endpoints[2].VTEP, o.Endpoints[3].VTEP = o.Members[0], o.Members[1]
	c := o.Sealed()
	flipped := o.Sealed()
	flipped.Routes[0].Link = o.Tunnel(1)
	rekeyed := o.Sealed()
	rekeyed.Links[len(rekeyed.Links)-1].WireGuard.Key = privateKey(7)
	renewed := o.Sealed()
	renewed.WGPeers[0].Key[2], renewed.WGPeers[1].Keepalive = 9, true
	fewer := o
	fewer.Members = o.Members[:1]
	plain := sample(a, b)
	steps := []step{
		{name: "first", want: c},
		{name: "again", want: c, ops: -1},
		{name: "a route by the other device", want: flipped, ops: 1},
		{name: "and back", want: c, ops: 1},
		{name: "another private key", want: rekeyed, ops: 1},
		{name: "and back", want: c, ops: 1},
		{name: "another key of a peer", want: renewed, ops: 3},
		{name: "and back", want: c, ops: 3},
		{name: "a member less", want: fewer.Sealed()},
		{name: "and back", want: c},
		{name: "not sealed", want: plain.Config()},
		{name: "sealed again", want: c},
	}
	for _, undo := range []struct {
		name string
		op   datapath.Op
	}{
		{"a peer", datapath.DelWGPeer{WGPeer: c.WGPeers[0]}},
		{"a route", datapath.DelRoute{Route: c.Routes[0]}},
		{"the address", datapath.DelAddress{Address: c.Addresses[len(c.Addresses)-1]}},
		{"a device", datapath.DelLink{Link: c.Links[len(c.Links)-1]}},
		{"the device with the routes", datapath.DelLink{Link: c.Links[len(c.Links)-2]}},
		{"the private key", datapath.SetLink{Link: rekeyed.Links[len(rekeyed.Links)-1]}},
		{"the allow-set", datapath.DelFilter{NS: Tunnels.NS()}},
		{"the tunnels' namespace", datapath.DelNamespace{Namespace: Tunnels}},
	} {
		steps = append(steps, step{name: undo.name, undo: []datapath.Op{undo.op}, want: c})
	}
	return append(steps, step{name: "nothing", want: datapath.Config{}})
}
