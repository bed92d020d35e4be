package plan

import (
	"slices"
	"testing"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

// bridged is the network of view as one of node A alone, which is in no cluster.
func bridged() View {
	v := view()
	n := v.Networks[blue]
	n.Driver, n.VNI = overlay.DriverBridge, 0
	v.Networks[blue] = n
	v.Participants, v.Remote, v.Nodes = nil, nil, nil
	return v
}

func TestBridgeGolden(t *testing.T) { golden(t, "bridge.txt", bridged()) }

func TestBridgeWants(t *testing.T) {
	cases := []struct {
		name   string
		change func(*View, *overlay.Network)
		check  func(datapath.Config) bool
	}{
		{
			"no VXLAN device and no filter", func(*View, *overlay.Network) {}, func(c datapath.Config) bool {
				return len(c.Filters) == 0 && !slices.ContainsFunc(c.Links, func(l datapath.Link) bool { return l.Kind == datapath.VXLAN })
			},
		},
		{
			"nothing without local endpoints", func(v *View, _ *overlay.Network) { v.Local = nil },
			func(c datapath.Config) bool { return len(c.Links)+len(c.Namespaces) == 0 },
		},
		{
			"no way out of an internal one", func(_ *View, n *overlay.Network) { n.Internal = true }, func(c datapath.Config) bool {
				return len(c.Routes) == 0 && c.Egress == (datapath.Egress{}) && c.Namespaces[1].Uplink == ""
			},
		},
		{
			"its own MTU, else that of Ethernet", func(_ *View, n *overlay.Network) { n.Options = map[string]string{"mtu": "1400"} },
			func(c datapath.Config) bool {
				return !slices.ContainsFunc(c.Links, func(l datapath.Link) bool { return l.MTU != 1400 })
			},
		},
		{
			"ports apart with icc=false", func(_ *View, n *overlay.Network) { n.Options = map[string]string{"icc": "false"} },
			func(c datapath.Config) bool {
				return !slices.ContainsFunc(c.Links, func(l datapath.Link) bool { return l.Port.Isolated != (l.Master != "") })
			},
		},
		{
			"of none a namespace alone", func(v *View, n *overlay.Network) {
				n.Driver, n.Subnets, v.Local[0].IPs, v.Local[0].IfName = overlay.DriverNone, nil, nil, ""
			},
			func(c datapath.Config) bool { return text(c) == "namespace web owner=workload/web partial=false\n" },
		},
		{
			"of host nothing", func(v *View, n *overlay.Network) {
				n.Driver, n.Subnets = overlay.DriverHost, nil
				v.Local[0] = Endpoint{ID: web, Network: blue, Host: true}
			},
			func(c datapath.Config) bool { return text(c) == "\n" },
		},
		{
			"pairs of uplink addresses of their own", func(v *View, n *overlay.Network) { // the IDs begin alike
				o := *n
				o.ID, o.Name = blue[:31]+"1", "green"
				v.Networks[o.ID] = o
				e := v.Local[0]
				e.ID, e.Network, e.IfName = db, o.ID, "eth1"
				v.Local = append(v.Local, e)
			},
			func(c datapath.Config) bool {
				seen := map[string]bool{}
				for _, a := range c.Addresses {
					if a.NS.Path == "" && seen[a.Prefix.String()] {
						return false
					}
					seen[a.Prefix.String()] = true
				}
				return true
			},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			v := bridged()
			n := v.Networks[blue]
			c.change(&v, &n)
			v.Networks[blue] = n
			if got := Build(v); !c.check(got) {
				t.Errorf("wanted:\n%s", text(got))
			}
		})
	}
}
