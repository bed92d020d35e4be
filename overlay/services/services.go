// Package services judges which endpoints stand behind which service, and which of them get new
// connections.
//
// It is pure. Names, service addresses and published ports all follow its judgement.
package services

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// Input is what a node knows of one network.
type Input struct {
	Services  []overlay.Service
	Index     *Index            // of Services; nil: it is made
	Records   []*overlay.Record // of the live endpoints, each once, this node's own included
	Nodes     map[overlay.NodeID]overlay.Node
	Suspended map[overlay.NodeID]time.Time // nodes that are taken for dead, and since when
}

// Service is a service and what stands behind it. It is never changed once it was judged.
type Service struct {
	overlay.Service
	Backends []Backend // sorted by endpoint ID
}

// Backend is an endpoint behind a service.
type Backend struct {
	Endpoint overlay.EndpointID
	Workload string
	Node     overlay.NodeID
	IPs      []netip.Addr

	Used   bool      // names lead to it, and new connections
	Out    Reason    // why it is out of rotation; "" where it is not
	Detail string    // what its node says of it
	Since  time.Time // of Out or, in rotation, of its health; zero where nobody says
}

// Reason is why a backend is out of rotation.
type Reason string

const (
	Starting  Reason = "starting"  // its probes have not succeeded yet
	Unhealthy Reason = "unhealthy" // its probes fail
	Leaving   Reason = "leaving"   // it is being detached; connections that stand go on
	Draining  Reason = "draining"  // its node is; connections that stand go on
	Suspended Reason = "suspended" // its node is taken for dead
)

// Keeps says whether connections that stand are left alone.
func (b Backend) Keeps() bool { return b.Used || b.Out == Leaving || b.Out == Draining }

// Judge says what stands behind each service, sorted by service ID. What is as in before is
// answered by before's value, so that whoever compares pointers finds what has changed.
func Judge(in Input, before []*Service) []*Service {
	old := make(map[overlay.ServiceID]*Service, len(before))
	for _, s := range before {
		old[s.ID] = s
	}
	judged := make([]Backend, len(in.Records))
	for i, r := range in.Records {
		judged[i] = in.backend(r)
	}
	members := in.members()
	out := make([]*Service, 0, len(in.Services))
	for n, s := range in.Services {
		of := members[n]
		slices.SortFunc(of, func(a, b int) int { return strings.Compare(string(judged[a].Endpoint), string(judged[b].Endpoint)) })
		// Where there are no others those on suspended nodes are used: they may be well, and this node
		// the one that is cut off.
		resort := !slices.ContainsFunc(of, func(i int) bool { return judged[i].Used })
		is := func(i int) Backend {
			b := judged[i]
			b.Used = b.Used || resort && b.Out == Suspended
			return b
		}
		was := old[s.ID]
		if was != nil && was.Updated == s.Updated && slices.EqualFunc(was.Backends, of, func(b Backend, i int) bool { return b.equal(is(i)) }) {
			out = append(out, was)
			continue
		}
		now := &Service{Service: s}
		for _, i := range of {
			now.Backends = append(now.Backends, is(i))
		}
		out = append(out, now)
	}
	slices.SortFunc(out, func(a, b *Service) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Index finds services by what endpoints say. It serves as long as the services are the same.
type Index struct {
	byName  map[string][]int // places in the list
	byLabel map[[2]string][]int
}

// NewIndex makes the index of a list.
func NewIndex(all []overlay.Service) *Index {
	x := &Index{map[string][]int{}, map[[2]string][]int{}}
	for i, s := range all {
		x.byName[s.Name] = append(x.byName[s.Name], i)
		if keys := slices.Sorted(maps.Keys(s.Selector)); len(keys) > 0 { // one of its labels finds it, the others are looked at then
			k := [2]string{keys[0], s.Selector[keys[0]]}
			x.byLabel[k] = append(x.byLabel[k], i)
		}
	}
	return x
}

// members are the records of each service's backends, in no order; both by their place in the input.
func (in Input) members() [][]int {
	x := in.Index
	if x == nil {
		x = NewIndex(in.Services)
	}
	out := make([][]int, len(in.Services))
	for i, r := range in.Records {
		if r.Deleted || len(r.IPs) == 0 {
			continue
		}
		for _, s := range x.byName[r.Service] {
			out[s] = append(out[s], i)
		}
		if len(x.byLabel) == 0 {
			continue
		}
		for k, v := range r.Labels {
			for _, s := range x.byLabel[[2]string{k, v}] {
				if spec := &in.Services[s]; r.Service != spec.Name && (len(spec.Selector) == 1 || spec.Selects(r)) {
					out[s] = append(out[s], i)
				}
			}
		}
	}
	return out
}

// backend judges one endpoint.
func (in Input) backend(r *overlay.Record) Backend {
	state, detail := overlay.SplitHealth(r.Health)
	b := Backend{Endpoint: r.Endpoint, Workload: r.Workload, Node: r.Owner, IPs: r.IPs, Detail: detail}
	if r.Since != 0 {
		b.Since = time.Unix(r.Since, 0)
	}
	since, suspended := in.Suspended[r.Owner]
	node, known := in.Nodes[r.Owner]
	switch {
	case state == overlay.HealthLeaving:
		b.Out = Leaving
	case known && node.Availability == overlay.Drain:
		b.Out = Draining
	case state == overlay.HealthUnhealthy:
		b.Out = Unhealthy
	case state == overlay.HealthStarting:
		b.Out = Starting
	case suspended:
		b.Out, b.Since = Suspended, since
	}
	b.Used = b.Out == ""
	return b
}

func (b Backend) equal(o Backend) bool {
	return b.Endpoint == o.Endpoint && b.Workload == o.Workload && b.Node == o.Node && b.Used == o.Used && b.Out == o.Out &&
		b.Detail == o.Detail && b.Since.Equal(o.Since) && slices.Equal(b.IPs, o.IPs)
}
