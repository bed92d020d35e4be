package agent

import (
	"context"
	"fmt"
	"slices"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

// target is where a workload is.
type target struct {
	ns      datapath.NS
	make    string          // heddle makes the namespace under this name
	host    bool            // the host itself
	links   []string        // interfaces in it
	session int             // the process whose end detaches it; 0 is none
	start   uint64          // of that process
	bound   []datapath.Port // that programs of this host listen at, where ports are to be published
}

// resolve finds where the request's workload is, and looks there, outside the loop. A workload
// is in one place: a further network finds it where it is.
func (a *Agent) resolve(ctx context.Context, r overlay.AttachRequest) (t target, err error) {
	named := r.Host || r.PID != 0 || r.Netns != ""
	there, err := a.whereIs(ctx, r.Name)
	switch {
	case err != nil:
		return t, err
	case there == nil && r.Connect:
		return t, overlay.Errorf(overlay.NotFound, "%s is not attached on this node; attach it with `heddle attach %s --network %s`", r.Name, r.Name, r.Network)
	case there != nil && !named && r.Session == 0:
		t = *there
	case r.Host:
		t.host = true
	case r.PID != 0:
		t.ns.Path = fmt.Sprintf("/proc/%d/ns/net", r.PID)
	case r.Netns != "":
		t.ns.Path = r.Netns
	default:
		t.make = r.Name
		t.ns.Path = datapath.Namespace{Name: r.Name}.NS().Path
	}
	if t.make == "" {
		if !t.host {
			if t.ns.Inode, err = a.Datapath.Inode(t.ns.Path); err != nil {
				return t, err
			}
		}
		if t.links, err = a.Datapath.LinkNames(t.ns); err != nil {
			return t, err
		}
	}
	if r.Session != 0 {
		t.session = r.Session
		t.start, err = a.Processes.Started(r.Session)
	}
	if err == nil && len(r.Publish) > 0 {
		t.bound, err = a.Datapath.Bound()
	}
	if there != nil && err == nil && (there.ns != t.ns || there.host != t.host) {
		return t, overlay.Errorf(overlay.Exists, "%s is attached already, in %s; detach it first, or take another name", r.Name, there.place())
	}
	return t, err
}

// place is the target in words.
func (t target) place() string {
	if t.host {
		return "the host itself"
	}
	return t.ns.Path
}

// whereIs is where a workload is attached on this node, or nil.
func (a *Agent) whereIs(ctx context.Context, workload string) (t *target, err error) {
	err = a.do(ctx, func(context.Context) {
		for _, e := range a.endpoints {
			if e.Workload == workload && e.state != overlay.EndpointLost && e.leaving == nil {
				t = &target{ns: e.Namespace, make: e.Make, host: e.Host, session: e.PID, start: e.Started}
			}
		}
	})
	return t, err
}

// hides refuses a network on the host itself whose subnets hide what the host routes. In the loop.
func (a *Agent) hides(n *network) error {
	routes, err := a.Datapath.Routes()
	if err != nil {
		return err
	}
	for _, s := range n.def.Subnets {
		if i := slices.IndexFunc(routes, s.Prefix.Overlaps); i >= 0 {
			return overlay.Errorf(overlay.Exists, "this host routes %s, which overlaps subnet %s of network %s; the host itself can't be in that network", routes[i], s.Prefix, n.def.Name)
		}
		for _, e := range a.endpoints {
			other := a.network(e.Network).def
			if !e.Host || e.state == overlay.EndpointLost || other.ID == n.def.ID {
				continue
			}
			for _, o := range other.Subnets {
				if o.Prefix.Overlaps(s.Prefix) {
					return overlay.Errorf(overlay.Exists, "this host is in network %s, whose subnet %s overlaps %s of network %s; detach %s first", other.Name, o.Prefix, s.Prefix, n.def.Name, e.Workload)
				}
			}
		}
	}
	return nil
}
