package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

// published decides at which ports of this host those of a workload are: the ones asked for, else
// those that the workload had before, else the first that are free. In the loop.
func (a *Agent) published(n *network, r overlay.AttachRequest, kept []overlay.Publish, bound []datapath.Port) (out []overlay.Publish, err error) {
	if len(r.Publish) > 0 && n.def.Internal {
		return nil, overlay.Errorf(overlay.Invalid, "network %s is internal, so that nothing from outside reaches it; attach %s to another network to publish its ports", n.def.Name, r.Name)
	}
	held := append(a.held(), programs(bound)...)
	for _, p := range r.Publish {
		if p.Addr.IsValid() && !slices.ContainsFunc(n.def.Subnets, func(s overlay.Subnet) bool { return s.Prefix.Addr().Is4() == p.Addr.Is4() }) {
			return nil, overlay.Errorf(overlay.Invalid, "network %s has no addresses like %s, of which a port is to be published; name one of its other family, or none", n.def.Name, p.Addr)
		}
		if p.Port == 0 {
			if p.Port = free(p, held, kept); p.Port == 0 {
				return nil, overlay.Errorf(overlay.Exhausted, "none of the ports %d to %d of this host is free to publish %d/%s of %s at; name another", overlay.FirstDynamicPort, overlay.LastDynamicPort, p.Target, p.Proto, r.Name)
			}
		} else if i := slices.IndexFunc(held, func(h holding) bool { return h.Clashes(p) }); i >= 0 {
			return nil, overlay.Errorf(overlay.InUse, "port %d/%s of this host is taken by %s; choose another one, or end that", p.Port, p.Proto, a.holder(held[i]))
		}
		out = append(out, p)
		held = append(held, holding{Publish: p})
	}
	return out, nil
}

// holding is a port of the host and whose it is; "" is a program's.
type holding struct {
	overlay.Publish
	by string
}

// held are the ports of this host that workloads and services have. In the loop.
func (a *Agent) held() (out []holding) {
	for _, e := range a.endpoints {
		if e.state == overlay.EndpointLost {
			continue // it gets others when it is found again, if need be
		}
		for _, p := range e.Publish {
			out = append(out, holding{p, "the workload " + e.Workload})
		}
	}
	f := a.Facts.Facts()
	for _, s := range f.Services {
		for _, p := range s.Publish {
			out = append(out, holding{p, fmt.Sprintf("the service %s of network %s", s.Name, f.Networks[s.Network].Name)})
		}
	}
	return out
}

func programs(bound []datapath.Port) (out []holding) {
	for _, b := range bound {
		out = append(out, holding{Publish: overlay.Publish{Proto: b.Proto, Port: b.Port, Addr: b.At}})
	}
	return out
}

// holder names who has a port.
func (a *Agent) holder(h holding) string {
	if h.by != "" {
		return h.by
	}
	if name := a.Datapath.Program(datapath.Port{Proto: h.Proto, Port: h.Port}); name != "" {
		return "the program " + name
	}
	return "a program of this host"
}

// free is a port that nobody has, 0 where there is none: the one of before if it is free.
func free(p overlay.Publish, held []holding, kept []overlay.Publish) uint16 {
	taken := func(port uint16) bool {
		p.Port = port
		return slices.ContainsFunc(held, func(h holding) bool { return h.Clashes(p) })
	}
	for _, k := range kept {
		if k.Addr == p.Addr && k.Proto == p.Proto && k.Target == p.Target && k.Port >= overlay.FirstDynamicPort && k.Port <= overlay.LastDynamicPort && !taken(k.Port) {
			return k.Port
		}
	}
	for port := uint16(overlay.FirstDynamicPort); port <= overlay.LastDynamicPort; port++ {
		if !taken(port) {
			return port
		}
	}
	return 0
}

// asPublished says whether a repeated request asks for the ports that there are.
func asPublished(asked, have []overlay.Publish) bool {
	return slices.EqualFunc(asked, have, func(a, h overlay.Publish) bool {
		if a.Port == 0 {
			a.Port = h.Port
		}
		return a == h
	})
}

// isEntrance says whether a network stands here for the sake of a service that is on every node. In the
// loop.
func (a *Agent) isEntrance(n *network) bool {
	if _, in := n.leases[a.Self]; !in || n.def.Internal {
		return false
	}
	return a.wantsIn(n.def.ID)
}

// enterAll takes part in the networks of services that are on every node. In the loop.
func (a *Agent) enterAll(ctx context.Context) {
	f := a.Facts.Facts()
	for _, s := range f.Services {
		def, known := f.Networks[s.Network]
		if !s.Ingress() || !known || def.Internal || a.removed {
			continue
		}
		n := a.network(s.Network)
		if _, in := n.leases[a.Self]; in || n.entering {
			continue
		}
		n.entering = true
		a.background(func() { a.enterFor(ctx, s.Network, def.Name, n) })
	}
}

// enterFor asks until this node takes part in a network, or need not any more.
func (a *Agent) enterFor(ctx context.Context, id overlay.NetworkID, name string, n *network) {
	wait, told := syncFirst, false
	for {
		g, err := a.Control.Enter(ctx, id)
		if err != nil && ctx.Err() == nil && !told {
			told = true
			a.Log.Warn("enter the network of a service that is published on every node; trying again", "network", name, "err", err)
		}
		over := false
		if a.do(ctx, func(life context.Context) {
			if a.networks[id] != n {
				over = true
				return
			}
			if err == nil {
				a.know(g.Network, g.Leases, g.Revision)
			}
			if over = err == nil || !a.wantsIn(id); over {
				n.entering = false
				a.learn(life)
				a.replan()
			}
		}) != nil || over {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, enterMost)
	}
}

const enterMost = 10 * time.Second // between two requests to enter a network

// wantsIn says whether a service of a network is on every node. In the loop.
func (a *Agent) wantsIn(id overlay.NetworkID) bool {
	return slices.ContainsFunc(a.offered(id).Services, func(s overlay.Service) bool { return s.Ingress() })
}
