package datapath

import "fmt"

// Difference is one thing that is not as wanted in the kernel, as people read it.
type Difference struct {
	Kind  string // of the object, as Drift counts it
	Where string // its namespace and link
	Found string // "missing", "not wanted", or how it is
	Do    string // what heddle does about it
	Owner Owner
}

// Differences explains what Diff asks for. What stands on a missing link or in a missing namespace
// is missing too, and not listed; nor is what is to be written again only because something else is.
func Differences(have *State, ops []Op) (out []Difference) {
	without, sets := map[LinkKey]bool{}, map[FDBKey]bool{}
	for _, op := range ops {
		switch op := op.(type) {
		case AddLink:
			without[op.Key()], without[op.Peer.Key()] = true, true
		case SetNamespace:
			_, there := have.Namespaces[op.Name]
			without[op.At()] = !there
		case SetFDB:
			sets[op.Key()] = true
		}
	}
	for _, op := range ops {
		at := op.At()
		switch op := op.(type) {
		case SetNamespace:
		case AddLink:
			if without[LinkKey{NS: at.NS}] {
				continue
			}
		case DelFDB:
			if sets[op.Key()] {
				continue
			}
		default:
			if at != (LinkKey{}) && without[at] {
				continue
			}
		}
		kind, found := explain(have, op)
		if found == "" {
			continue
		}
		where := at.NS.String()
		if at.Name != "" {
			where += "/" + at.Name
		}
		out = append(out, Difference{Kind: kind, Where: where, Found: found, Do: op.String(), Owner: op.Owner()})
	}
	return out
}

// explain is the kind of what an operation is about, and how that is now; "" where it is right.
func explain(have *State, op Op) (kind, found string) {
	const missing, surplus = "missing", "not wanted"
	row := func(there, right bool, text string) string {
		switch {
		case !there:
			return missing
		case right:
			return ""
		}
		return text
	}
	switch op := op.(type) {
	case SetFilter:
		f := have.Filters[op.NS]
		return "filter", row(f.Port != 0, false, fmt.Sprintf("port %d vni %d-", f.Port, f.MinVNI))
	case AddAllow:
		return "filter", fmt.Sprintf("%d members missing", len(op.Allowed))
	case DelAllow:
		return "filter", fmt.Sprintf("%d members not wanted", len(op.Allowed))
	case SetEgress:
		return "egress", "rules, forwarding or an accept in another's chain missing"
	case SetEntrance:
		_, there := have.Entrances[op.NS]
		return "entrance", row(there, false, "rules of published ports differ")
	case DelEntrance:
		return "entrance", surplus
	case SetNamespace:
		_, there := have.Namespaces[op.Name]
		return "namespace", row(there, false, "mark, settings or the rules of its uplink differ")
	case AddLink:
		l, there := have.Links[op.Key()]
		return "link", row(there, false, l.String())
	case SetLink:
		return "link", have.Links[op.Key()].String()
	case UpLink:
		return "link", "down"
	case SetAddress:
		_, there := have.Addresses[op.Key()]
		return "address", row(there, true, "")
	case SetNeighbor:
		n, there := have.Neighbors[op.Key()]
		return "neighbor", row(there, n.MAC == op.MAC, n.MAC.String())
	case SetFDB:
		f, there := have.FDB[op.Key()]
		if f.VTEP == Damaged {
			return "fdb", "not whole: in the bridge or in the device alone"
		}
		return "fdb", row(there, f.VTEP == op.VTEP, f.text())
	case SetRoute:
		r, there := have.Routes[op.Key()]
		return "route", row(there, r.Via == op.Via, r.text())
	case SetWGPeer:
		_, there := have.WGPeers[op.ID()]
		return "wireguard", row(there, false, "another endpoint, address or keepalive")
	case DelFilter:
		return "filter", surplus
	case DelEgress:
		return "egress", surplus
	case DelNamespace:
		return "namespace", surplus
	case DelLink:
		return "link", surplus
	case DelAddress:
		return "address", surplus
	case DelNeighbor:
		return "neighbor", surplus
	case DelFDB:
		return "fdb", surplus
	case DelRoute:
		return "route", surplus
	case DelWGPeer:
		return "wireguard", surplus
	case Announce:
		return "", ""
	}
	return "object", "differs"
}
