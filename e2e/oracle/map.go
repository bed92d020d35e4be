//go:build linux

package oracle

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

// node is a member of a cluster as its own status tells of it.
type node struct {
	host *lab.Host
	cluster.Status
	live   map[string]cluster.Endpoint // all of the cluster that have a workload, by ID
	known  map[string]*node            // all members with a daemon, by ID
	spaces map[string]space            // as its kernel has them
}

// Truth is what owners and managers say: what their kernels should hold.
type Truth struct{ clusters [][]*node }

// Map compares what the kernel of each member holds with what the owners of endpoints and the
// managers say: links, forwarding entries, self and master, and neighbours in the namespaces of
// networks, interfaces and addresses in those of workloads. It returns the differences. Hosts
// without a daemon are not looked at; what is said of them is the managers' word.
func Map(ctx context.Context, c *cluster.Cluster) (differences []string, err error) {
	t, differences, err := Ask(ctx, c)
	if err != nil {
		return nil, err
	}
	more, err := t.Compare(ctx)
	return append(differences, more...), err
}

// Ask asks owners and managers, and returns in what these differ.
func Ask(ctx context.Context, c *cluster.Cluster) (t Truth, differences []string, err error) {
	clusters := map[string][]*node{}
	for _, h := range c.Hosts() {
		if h.Daemon() == nil {
			continue
		}
		n := &node{host: h}
		if err := c.JSON(ctx, h, &n.Status, "status", "--format", "json"); err != nil {
			return t, nil, err
		}
		if n.Member {
			clusters[n.Cluster] = append(clusters[n.Cluster], n)
		}
	}
	for _, members := range clusters {
		rows, nodes, ok := managersWord(ctx, c, members)
		if ok { // a node that was removed and has not left is no member
			members = slices.DeleteFunc(members, func(n *node) bool { return !nodes[n.Node] })
		}
		live := map[string]cluster.Endpoint{} // by ID
		known := map[string]*node{}           // by ID
		var own, theirs []string
		for _, n := range members {
			known[n.Node] = n
			n.live, n.known = live, known
			for _, e := range n.Endpoints {
				if e.State == "ready" {
					live[e.ID] = e
					own = append(own, n.Name+"/"+e.Name+" in "+e.Network)
				}
			}
		}
		for _, e := range rows {
			if known[e.NodeID] == nil {
				live[e.ID] = e // its daemon is away
			} else {
				theirs = append(theirs, e.Node+"/"+e.Name+" in "+e.Network)
			}
		}
		if ok {
			differences = append(differences, compare("the managers' list of endpoints", own, theirs)...)
		}
		t.clusters = append(t.clusters, members)
	}
	return t, differences, nil
}

// Compare reads the kernels of the hosts that were asked, and returns in what they differ from
// what was said.
func (t Truth) Compare(ctx context.Context) (differences []string, err error) {
	for _, members := range t.clusters {
		for _, n := range members {
			if n.spaces, err = readSpaces(ctx, n.host, n.Endpoints); err != nil {
				return nil, err
			}
		}
		for _, n := range members {
			differences = append(differences, compare(n.Name, n.wants(), n.holds())...)
		}
	}
	return differences, nil
}

// managersWord is what the managers list: endpoints, and the IDs of nodes. It is not ok while they
// have no quorum, which they look for longer than is waited here.
func managersWord(ctx context.Context, c *cluster.Cluster, members []*node) (rows []cluster.Endpoint, nodes map[string]bool, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for _, n := range members {
		if n.Role != "manager" {
			continue
		}
		var list []cluster.Node
		if c.JSON(ctx, n.host, &rows, "endpoint", "ls", "--format", "json") != nil || c.JSON(ctx, n.host, &list, "node", "ls", "--format", "json") != nil {
			return nil, nil, false
		}
		nodes = map[string]bool{}
		for _, r := range list {
			nodes[r.ID] = true
		}
		return rows, nodes, true
	}
	return nil, nil, false
}

func compare(where string, want, got []string) (differences []string) {
	slices.Sort(want)
	slices.Sort(got)
	for _, w := range want {
		if _, there := slices.BinarySearch(got, w); !there {
			differences = append(differences, where+" lacks: "+w)
		}
	}
	for _, g := range got {
		if _, there := slices.BinarySearch(want, g); !there {
			differences = append(differences, where+" should not have: "+g)
		}
	}
	return differences
}

// sealed is the namespace through which nodes send to each other's inner addresses, which are those
// of their links there.
const sealed = "heddle-wg"

// aside are the addresses of uplinks and of namespaces themselves, which are nobody's endpoint.
var aside = []netip.Prefix{netip.MustParsePrefix("169.254.128.0/17"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd68:6564:646c::/48")}

func spaceOf(network string) string { return "heddle-" + network[:12] }
func portOf(endpoint string) string { return "ep-" + endpoint[:12] }

// networks are the names of the namespaces that the node's endpoints want.
func (n *node) networks() map[string]bool {
	all := map[string]bool{}
	for _, e := range n.Endpoints {
		if e.State == "ready" {
			all[spaceOf(e.NetworkID)] = true
		}
	}
	return all
}

// wants is a line for each thing that the node's kernel should hold of these endpoints.
func (n *node) wants() (lines []string) {
	networks := n.networks()
	for ns := range networks {
		lines = append(lines, ns+": link br0 up", ns+": link vxlan0 up in br0")
	}
	for _, e := range n.live {
		ns := spaceOf(e.NetworkID)
		if !networks[ns] {
			continue
		}
		for _, p := range prefixes(e) {
			lines = append(lines, fmt.Sprintf("%s: neighbour %s is %s", ns, p.Addr(), e.MAC))
		}
		if e.NodeID != n.Node {
			vtep := "n/a"
			if owner := n.known[e.NodeID]; owner != nil {
				vtep = owner.DataPath
			}
			lines = append(lines, fmt.Sprintf("%s: %s by vxlan0 to %s", ns, e.MAC, vtep), fmt.Sprintf("%s: %s by vxlan0", ns, e.MAC))
			continue
		}
		lines = append(lines, fmt.Sprintf("%s: %s by %s", ns, e.MAC, portOf(e.ID)), fmt.Sprintf("%s: link %s up in br0", ns, portOf(e.ID)))
		lines = append(lines, fmt.Sprintf("%s: %s of %s is %s, up", e.Namespace, e.Interface, e.Name, e.MAC))
		for _, p := range prefixes(e) {
			lines = append(lines, fmt.Sprintf("%s: %s has %s", e.Namespace, e.Interface, p))
		}
	}
	return lines
}

// holds is the same of what the kernel has, but for what may be left of endpoints without a workload.
func (n *node) holds() (lines []string) {
	lost := map[string]bool{} // by MAC
	for _, e := range n.Endpoints {
		lost[e.MAC] = lost[e.MAC] || e.State != "ready"
	}
	for ns := range n.networks() {
		lines = append(lines, n.spaces[ns].links(ns, lost)...)
		lines = append(lines, n.entries(ns, lost)...)
	}
	for _, e := range n.Endpoints {
		if e.State == "ready" {
			lines = append(lines, n.interfaceOf(e)...)
		}
	}
	return lines
}

func (s space) links(ns string, lost map[string]bool) (lines []string) {
	for _, l := range s.Links {
		if l.Name == "lo" || l.Name == "uplink" || lost[s.by(l.Name)] {
			continue
		}
		line := ns + ": link " + l.Name
		if slices.Contains(l.Flags, "UP") {
			line += " up"
		}
		if l.Master != "" {
			line += " in " + l.Master
		}
		lines = append(lines, line)
	}
	return lines
}

// entries are the forwarding entries and neighbours of a network. Where frames for a node go is
// told as the address that the node says it has, and as n/a for one without a daemon.
func (n *node) entries(ns string, lost map[string]bool) (lines []string) {
	owner := map[string]string{} // of a MAC
	for _, e := range n.live {
		if spaceOf(e.NetworkID) == ns {
			owner[e.MAC] = e.NodeID
		}
	}
	routers := map[string]string{} // nodes by the MAC of their namespaces
	for id := range n.known {
		routers[routerMAC(id)] = id
	}
	for _, e := range n.live { // also of a node whose daemon is away
		routers[routerMAC(e.NodeID)] = e.NodeID
	}
	for _, f := range n.spaces[ns].FDB {
		if id := routers[f.MAC]; id != "" && f.State != "permanent" && !lost[f.MAC] { // of a participant, with workloads there or without
			owner[f.MAC] = id
			if o := n.known[id]; o == nil || f.Dst == "" || f.Dst == o.DataPath || o.spaces[sealed].has(f.Dst) {
				continue
			}
		}
		switch {
		case lost[f.MAC]:
		case f.Dst != "":
			if o := n.known[owner[f.MAC]]; o == nil && owner[f.MAC] != "" {
				f.Dst = "n/a"
			} else if o != nil && o.spaces[sealed].has(f.Dst) {
				f.Dst = o.DataPath
			}
			lines = append(lines, fmt.Sprintf("%s: %s by %s to %s", ns, f.MAC, f.Dev, f.Dst))
		case f.Master != "" && f.State != "permanent": // permanent are the ports' own
			lines = append(lines, fmt.Sprintf("%s: %s by %s", ns, f.MAC, f.Dev))
		}
	}
	for _, g := range n.spaces[ns].Neighbors {
		ip, _ := netip.ParseAddr(g.IP)
		if !lost[g.MAC] && !slices.ContainsFunc(aside, func(p netip.Prefix) bool { return p.Contains(ip) }) {
			lines = append(lines, fmt.Sprintf("%s: neighbour %s is %s", ns, g.IP, g.MAC))
		}
	}
	return lines
}

// routerMAC is that of a node's namespaces, which follows from its ID.
func routerMAC(id string) string {
	mac := "fe"
	for i := 0; i < 10; i += 2 {
		mac += ":" + id[i:i+2]
	}
	return mac
}

func (n *node) interfaceOf(e cluster.Endpoint) (lines []string) {
	for _, l := range n.spaces[e.Namespace].Links {
		if l.Name != e.Interface {
			continue
		}
		line := fmt.Sprintf("%s: %s of %s is %s", e.Namespace, e.Interface, e.Name, l.MAC)
		if slices.Contains(l.Flags, "UP") {
			line += ", up"
		}
		lines = append(lines, line)
		for _, a := range l.Addrs {
			if a.Scope == "global" {
				lines = append(lines, fmt.Sprintf("%s: %s has %s/%d", e.Namespace, e.Interface, a.Local, a.Bits))
			}
		}
	}
	return lines
}

func prefixes(e cluster.Endpoint) (out []netip.Prefix) {
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if p.IsValid() {
			out = append(out, p)
		}
	}
	return out
}
