package doctor

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

// Findings judges readings: one function for each thing that is looked at, in the order in which
// they are shown. Another check is another function here, with what it reads in Readings. Each
// says something whatever it finds, or nothing where its readings are not there.
func Findings(r Readings) (out []overlay.Finding) {
	host := []func(Host) []overlay.Finding{features, encryption, disk, inotify, notifications, networkd, networkManager, legacyTables}
	kernel := []func(Kernel) []overlay.Finding{kernelState, lost, bridgeFilter, neighbors, walls}
	cluster := []func(Cluster) []overlay.Finding{
		managers, level, addresses, peers, controlPort, gossipPort, gossipPackets, dataPath, wireGuard, checksums, packetSizes, linkMTUs, offloads, reversePath, clocks,
	}
	out = daemon(r)
	for _, check := range host {
		out = append(out, check(r.Host)...)
	}
	if r.Kernel != nil {
		for _, check := range kernel {
			out = append(out, check(*r.Kernel)...)
		}
	}
	if r.Cluster != nil {
		for _, check := range cluster {
			out = append(out, check(*r.Cluster)...)
		}
	}
	return out
}

// Drift is the differences as rows.
func Drift(k *Kernel) []overlay.DriftRow {
	rows := []overlay.DriftRow{}
	if k != nil {
		for _, d := range k.Differences {
			rows = append(rows, overlay.DriftRow{What: d.Kind, Where: d.Where, Found: d.Found, Do: d.Do})
		}
	}
	return rows
}

func one(name string, v overlay.Verdict, mend, format string, args ...any) []overlay.Finding {
	return []overlay.Finding{{Name: name, Verdict: v, Mend: mend, Found: fmt.Sprintf(format, args...)}}
}

// orGood are the findings, or that all is well.
func orGood(bad []overlay.Finding, name, format string, args ...any) []overlay.Finding {
	if len(bad) > 0 {
		return bad
	}
	return one(name, overlay.Good, "", format, args...)
}

// several lists names, the first of many.
func several(names []string) string {
	const most = 6
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// cut takes a line apart that says what to type.
func cut(line string) (found, mend string) {
	found, mend, _ = strings.Cut(line, "; type `")
	return found, strings.TrimSuffix(mend, "`")
}

func daemon(r Readings) []overlay.Finding {
	switch {
	case r.Daemon != "":
		return one("daemon", overlay.Problem, "systemctl enable --now heddle", "%s; what follows is of the host alone", r.Daemon)
	case r.Removed != "":
		return one("daemon", overlay.Problem, "heddle leave --force", "%s", r.Removed)
	case r.Cluster == nil:
		return one("daemon", overlay.Good, "", "it answers; this node is in no cluster, so that nothing is said of other nodes")
	}
	return one("daemon", overlay.Good, "", "it answers")
}

func kernelState(k Kernel) (out []overlay.Finding) {
	const name = "kernel state"
	if k.Err != "" {
		return one(name, overlay.Problem, "", "%s", k.Err)
	}
	held := map[datapath.Owner]bool{}
	for _, owner := range slices.Sorted(maps.Keys(k.Errors)) {
		held[owner] = true
		out = append(out, one(name, overlay.Problem, "", "heddle can't bring it about: %s", strings.ReplaceAll(k.Errors[owner], "\n", "; "))...)
	}
	drift := 0
	for _, d := range k.Differences {
		if !held[d.Owner] {
			drift++
		}
	}
	if drift > 0 {
		out = append(out, one(name, overlay.Warning, "", "%d objects are not as wanted; heddle repairs them when it is told of the change, or within 30 s", drift)...)
	}
	return orGood(out, name, "all of %d objects are as wanted", k.Objects)
}

func lost(k Kernel) []overlay.Finding {
	if k.Lost == 0 {
		return nil
	}
	return one("notifications", overlay.Good, "", "more came than the buffer holds, %d times; the kernel was read whole instead", k.Lost)
}

func bridgeFilter(k Kernel) (out []overlay.Finding) {
	for _, f := range k.Filtered {
		ns, setting, _ := strings.Cut(f, " ")
		setting = strings.ReplaceAll(setting, "/", ".")
		out = append(out, one("bridge-nf", overlay.Warning, fmt.Sprintf("ip netns exec %s sysctl -w %s=0", ns, setting),
			"%s is on in %s: bridged frames pass a packet filter and are slower, or dropped; heddle turns it off within 30 s", setting, ns)...)
	}
	return orGood(out, "bridge-nf", "off in the namespaces of networks (%d)", k.Overlays)
}

func neighbors(k Kernel) (out []overlay.Finding) {
	for _, n := range k.Neighbors {
		name, family := "neighbours IPv4", "ipv4"
		if n.Six {
			name, family = "neighbours IPv6", "ipv6"
		}
		need := 2 * (n.There + n.Coming)
		limit := 1024
		for limit < need {
			limit *= 2
		}
		mend := fmt.Sprintf("sysctl -w net.%s.neigh.default.gc_thresh3=%d net.%s.neigh.default.gc_thresh2=%d", family, limit, family, limit/2)
		switch {
		case n.There*10 >= n.Limit*9:
			out = append(out, one(name, overlay.Problem, mend, "%d of at most %d entries are there, of all namespaces together: workloads lose contact when it is full", n.There, n.Limit)...)
		case n.There+n.Coming > n.Limit:
			out = append(out, one(name, overlay.Warning, mend, "%d entries are there, and %d may come if each workload here talks to all of its networks: more than the limit of %d for all namespaces", n.There, n.Coming, n.Limit)...)
		default:
			out = append(out, one(name, overlay.Good, "", "%d of at most %d entries, and at most %d to come from workloads here", n.There, n.Limit, n.Coming)...)
		}
	}
	return out
}

func walls(k Kernel) (out []overlay.Finding) {
	const name = "firewall"
	if k.WallsErr != "" {
		return one(name, overlay.Warning, "", "the host's rules can't be read: %s", k.WallsErr)
	}
	for _, line := range k.Walls {
		found, mend := cut(line)
		out = append(out, one(name, overlay.Problem, mend, "%s", found)...)
	}
	return orGood(out, name, "no rule of others is seen to drop what heddle needs")
}

func managers(c Cluster) (out []overlay.Finding) {
	const name = "managers"
	if c.Role != "" {
		out = one(name, overlay.Problem, "systemctl restart heddle", "no manager runs on this node, which should be one: %s", c.Role)
	}
	if c.Follows == "" {
		return append(out, one(name, overlay.Warning, "start heddle on "+several(c.Managers), "none of %s answers: networks and leases can't change; workloads and their addresses go on", several(c.Managers))...)
	}
	return orGood(out, name, "%s is followed, revision %d", c.Follows, c.Revision)
}

func level(c Cluster) []overlay.Finding {
	if len(c.Behind) > 0 && c.Level < overlay.Level {
		return one("feature level", overlay.Warning, "upgrade heddle on "+several(c.Behind), "level %d (%s) waits for %s", overlay.Level, overlay.Features, several(c.Behind))
	}
	return one("feature level", overlay.Good, "", "%d", c.Level)
}

func addresses(c Cluster) (out []overlay.Finding) {
	const name = "data-path address"
	if c.Link.Err != "" {
		out = one(name, overlay.Problem, fmt.Sprintf("ip addr add %s dev LINK", c.Link.Addr), "%s: no overlay reaches another node", c.Link.Err)
	}
	for _, line := range c.Conflicts {
		out = append(out, one(name, overlay.Problem, "", "%s", line)...)
	}
	return orGood(out, name, "%s on %s", c.Link.Addr, c.Link.Name)
}

func clocks(c Cluster) (out []overlay.Finding) {
	const name = "clock"
	const forgiven, near = 60, 1 // minutes: certificates forgive an hour
	var same []string
	for _, p := range c.Peers {
		off := p.Ahead.Abs().Minutes()
		mend := "timedatectl set-ntp true   # here and on " + p.Name
		switch {
		case p.Control != "":
		case off >= forgiven:
			out = append(out, one(name, overlay.Problem, mend, "that of %s and this node's are %s apart: certificates forgive an hour", p.Name, p.Ahead.Abs().Round(1e9))...)
		case off >= near:
			out = append(out, one(name, overlay.Warning, mend, "that of %s and this node's are %s apart", p.Name, p.Ahead.Abs().Round(1e9))...)
		default:
			same = append(same, p.Name)
		}
	}
	if len(out) == 0 && len(same) == 0 {
		return nil
	}
	return orGood(out, name, "within a minute of that of %s", several(same))
}

func reversePath(c Cluster) (out []overlay.Finding) {
	ways := slices.Clone(c.Uplinks)
	for _, p := range c.Peers {
		ways = append(ways, p.Way)
	}
	strict := false
	for _, w := range ways {
		strict = strict || w.Strict
		if w.Strict && w.Back != "" && w.Back != w.In {
			out = append(out, one("rp_filter", overlay.Problem, fmt.Sprintf("sysctl -w net.ipv4.conf.%s.rp_filter=2", w.In),
				"it is strict on %s, and the host would answer %s (%s) by %s: what comes from there is dropped", w.In, w.Of, w.Addr, w.Back)...)
		}
	}
	if strict {
		return orGood(out, "rp_filter", "strict, and what comes in is answered by the link that it came by")
	}
	return orGood(out, "rp_filter", "not strict on %s and the uplinks", cmp.Or(c.Link.Name, "the data path's link"))
}
