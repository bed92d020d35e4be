package agent

import (
	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

// bare is where a workload of a network without interfaces is: of host the host itself, of none a
// namespace with a loopback alone. It refuses what takes an address, or another place. In the loop.
func (a *Agent) bare(n *network, r overlay.AttachRequest, t target) (target, error) {
	driver := n.def.Driver
	switch {
	case len(r.Publish) > 0 && driver == overlay.DriverHost:
		return t, overlay.Errorf(overlay.Invalid, "%s has all ports of this host in network %s, so that none can be published; leave out --publish", r.Name, n.def.Name)
	case len(r.Publish) > 0:
		return t, overlay.Errorf(overlay.Invalid, "nothing reaches %s in network %s, so that no port of it can be published; leave out --publish, or use another network", r.Name, n.def.Name)
	case r.Service != "":
		return t, overlay.Errorf(overlay.Invalid, "network %s gives %s no address, so that it can't stand behind service %s; leave out --service, or use another network", n.def.Name, r.Name, r.Service)
	case r.Health.Kind != "":
		return t, overlay.Errorf(overlay.Invalid, "network %s gives %s no address that can be probed; leave out --health", n.def.Name, r.Name)
	case r.IP.IsValid() || r.IP6.IsValid() || !r.MAC.IsZero() || r.IfName != "":
		return t, overlay.Errorf(overlay.Invalid, "network %s makes no interface for %s; leave out --ip, --ip6, --mac and --ifname", n.def.Name, r.Name)
	case driver == overlay.DriverHost && (r.Netns != "" || r.PID != 0):
		return t, overlay.Errorf(overlay.Invalid, "what is in network %s is in this host's own namespace; leave out --netns and --pid", n.def.Name)
	case driver == overlay.DriverNone && t.host:
		return t, overlay.Errorf(overlay.Invalid, "this host itself can't be without a network; leave out --host")
	}
	if driver == overlay.DriverHost {
		t.host, t.make, t.ns, t.links = true, "", datapath.NS{}, nil
	}
	return t, a.together(n, r.Name)
}

// together refuses what can't be in two networks: a workload with the host's namespace and one of its
// own, or in a network and in none. In the loop.
func (a *Agent) together(n *network, workload string) error {
	for _, e := range a.endpoints {
		o := a.network(e.Network)
		if e.Workload != workload || e.state == overlay.EndpointLost || o.def.ID == n.def.ID {
			continue
		}
		for _, d := range []string{n.def.Driver, o.def.Driver} {
			if d == overlay.DriverNone || d == overlay.DriverHost && !e.Host {
				return overlay.Errorf(overlay.Exists, "%s is in network %s (driver %s) and can't be in %s (driver %s) beside it; detach it first, or take another name", workload, o.def.Name, o.def.Driver, n.def.Name, n.def.Driver)
			}
		}
	}
	return nil
}
