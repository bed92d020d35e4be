package plan

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/tunnel"
)

// sealedView is view with an encrypted network. All three nodes have WireGuard.
func sealedView() View {
	v := view()
	n := v.Networks[blue]
	n.Encrypted = true
	v.Networks[blue] = n
	for id, r := range v.Nodes {
		r.Cluster = "c1"
		r.WireGuard = &overlay.WireGuard{Kind: "kernel"}
		for i := range r.WireGuard.Tunnels {
			r.WireGuard.Tunnels[i] = overlay.Tunnel{Key: overlay.WireGuardKey{id[0], byte(i)}, Port: 5379 + 2*uint16(i)}
		}
		v.Nodes[id] = r
	}
	v.Tunnels = Tunnels{Keys: [2]datapath.PrivateKey{{1}, {2}}, Says: *v.Nodes[nodeA].WireGuard}
	return v
}

func TestBuildEncryptedGolden(t *testing.T) { golden(t, "encrypted.txt", sealedView()) }

func TestEncrypted(t *testing.T) {
	c := Build(sealedView())
	for _, l := range c.Links {
		if l.Kind == datapath.VXLAN && (l.VXLAN.Underlay != TunnelsNS() || l.VXLAN.Port == 4789) {
			t.Errorf("the VXLAN device is on the host's underlay: %+v", l.VXLAN)
		}
	}
	if len(c.Filters) != 2 || len(c.Filters[0].Allowed) != 0 || len(c.Filters[1].Allowed) != 2 {
		t.Errorf("filters %+v", c.Filters)
	}
	for _, tt := range []struct {
		name   string
		change func(*View)
		check  func(datapath.Config) bool
	}{
		{"a node that can't encrypt is no peer, and nothing is sent to it", func(v *View) {
			r := v.Nodes[nodeB]
			r.WireGuard = nil
			v.Nodes[nodeB] = r
		}, func(c datapath.Config) bool {
			return len(c.WGPeers) == 2 && !slices.ContainsFunc(c.FDB, func(f datapath.FDBEntry) bool { return f.VTEP.IsValid() })
		}},
		{"who takes part in no encrypted network is no peer", func(v *View) {
			v.Participants[blue] = []overlay.NodeID{nodeA, nodeB}
		}, func(c datapath.Config) bool {
			return len(c.WGPeers) == 2 && len(c.Routes) == len(Build(sealedView()).Routes)-1
		}},
		{"a device that is left keeps its traffic until a session stands on the other", func(v *View) {
			v.Nodes[nodeB].WireGuard.Tunnels[0].Leaving = true
			v.Tunnels.Seen = map[overlay.NodeID]tunnel.Session{nodeB: {Routed: true, Made: made(v, 0)}}
		}, func(c datapath.Config) bool { return by(c, nodeB) == "heddle-wg0" && kept(c, nodeB) == "heddle-wg1" }},
		{"then it goes by the other", func(v *View) {
			v.Nodes[nodeB].WireGuard.Tunnels[0].Leaving = true
			v.Tunnels.Seen = map[overlay.NodeID]tunnel.Session{nodeB: {Routed: true, Made: made(v, 0, 1)}}
		}, func(c datapath.Config) bool { return by(c, nodeB) == "heddle-wg1" && kept(c, nodeB) == "" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := sealedView()
			tt.change(&v)
			if c := Build(v); !tt.check(c) {
				t.Errorf("got\n%s", text(c))
			}
		})
	}
}

// made are sessions of the present keys with node B.
func made(v *View, devices ...int) (m [2]tunnel.Pair) {
	for _, i := range devices {
		m[i] = tunnel.Between(v.Tunnels.Says, *v.Nodes[nodeB].WireGuard, i)
	}
	return m
}

// by is the device by which traffic to a node goes.
func by(c datapath.Config, id overlay.NodeID) string {
	for _, r := range c.Routes {
		if r.Prefix == netip.PrefixFrom(overlay.InnerAddr("c1", id), 128) {
			return r.Link
		}
	}
	return ""
}

// kept is the device on which a session is kept up with a node.
func kept(c datapath.Config, id overlay.NodeID) string {
	for _, p := range c.WGPeers {
		if p.Keepalive && p.Address == overlay.InnerAddr("c1", id) {
			return p.Link
		}
	}
	return ""
}
