//go:build linux

package daemon

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/plan"
)

// Status is this node's own view. It asks nobody.
func (d *Daemon) Status(ctx context.Context) (s overlay.Status, err error) {
	s = overlay.Status{Version: d.version, Managers: []overlay.ManagerStatus{}, Peers: []overlay.PeerStatus{}, Endpoints: []overlay.Endpoint{}, Counters: map[string]uint64{}}
	s.Name, _ = nodeName()
	m := d.current()
	if id := d.wasRemoved(); id != nil {
		s.Cluster, s.Node, s.Problems = id.Cluster, id.Node, []string{errRemoved.Error()}
	}
	if m == nil {
		return s, d.aloneStatus(ctx, &s)
	}
	f := m.facts()
	id := m.cred.Identity()
	s.Member, s.Cluster, s.Node, s.Role, s.Revision = true, id.Cluster, id.Node, m.cred.Subject().Role, f.Revision
	s.Addr, s.DataPath, s.Networks = m.at.Advertise.String(), m.at.DataPath.String(), 0
	row, member := m.self()
	if member {
		s.Name, s.Role = row.Name, row.Role
	}
	s.Ports = []overlay.PortStatus{
		{Port: d.cfg.ControlPort, Proto: "tcp", Use: "control"},
		{Port: d.cfg.GossipPort, Proto: "tcp+udp", Use: "gossip"},
		{Port: f.Params.DataPathPort, Proto: "udp", Use: "data path (VXLAN)"},
	}
	for _, p := range d.cfg.WireGuardPorts() {
		s.Ports = append(s.Ports, overlay.PortStatus{Port: p, Proto: "udp", Use: "encrypted networks (WireGuard)"})
	}
	s.Managers = m.managers(f)
	s.Peers = append(s.Peers, m.gossip.Load().Peers()...)
	eps, err := m.agent.Endpoints(ctx)
	if err != nil {
		return s, err
	}
	s.Endpoints = append(s.Endpoints, eps...)
	networks := map[overlay.NetworkID]bool{}
	for _, e := range eps {
		networks[e.NetworkID] = true
	}
	s.Networks = len(networks)
	d.count(m, eps, s.Counters)
	s.Problems = d.problems(m, s, member)
	return s, nil
}

// managers are the managers as this node knows them.
func (m *member) managers(f *overlay.Facts) []overlay.ManagerStatus {
	from, beat := m.watcher.Source()
	rows := []overlay.ManagerStatus{}
	for _, n := range f.Managers() {
		rows = append(rows, overlay.ManagerStatus{Name: n.Name, Addr: n.Control.String(), Leader: n.ID == beat.Leader, Following: n.ID == from})
	}
	slices.SortFunc(rows, func(a, b overlay.ManagerStatus) int { return strings.Compare(a.Name, b.Name) })
	return rows
}

// count gathers what was refused, dropped and repaired.
func (d *Daemon) count(m *member, eps []overlay.Endpoint, into map[string]uint64) {
	maps.Copy(into, m.gossip.Load().Counters())
	for kind, n := range d.loop.Status().Drift {
		into["drift repaired: "+kind] = n
	}
	if received, sent, err := d.kernel.Denied(); err == nil {
		into["frames dropped: not from a participant"] = received
		into["frames dropped: VXLAN from a program of this host"] = sent
	}
	d.countForged(eps, into)
}

// countForged adds what workloads have sent that is not theirs to send.
func (d *Daemon) countForged(eps []overlay.Endpoint, into map[string]uint64) {
	dropped := map[datapath.NS]map[string]map[datapath.Forgery]uint64{}
	for _, e := range eps {
		ns := datapath.Namespace{Name: overlay.Network{ID: e.NetworkID}.NamespaceName()}.NS()
		if _, asked := dropped[ns]; !asked {
			dropped[ns], _ = d.kernel.Dropped(ns) // nothing where the network does not stand
		}
		for kind, n := range dropped[ns][plan.PortName(e.ID)] {
			if n > 0 {
				into[fmt.Sprintf("frames dropped: forged by %s in %s (%s)", e.Name, e.NetworkName, kind)] = n
			}
		}
	}
}

// ports are the UDP ports that frames come in by.
func (m *member) ports() []uint16 {
	ports := []uint16{m.facts().Params.DataPathPort}
	for _, n := range m.facts().Networks {
		if n.Encrypted {
			return append(ports, m.d.cfg.WireGuardPorts()...)
		}
	}
	return ports
}

// problems are what an operator should look at, each with what to do.
func (d *Daemon) problems(m *member, s overlay.Status, member bool) (out []string) {
	if !member {
		return []string{errRemoved.Error()}
	}
	if err := m.role.problem(); err != nil {
		out = append(out, fmt.Sprintf("no manager runs on this node, which should be one: %s", strings.ReplaceAll(err.Error(), "\n", "; ")))
	}
	if from, _ := m.watcher.Source(); from == "" {
		out = append(out, "no manager answers: networks and leases can't change; workloads and their addresses go on")
	}
	for _, p := range s.Peers {
		if p.State == "dead" {
			out = append(out, fmt.Sprintf("node %s (%s) does not answer; start it, or remove it for good with `heddle node rm %s`", p.Name, p.Addr, p.Name))
		}
	}
	if behind := m.behind(overlay.Level); len(behind) > 0 && m.facts().Level < overlay.Level {
		out = append(out, fmt.Sprintf("feature level %d (%s) waits for %s; upgrade heddle there", overlay.Level, overlay.Features, strings.Join(behind, ", ")))
	}
	out = append(out, m.gossip.Load().Conflicts()...)
	for _, e := range s.Endpoints {
		if e.State == overlay.EndpointLost {
			out = append(out, fmt.Sprintf("the namespace of workload %s (%s) is gone; its addresses are kept for 10 minutes: attach it again, or `heddle detach %s`", e.Name, e.Namespace, e.Name))
		}
	}
	if s.Networks > 0 {
		out = append(out, kernelState{d.kernel, d.loop, d.balance}.Obstacles(true, m.ports()...)...)
	}
	errs := d.loop.Status().Errors
	for _, owner := range slices.Sorted(maps.Keys(errs)) {
		out = append(out, strings.ReplaceAll(errs[owner].Error(), "\n", "; "))
	}
	var services []string
	for ns, err := range d.balance.Errs() {
		services = append(services, fmt.Sprintf("workloads in %s do not reach services by their addresses: %s", ns, strings.ReplaceAll(err.Error(), "\n", "; ")))
	}
	return append(out, slices.Sorted(slices.Values(services))...)
}
