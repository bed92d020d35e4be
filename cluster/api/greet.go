package api

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/wire"
)

// Greeting is a node's answer on its control port.
type Greeting struct {
	Hello overlay.Hello
	Ahead time.Duration // its clock's, of this host's; good to a second
}

// Greet asks a node, manager or not, for its hello. Dates do not count: it is also for clocks that
// are far apart.
func Greet(ctx context.Context, cred *pki.Credentials, node overlay.NodeID, at netip.AddrPort) (g Greeting, err error) {
	t := newTransport(cred.ForNode, func(overlay.NodeID) (netip.AddrPort, bool) { return at, true })
	defer t.CloseIdleConnections()
	req, err := newRequest(ctx, node, http.MethodGet, pathHello, nil)
	if err != nil {
		return g, err
	}
	asked := time.Now()
	resp, err := t.RoundTrip(req)
	if err != nil {
		return g, fmt.Errorf("ask node %s: %w", node.Short(), err)
	}
	defer resp.Body.Close()
	took := time.Since(asked)
	if said, err := http.ParseTime(resp.Header.Get("Date")); err == nil { // cut to seconds, hence the half
		g.Ahead = said.Add(time.Second / 2).Sub(asked.Add(took / 2))
	}
	return g, wire.Decode(resp, &g.Hello)
}
