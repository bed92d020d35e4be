//go:build linux

package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"

	"github.com/heddle-net/heddle/cluster/api"
	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/store"
)

// answering answers managers that dial this node back while it joins.
type answering struct {
	tcp net.Listener
	udp []net.PacketConn
	wg  sync.WaitGroup
}

// answer opens the ports at which a manager looks for this node, each with the probe as its
// answer. The data path's may be another program's VXLAN port, which can't be tried: then at
// is not valid.
func answer(addrs store.Addresses, gossip, vxlan uint16, probe []byte) (a *answering, at netip.AddrPort, err error) {
	a = &answering{}
	open := netip.AddrPortFrom(addrs.Listen, gossip).String()
	if a.tcp, err = net.Listen("tcp", open); err != nil {
		return nil, at, overlay.Errorf(overlay.InUse, "open port %d/tcp: %w", gossip, err)
	}
	p, err := net.ListenPacket("udp", open)
	if err != nil {
		a.tcp.Close()
		return nil, at, overlay.Errorf(overlay.InUse, "open port %d/udp: %w", gossip, err)
	}
	a.udp = append(a.udp, p)
	switch p, err := net.ListenPacket("udp", netip.AddrPortFrom(addrs.Local(), vxlan).String()); {
	case err == nil:
		a.udp, at = append(a.udp, p), netip.AddrPortFrom(addrs.DataPath, vxlan)
	case !errors.Is(err, syscall.EADDRINUSE):
		a.close()
		return nil, at, overlay.Errorf(overlay.InUse, "open the data path's port %d/udp on %s: %w", vxlan, addrs.Local(), err)
	}
	a.wg.Go(func() {
		for {
			c, err := a.tcp.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write(probe)
			c.Close()
		}
	})
	for _, p := range a.udp {
		a.wg.Go(func() {
			buf := make([]byte, 2*len(probe))
			for {
				n, from, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				if string(buf[:n]) == string(probe) {
					_, _ = p.WriteTo(probe, from)
				}
			}
		})
	}
	return a, at, nil
}

func (a *answering) close() {
	a.tcp.Close()
	for _, p := range a.udp {
		p.Close()
	}
	a.wg.Wait()
}

// terms are what this node must know before it joins. The first builds tell none, and dial nobody
// back.
type terms struct{ api.Terms }

func (t terms) none() bool { return t.V == 0 }

// six is the family of the data path, where it is known.
func (t terms) six() *bool {
	if t.none() {
		return nil
	}
	return &t.DataPath6
}

// termsOf asks a manager.
func termsOf(ctx context.Context, c *api.JoinConn) (t terms, err error) {
	defer c.Close()
	if t.Terms, err = c.Terms(ctx); overlay.KindOf(err) == overlay.NotFound {
		return terms{}, nil
	}
	return t, err
}

// ask sends the join request, and answers the manager that dials this node back meanwhile.
func (d *Daemon) ask(ctx context.Context, c *api.JoinConn, at store.Addresses, t terms, r api.JoinRequest) (api.JoinReply, error) {
	if t.none() {
		return c.Join(ctx, r)
	}
	r.Probe = make([]byte, 16)
	_, _ = rand.Read(r.Probe)
	a, dataPath, err := answer(at, d.cfg.GossipPort, t.DataPathPort, r.Probe)
	if err != nil {
		return api.JoinReply{}, err
	}
	defer a.close()
	r.DataPath = dataPath
	reply, err := c.Join(ctx, r)
	if err == nil && len(reply.Blocked) > 0 {
		err = d.unreachable(reply, r)
	}
	return reply, err
}

// unreachable is why a node that a manager can't dial back was not taken in: a line for each
// port, with the firewall's own words where the firewall is this host's.
func (d *Daemon) unreachable(r api.JoinReply, said api.JoinRequest) error {
	me := said.Gossip.Addr()
	if r.Source.IsValid() && r.Source != me && r.Source != said.DataPath.Addr() {
		return overlay.Errorf(overlay.Denied, "this node says that it is at %s, but manager %s is reached from %s and does not reach %s: heddle does not traverse NAT; "+
			"give the address that the others reach with --advertise-addr (1:1 NAT), or put the nodes into one network", me, r.Manager, r.Source, r.Blocked[0].Addr)
	}
	var lines []string
	for _, b := range r.Blocked {
		port := datapath.Port{Proto: b.Proto, Port: b.Addr.Port()}
		line := fmt.Sprintf("%s → this node, %s %d/%s: %s", r.Manager, b.Addr.Addr(), port.Port, port.Proto, b.Err)
		walls, err := d.kernel.Obstacles(datapath.Egress{}, port)
		switch {
		case err == nil && len(walls) > 0:
			line += ": " + strings.Join(walls, "; ")
		default:
			if b.Err == "refused" {
				line += " by a firewall, or by another host that has this address"
			}
			line += fmt.Sprintf(": no chain on this host is seen to drop it; look at the firewalls between, or type `nft insert rule inet filter input %s dport %d accept`", port.Proto, port.Port)
		}
		lines = append(lines, line)
	}
	return overlay.Errorf(overlay.Denied, "not joined, since the others could not reach this node; %s", strings.Join(lines, "\n  "))
}
