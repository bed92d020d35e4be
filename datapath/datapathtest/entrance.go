package datapathtest

import (
	"net/netip"
	"testing"

	"github.com/heddle-net/heddle/datapath"
)

// Publish is Open with ports of the host: each leads to those endpoints of the node's own that Ns
// name, at the port Target.
func (o Overlay) Publish(ports ...Published) datapath.Config {
	c := o.Open()
	inner := datapath.Entrance{
		NS: o.NS(), Owner: datapath.Owner(o.ID), From: "up0", Bridge: "br0",
		Within: []netip.Prefix{netip.MustParsePrefix("10.64.0.0/16"), netip.MustParsePrefix("fd00:64::/64")},
	}
	host := datapath.Entrance{Owner: "publish", Within: []netip.Prefix{c.Egress.Pool4, c.Egress.Pool6}}
	for _, p := range ports {
		for _, near := range []netip.Addr{netip.MustParseAddr("169.254.128.1"), netip.MustParseAddr("fd68::1")} {
			if p.At.IsValid() && p.At.Is4() != near.Is4() {
				continue
			}
			in := datapath.Passage{Proto: p.Proto, At: near, Port: p.Port}
			for _, n := range p.Ns {
				e := Endpoint{N: n}
				ip, gateway := e.IPv4(), netip.MustParseAddr("10.64.255.254")
				if near.Is6() {
					ip, gateway = e.IPv6(), netip.MustParseAddr("fd00:64::ffff")
				}
				in.To = append(in.To, datapath.Backend{At: netip.AddrPortFrom(ip, p.Target)})
				if p.Hide {
					inner.Workloads.Sources = append(inner.Workloads.Sources, datapath.Source{Of: ip, As: gateway})
				}
			}
			inner.Workloads.Ports = append(inner.Workloads.Ports, in)
			host.Workloads.Ports = append(host.Workloads.Ports, datapath.Passage{
				Proto: p.Proto, At: p.At, Port: p.Port, To: []datapath.Backend{{At: netip.AddrPortFrom(near, p.Port)}},
			})
		}
	}
	c.Entrances = []datapath.Entrance{inner, host}
	return c
}

// Published is a port of the host.
type Published struct {
	Proto        string
	At           netip.Addr
	Port, Target uint16
	Ns           []int
	Hide         bool // the endpoints see their gateway
}

// entrances have a part each for workloads and services.
func entrances(t *testing.T, e Env) []step {
	o := sample(e.Workload(t, "a"), e.Workload(t, "b"))
	few := []Published{{Proto: "tcp", Port: 8080, Target: 80, Ns: []int{1}}}
	many := append(few, Published{Proto: "udp", Port: 8080, Target: 80, Ns: []int{1, 2}}, Published{Proto: "tcp", At: o.Local, Port: 8081, Target: 80, Ns: []int{2}, Hide: true})
	published := o.Publish(many...)
	both := o.Publish(many...)
	for i := range both.Entrances {
		both.Entrances[i].Services = both.Entrances[i].Workloads
	}
	steps := []step{
		{name: "without ports", want: o.Open()},
		{name: "ports", want: published},
		{name: "again", want: published, ops: -1},
		{name: "fewer", want: o.Publish(few...), ops: 2},
		{name: "services", want: both},
	}
	for _, ns := range []datapath.NS{{}, o.NS()} {
		steps = append(steps, step{name: "without its rules", undo: []datapath.Op{datapath.DelEntrance{NS: ns}}, want: both, ops: 1})
	}
	return append(steps,
		step{name: "no services", want: o.Publish(few...), ops: 2},
		step{name: "no ports", want: o.Publish(), ops: 2},
		step{name: "none at all", want: o.Open(), ops: -1},
		step{name: "nothing", want: datapath.Config{}})
}
