package datapath_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/datapathtest"
)

func TestDifferences(t *testing.T) {
	peer, other := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.9")
	remote := datapathtest.Endpoint{N: 2, VTEP: peer}
	want := datapathtest.Overlay{
		ID: "n1", VNI: datapathtest.MinVNI, Local: netip.MustParseAddr("192.0.2.1"), Members: []netip.Addr{peer},
		Endpoints: []datapathtest.Endpoint{{N: 1, NS: workload(1)}, remote},
	}.Config()
	link := func(s *datapath.State, kind datapath.Kind) datapath.LinkKey {
		for k, l := range s.Links {
			if l.Kind == kind {
				return k
			}
		}
		t.Fatalf("no %s", kind)
		return datapath.LinkKey{}
	}
	fdb := func(s *datapath.State) datapath.FDBKey {
		for k, f := range s.FDB {
			if f.VTEP == peer {
				return k
			}
		}
		t.Fatal("no entry")
		return datapath.FDBKey{}
	}
	for _, tt := range []struct {
		name   string
		change func(*datapath.State)
		want   []string // kind, where and what was found
	}{
		{"nothing", func(*datapath.State) {}, nil},
		{"an entry leads elsewhere", func(s *datapath.State) { k := fdb(s); f := s.FDB[k]; f.VTEP = other; s.FDB[k] = f }, []string{"fdb heddle-n1/vx0: heddle-n1/vx0 " + remote.MAC().String() + " dst 192.0.2.9"}},
		{"half an entry", func(s *datapath.State) {
			k := fdb(s)
			f := s.FDB[k]
			f.VTEP = datapath.Damaged
			s.FDB[k] = f
		}, []string{"fdb heddle-n1/vx0: not whole: in the bridge or in the device alone"}},
		{"a device is gone, and with it its entries", func(s *datapath.State) {
			s.Apply(datapath.DelLink{Link: s.Links[link(s, datapath.VXLAN)].Link})
		}, []string{"link heddle-n1/vx0: missing"}},
		{"a namespace is gone, and all that was in it", func(s *datapath.State) {
			s.Apply(datapath.DelNamespace{Namespace: s.Namespaces["heddle-n1"]})
		}, []string{"namespace heddle-n1: missing"}},
		{"a device is down", func(s *datapath.State) { k := link(s, datapath.VXLAN); l := s.Links[k]; l.Up = false; s.Links[k] = l }, []string{"link heddle-n1/vx0: down"}},
		{"a member is missing", func(s *datapath.State) { clear(s.Filters[datapath.NS{}].Allowed) }, []string{"filter host: 1 members missing"}},
		{"a stranger is a member", func(s *datapath.State) {
			s.Filters[datapath.NS{}].Allowed[datapath.Allow{Source: other, VNI: 1}] = true
		}, []string{"filter host: 1 members not wanted"}},
		{"settings differ", func(s *datapath.State) { n := s.Namespaces["heddle-n1"]; n.Owner = ""; s.Namespaces["heddle-n1"] = n }, []string{"namespace heddle-n1: mark, settings or the rules of its uplink differ"}},
		{"a strange link", func(s *datapath.State) {
			s.Apply(datapath.AddLink{Link: datapath.Link{NS: datapath.NS{Path: "/run/netns/heddle-n1"}, Name: "odd", Kind: datapath.Bridge}})
		}, []string{"link heddle-n1/odd: not wanted"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			have := datapathtest.StateOf(want)
			tt.change(have)
			var got []string
			for _, d := range datapath.Differences(have, datapath.Diff(have, &want)) {
				got = append(got, fmt.Sprintf("%s %s: %s", d.Kind, d.Where, d.Found))
				if d.Do == "" {
					t.Errorf("%+v does not say what heddle does", d)
				}
			}
			if strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}
