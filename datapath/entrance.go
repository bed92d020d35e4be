package datapath

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/netip"
)

// Entrance leads what comes to ports of a place further: from the host's published ports to
// the overlays' namespaces, and in such a namespace from there to backends. Key: NS.
//
// Its parts are separate, so that one may stay as it is while the other changes. Where both have a
// port, the workloads' counts.
type Entrance struct {
	NS        NS
	Owner     Owner
	From      string         // the link that it comes by; "" is any, and what the place's own programs send
	Bridge    string         // the link by which it goes on, where Sources count; "" where there are none
	Within    []netip.Prefix // all that it may lead to
	Workloads Passages       // ports of workloads of this node
	Services  Passages       // ports of services

	// Partial says that Services may lack something: what stands of it stays.
	Partial bool
}

// Passages are ports and what is behind them.
type Passages struct {
	Ports   []Passage
	Sources []Source
}

// Passage is a port. Each family is translated by itself; of one in which no backend is used the port
// is not open.
type Passage struct {
	Proto string     // "tcp" or "udp"
	At    netip.Addr // zero: any address of the place's own; unspecified: any of that family
	Port  uint16
	To    []Backend
}

// Backend is where a passage leads, chosen by chance for each flow.
type Backend struct {
	At     netip.AddrPort
	Leaves bool // flows that stand go on, and no new ones come
}

// Source is as whom those are seen who come to an address that answers others elsewhere.
type Source struct {
	Of netip.Addr
	As netip.Addr
}

// EntranceState is which passages stand, by digest. "" is none.
type EntranceState struct{ Workloads, Services string }

// Altered stands as the digest of passages that are not as heddle wrote them.
const Altered = "altered"

// Digest names all that the rules depend on. "" is that of no passages.
func (e Entrance) digest(p Passages) string {
	if len(p.Ports) == 0 && len(p.Sources) == 0 {
		return ""
	}
	h := sha256.New()
	fmt.Fprintln(h, e.From, e.Bridge)
	for _, row := range p.Ports {
		fmt.Fprintln(h, row.Proto, row.At, row.Port, row.To)
	}
	io.WriteString(h, fmt.Sprint(p.Sources))
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// State is what stands when the entrance does.
func (e Entrance) State() EntranceState {
	return EntranceState{e.digest(e.Workloads), e.digest(e.Services)}
}

// Leads is where a flow to a port is led, or may have been before: by new flows of the family, or by
// those that stand.
func (e Entrance) Leads(proto string, to netip.AddrPort) (backends []Backend) {
	for _, p := range []Passages{e.Workloads, e.Services} {
		for _, row := range p.Ports {
			if row.Proto == proto && row.Port == to.Port() && row.takes(to.Addr()) {
				backends = append(backends, row.To...)
			}
		}
	}
	return backends
}

// takes says whether packets to an address of the place's own take the passage.
func (p Passage) takes(a netip.Addr) bool {
	return !p.At.IsValid() || p.At == a || p.At.IsUnspecified() && p.At.Is4() == a.Is4()
}

func (e Entrance) String() string {
	return fmt.Sprintf("entrance of %s with %d and %d ports", e.NS, len(e.Workloads.Ports), len(e.Services.Ports))
}

// addEntrances writes what does not stand, when all that it leads to does.
func (d *differ) addEntrances() {
	for _, e := range d.want.Entrances {
		have, want := d.have.Entrances[e.NS], e.State()
		keeps := e.Partial && have.Services != "" && have.Services != Altered
		if op := (SetEntrance{e, have.Workloads != want.Workloads, have.Services != want.Services && !keeps}); op.Workload || op.Service {
			d.do(op)
		}
	}
}

func (d *differ) delEntrances() {
	have := make(map[NS]NS, len(d.have.Entrances))
	for ns := range d.have.Entrances {
		have[ns] = ns
	}
	ending := d.endingNS()
	want := make([]NS, 0, len(d.want.Entrances))
	for _, e := range d.want.Entrances {
		want = append(want, e.NS)
	}
	for _, ns := range unwanted(have, want, func(ns NS) NS { return ns }, compareNS) {
		if !ending[ns] {
			d.do(DelEntrance{ns})
		}
	}
}
