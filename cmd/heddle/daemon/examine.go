//go:build linux

package daemon

import (
	"context"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/heddle-net/heddle/cmd/heddle/daemon/doctor"
	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/kernel"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/plan"
)

// examineTime is how long doctor looks at most: a kernel of 10,000 entries is read, and peers that
// do not answer are waited for meanwhile.
const examineTime = 10 * time.Second

// Doctor reads this node, and how others answer it, and judges that. It needs no manager.
func (d *Daemon) Doctor(ctx context.Context) (overlay.Diagnosis, error) {
	ctx, cancel := context.WithTimeout(ctx, examineTime)
	defer cancel()
	x := examiner{d.kernel, d.loop.Wanted()}
	if x.want == nil {
		x.want = &datapath.Config{}
	}
	var r doctor.Readings
	name, _ := nodeName()
	removed := d.wasRemoved() != nil
	var ports []datapath.Port
	m := d.current()
	if m != nil {
		row, in := m.self()
		if removed = !in; in {
			name = row.Name
		}
		c := d.readCluster(ctx, m, x)
		r.Cluster = &c
		ports = []datapath.Port{{Proto: "tcp", Port: c.Ports.Control}, {Proto: "tcp", Port: c.Ports.Gossip}, {Proto: "udp", Port: c.Ports.Gossip}}
		for _, port := range m.ports() {
			ports = append(ports, datapath.Port{Proto: "udp", Port: port})
		}
		for i := range ports {
			ports[i].At, ports[i].Link = c.Link.Addr, c.Link.Name
		}
	}
	k := x.readKernel(ports)
	d.readDrift(ctx, x, &k)
	r.Kernel = &k
	r.Host = readHost(d.kernel, d.cfg.DataDir)
	r.Host.Links = x.hostLinks()
	if removed {
		r.Removed = errRemoved.Error()
	}
	return overlay.Diagnosis{
		Name: name, Version: d.version, Member: m != nil,
		Drift: doctor.Drift(r.Kernel), Repaired: d.loop.Status().Drift, Findings: doctor.Findings(r),
	}, nil
}

// ExamineHost is what doctor says where no daemon answers, and why it does not.
func ExamineHost(version, why string) (overlay.Diagnosis, error) {
	if os.Geteuid() != 0 {
		return overlay.Diagnosis{}, overlay.Errorf(overlay.Denied, "%s; as root, this looks at the host without it", why)
	}
	k := kernel.New(kernel.Config{})
	defer k.Close()
	name, _ := nodeName()
	r := doctor.Readings{Host: readHost(k, DefaultConfig().DataDir), Daemon: why}
	return overlay.Diagnosis{Name: name, Version: version, Drift: doctor.Drift(nil), Findings: doctor.Findings(r)}, nil
}

// examiner reads the kernel for a node that wants something of it.
type examiner struct {
	kernel *kernel.Kernel
	want   *datapath.Config
}

// readDrift asks the reconciler.
func (d *Daemon) readDrift(ctx context.Context, x examiner, k *doctor.Kernel) {
	var err error
	if k.Differences, err = d.loop.Plan(ctx); err != nil {
		k.Err = err.Error()
	}
	k.Errors = map[datapath.Owner]string{}
	for owner, err := range d.loop.Status().Errors {
		k.Errors[owner] = err.Error()
	}
	w := x.want
	for _, f := range w.Filters {
		k.Objects += len(f.Allowed)
	}
	k.Objects += len(w.Namespaces) + len(w.Links) + len(w.Addresses) + len(w.Neighbors) + len(w.FDB) + len(w.Routes) + len(w.WGPeers)
}

func (x examiner) readKernel(ports []datapath.Port) (k doctor.Kernel) {
	for _, ns := range x.overlays() {
		k.Overlays++
		on, err := x.kernel.Settings(ns, "net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables", "net/bridge/bridge-nf-call-arptables")
		if err != nil {
			continue // it is missing, which is drift
		}
		for _, setting := range slices.Sorted(maps.Keys(on)) {
			if on[setting] != "0" {
				k.Filtered = append(k.Filtered, ns.String()+" "+setting)
			}
		}
	}
	k.Neighbors = x.neighbors()
	var egress datapath.Egress
	if x.want.Egress != egress {
		egress = plan.Egress()
	}
	lines, err := x.kernel.Obstacles(egress, ports...)
	if k.Walls = lines; err != nil {
		k.WallsErr = err.Error()
	}
	if l, err := x.kernel.Listening(); err == nil {
		k.Lost = l.Lost
	}
	return k
}

// overlays are the namespaces of networks.
func (x examiner) overlays() (out []datapath.NS) {
	for _, l := range x.want.Links {
		if l.Kind == datapath.Bridge && l.NS != (datapath.NS{}) {
			out = append(out, l.NS)
		}
	}
	return out
}

// neighbors counts what is in the tables, and what workloads may bring: each an entry for all that
// its networks have.
func (x examiner) neighbors() (out []doctor.Neighbors) {
	ports := map[datapath.NS]int{}
	for _, l := range x.want.Links {
		if l.Kind == datapath.Veth && l.Master != "" {
			ports[l.NS]++
		}
	}
	var own, coming [2]int
	for _, n := range x.want.Neighbors {
		i := 0
		if n.IP.Is6() {
			i = 1
		}
		own[i]++
		coming[i] += ports[n.NS]
	}
	tables, err := x.kernel.NeighborTables()
	if err != nil {
		return nil
	}
	for _, t := range tables {
		i := 0
		if t.Six {
			i = 1
		}
		out = append(out, doctor.Neighbors{Six: t.Six, Limit: t.Limit, There: max(0, t.Entries-own[i]), Coming: coming[i]})
	}
	return out
}

// uplinks are the host's ends, with the address that workloads' packets come from.
func (x examiner) uplinks() map[string]datapath.Address {
	out := map[string]datapath.Address{}
	for _, l := range x.want.Links {
		if l.Kind != datapath.Veth || l.Peer.NS != (datapath.NS{}) || !strings.HasPrefix(l.Peer.Name, plan.UplinkPrefix) {
			continue
		}
		for _, a := range x.want.Addresses {
			if a.NS == l.NS && a.Link == l.Name && a.Prefix.Addr().Is4() {
				out[l.Peer.Name] = a
			}
		}
	}
	return out
}

// hostLinks are the names of heddle's links among the host's own.
func (x examiner) hostLinks() (names []string) {
	for _, l := range x.want.Links {
		if l.Kind == datapath.Veth && l.Peer.NS.Path == "" {
			names = append(names, l.Peer.Name)
		}
	}
	slices.Sort(names)
	return names
}
