package doctor

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/overlay"
)

// gone says whether a node answers nowhere: then there is one thing to say of it.
func (p Peer) gone() bool { return p.Control != "" && p.Gossip != "" && p.Packets != "" }

func peers(c Cluster) (out []overlay.Finding) {
	var there []string
	for _, p := range c.Peers {
		if !p.gone() {
			there = append(there, p.Name)
			continue
		}
		out = append(out, one("peers", overlay.Problem, fmt.Sprintf("start heddle on %s, or if it is gone for good `heddle node rm %s`", p.Name, p.Name),
			"%s answers at none of its ports (%s, %s): %s", p.Name, p.Record.Control, p.Record.Gossip, p.Control)...)
	}
	if len(c.Peers) == 0 {
		return one("peers", overlay.Good, "", "there are no other nodes")
	}
	return orGood(out, "peers", "%s answer", several(there))
}

// port judges one of the peers' ports, at all that answer somewhere. at is where it is, err why it
// does not answer.
func port(c Cluster, own uint16, proto, use string, at func(Peer) netip.AddrPort, err func(Peer) string) (out []overlay.Finding) {
	name := fmt.Sprintf("port %d/%s", own, proto)
	var there []string
	for _, p := range c.Peers {
		switch e := err(p); {
		case p.gone():
		case e == "":
			there = append(there, p.Name)
		default:
			out = append(out, one(name, overlay.Problem, open(p, proto, at(p).Port()), "%s does not answer to %s: %s", p.Name, use, e)...)
		}
	}
	if len(out) == 0 && len(there) == 0 {
		return nil
	}
	return orGood(out, name, "%s: %s", use, several(there))
}

// open is what lets a port of a peer's in.
func open(p Peer, proto string, port uint16) string {
	return fmt.Sprintf("heddle doctor   # on %s, which names what drops it there, or: nft insert rule inet filter input %s dport %d accept", p.Name, proto, port)
}

func control(p Peer) netip.AddrPort { return p.Record.Control }
func gossip(p Peer) netip.AddrPort  { return p.Record.Gossip }

func controlPort(c Cluster) []overlay.Finding {
	return port(c, c.Ports.Control, "tcp", "the control port", control, func(p Peer) string { return p.Control })
}

func gossipPort(c Cluster) []overlay.Finding {
	return port(c, c.Ports.Gossip, "tcp", "gossip's streams", gossip, func(p Peer) string { return p.Gossip })
}

func gossipPackets(c Cluster) []overlay.Finding {
	return port(c, c.Ports.Gossip, "udp", "gossip's packets", gossip, func(p Peer) string { return p.Packets })
}

func (f Frames) any() bool { return f.Echo || f.TCP || f.UDP || f.SummedTCP || f.SummedUDP }

func dataPath(c Cluster) []overlay.Finding {
	out := frames(c, c.Ports.DataPath, "VXLAN", func(p Peer) *Frames { return p.Frames })
	return orGood(out, fmt.Sprintf("port %d/udp", c.Ports.DataPath), "VXLAN was not tried: no workload here has a plain network in common with one elsewhere")
}

// wireGuard says nothing where no encrypted network is in use between workloads.
func wireGuard(c Cluster) []overlay.Finding {
	return frames(c, c.Ports.WireGuard, "WireGuard", func(p Peer) *Frames { return p.Sealed })
}

func frames(c Cluster, at uint16, carrier string, of func(Peer) *Frames) (out []overlay.Finding) {
	name := fmt.Sprintf("port %d/udp", at)
	var there []string
	for _, p := range c.Peers {
		switch f := of(p); {
		case p.gone() || f == nil:
		case f.any():
			there = append(there, p.Name)
		default:
			out = append(out, one(name, overlay.Problem,
				open(p, "udp", at),
				"nothing that %s sends is answered by %s on %s, neither to echo requests nor by TCP or UDP: %s does not pass, there or back", f.From, f.To, p.Name, carrier)...)
		}
	}
	if len(out) == 0 && len(there) == 0 {
		return nil
	}
	return orGood(out, name, "%s: workloads on %s answer to those here", carrier, several(there))
}

// checksums tells of devices that drop or spoil frames whose inner checksum they should fill in.
func checksums(c Cluster) (out []overlay.Finding) {
	var there []string
	for _, p := range c.Peers {
		f := p.Frames
		if p.gone() || f == nil || !f.any() {
			continue
		}
		var bad string
		switch {
		case f.SummedTCP && !f.TCP && f.SummedUDP && !f.UDP:
			bad = "TCP and UDP do"
		case f.SummedTCP && !f.TCP:
			bad = "TCP does"
		case f.SummedUDP && !f.UDP:
			bad = "UDP does"
		default:
			if f.TCP || f.UDP {
				there = append(there, p.Name)
			}
			continue
		}
		out = append(out, one("checksums", overlay.Problem, fmt.Sprintf("ethtool -K %s tx-checksum-ip-generic off   # here; if that does not help, on %s", c.Link.Name, p.Name),
			"%s not pass from %s to %s on %s while a device fills in the checksum inside VXLAN, but with one by the kernel", bad, f.From, f.To, p.Name)...)
	}
	if len(out) == 0 && len(there) == 0 {
		return nil
	}
	return orGood(out, "checksums", "those that devices fill in inside VXLAN are right at %s", several(there))
}

func packetSizes(c Cluster) (out []overlay.Finding) {
	const name = "path MTU"
	var whole []string
	for _, p := range c.Peers {
		switch {
		case p.gone() || p.Full == 0:
		case p.SizesErr != "":
			out = append(out, one(name, overlay.Warning, "", "to %s: %s", p.Name, p.SizesErr)...)
		case len(p.Passed) == 0:
			out = append(out, one(name, overlay.Warning, "nft insert rule inet filter input meta l4proto { icmp, ipv6-icmp } accept   # on "+p.Name,
				"%s (%s) does not answer to echo requests, so that it is not known which packets pass", p.Name, p.Record.DataPath())...)
		case slices.Contains(p.Passed, p.Full):
			whole = append(whole, p.Name)
		default:
			most := slices.Max(p.Passed)
			out = append(out, one(name, overlay.Problem, fmt.Sprintf("ip link set %s mtu %d   # here, and on %s its link; or raise it on what lies between", c.Link.Name, most, p.Name),
				"packets of %d bytes reach %s and come back, those of %d, which both links say they carry, do not: large packets vanish", most, p.Name, p.Full)...)
		}
	}
	if len(out) == 0 && len(whole) == 0 {
		return nil
	}
	return orGood(out, name, "the largest packets pass to %s", several(whole))
}

func linkMTUs(c Cluster) (out []overlay.Finding) {
	if c.Link.MTU == 0 {
		return nil
	}
	for _, p := range c.Peers {
		theirs := p.Record.MTU
		if theirs == 0 || theirs == c.Link.MTU {
			continue
		}
		mend := fmt.Sprintf("ip link set %s mtu %d", c.Link.Name, theirs)
		if theirs < c.Link.MTU {
			mend = fmt.Sprintf("ip link set LINK mtu %d   # on %s", c.Link.MTU, p.Name)
		}
		out = append(out, one("link MTU", overlay.Warning, mend, "%d here and %d on %s: networks that both take part in use the smaller", c.Link.MTU, theirs, p.Name)...)
	}
	return orGood(out, "link MTU", "%d here and on all other nodes", c.Link.MTU)
}

// offloads looks at what makes TCP inside VXLAN three times as fast: one large segment goes down to
// the device, which cuts it.
func offloads(c Cluster) (out []overlay.Finding) {
	const name = "offloads"
	if c.Link.Offloads == nil {
		return nil
	}
	for _, feature := range []string{"tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"} {
		switch o, known := c.Link.Offloads[feature]; {
		case !known || o.On:
		case o.Fixed:
			out = append(out, one(name, overlay.Good, "", "%s has no %s: TCP inside VXLAN costs more CPU", c.Link.Name, feature)...)
		default:
			out = append(out, one(name, overlay.Warning, fmt.Sprintf("ethtool -K %s %s on", c.Link.Name, feature), "%s is off on %s: TCP inside VXLAN may lose two thirds of its throughput", feature, c.Link.Name)...)
		}
	}
	return orGood(out, name, "%s cuts large segments inside VXLAN by itself", c.Link.Name)
}
