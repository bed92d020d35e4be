package own

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/agent"
)

// Peers hold what the agent states. There is nobody else to tell.
type Peers struct{ *Networks }

var _ agent.Peers = Peers{}

// Publish takes the agent's records; of one endpoint the highest version stays.
func (p Peers) Publish(_ context.Context, id overlay.NetworkID, records []overlay.Signed, lease overlay.Signed) ([]overlay.NodeID, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range records {
		var r overlay.Record
		if err := s.Decode(overlay.DomainRecord, &r); err != nil {
			return nil, err
		}
		if r.Endpoint == "" {
			continue // it states a floor
		}
		if p.claims[id] == nil {
			p.claims[id] = map[overlay.EndpointID]*overlay.Claim{}
		}
		if old := p.claims[id][r.Endpoint]; old == nil || old.Record.Version().Compare(r.Version()) < 0 {
			p.claims[id][r.Endpoint] = &overlay.Claim{Record: r, Signed: s, Lease: lease}
		}
		if r.Deleted {
			delete(p.claims[id], r.Endpoint)
		}
	}
	p.revision++
	signal(p.said)
	return nil, nil
}

// Claims are the endpoints of a network, sorted.
func (p Peers) Claims(id overlay.NetworkID) []*overlay.Claim {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.SortedFunc(maps.Values(p.claims[id]), func(a, b *overlay.Claim) int {
		return strings.Compare(string(a.Record.Endpoint), string(b.Record.Endpoint))
	})
}

// Revision numbers what Claims answers.
func (p Peers) Revision() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.revision
}

// Changed signals newer claims.
func (p Peers) Changed() <-chan struct{} { return p.said }

// Nodes are this one, of which there is nothing that its networks depend on.
func (p Peers) Nodes() map[overlay.NodeID]overlay.NodeRecord { return nil }

// Others there are none: nothing is missed, suspended, fetched or confirmed.
func (Peers) Skip(overlay.NetworkID, overlay.Version, overlay.Version) {}

func (Peers) Sync(context.Context, overlay.NetworkID, overlay.Signed) error { return nil }

func (Peers) SetParticipants(map[overlay.NetworkID][]overlay.NodeID, []overlay.NodeID) {}

func (Peers) Suspended() map[overlay.NodeID]time.Time { return nil }

func (Peers) Stated(overlay.NetworkID) overlay.Version { return overlay.Version{} }

func (Peers) Applied(uint64) {}
