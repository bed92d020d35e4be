//go:build linux

package daemon

import (
	"context"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/heddle-net/heddle/cluster/api"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/store"
)

const (
	registerEvery = time.Second
	routesEvery   = 30 * time.Second // between two records that differ in routes alone
)

// said is what this node has said of itself.
type said struct {
	record overlay.NodeRecord // without its number
	number uint64
	at     time.Time
}

// describe is what this node has to say of itself: where it is and what it can do.
func (m *member) describe() (r overlay.NodeRecord, row overlay.Node, err error) {
	f, id := m.facts(), m.cred.Identity()
	row, ok := m.self()
	if !ok {
		return r, row, errRemoved
	}
	_, mtu, err := m.d.kernel.LinkMTU(m.at.Local())
	if err != nil {
		m.log.Warn("the data-path address is on no interface of this host; overlays reach nobody until it is back", "addr", m.at.Local(), "err", err)
		if mtu = m.said.record.MTU; mtu == 0 {
			mtu = 1500
		}
	}
	routes, err := m.d.kernel.Routes()
	if err != nil {
		return r, row, seen(err)
	}
	r = overlay.NodeRecord{
		V: 1, Place: f.Place, Node: id.Node, Name: row.Name, MTU: mtu, Routes: routes[:min(len(routes), overlay.MaxRoutes)], Hello: m.d.hello(),
		WireGuard: m.tunnels.Says(),
		Control:   netip.AddrPortFrom(m.at.Advertise, m.d.cfg.ControlPort),
		Gossip:    netip.AddrPortFrom(m.at.Advertise, m.d.cfg.GossipPort),
	}
	if m.at.DataPath.Is4() {
		r.DataPath4 = m.at.DataPath
	} else {
		r.DataPath6 = m.at.DataPath
	}
	return r, row, nil
}

// tell states a description under the next number, which is above another. With stating locked, or
// before others run.
func (m *member) tell(r overlay.NodeRecord, row overlay.Node, above uint64) error {
	number, err := m.d.store.NextNumber(max(m.said.number, above))
	switch {
	case number == 0:
		return err
	case err != nil:
		// The disk may be full, and others must learn where this node is all the same. Should the number
		// come again after the next start, with something else under it, they say so.
		m.log.Error("keep the number of this node's record; it goes on with one of which the disk knows nothing", "err", err)
	}
	m.said = said{r, number, time.Now()}
	r.Number = number
	s, err := overlay.Sign(overlay.DomainNodeRecord, m.cred.Identity().Key, r)
	if err != nil {
		return err
	}
	return m.gossip.Load().SetSelf(overlay.SignedNode{Identity: row.Identity, Record: s})
}

// outdo states this node anew when others hold a record of it that it does not remember.
func (m *member) outdo(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case number := <-m.gossip.Load().Surpassed():
			if err := m.restate(number); err != nil {
				m.log.Error("state this node anew", "above", number, "err", err)
			}
		}
	}
}

// restate tells the others what has changed in this node, if anything has, and says it again where
// they hold a record that it does not remember, with a number that it has not passed.
func (m *member) restate(theirs uint64) error {
	m.stating.Lock()
	defer m.stating.Unlock()
	r, row, err := m.describe()
	if err != nil {
		return err
	}
	if theirs >= m.said.number {
		m.log.Warn("others hold another record of this node than it remembers; was its disk set back? it states itself anew", "theirs", theirs, "own", m.said.number)
		return m.tell(r, row, theirs)
	}
	if reflect.DeepEqual(r, m.said.record) {
		return nil
	}
	before := m.said.record
	before.Routes = r.Routes
	if reflect.DeepEqual(r, before) && time.Since(m.said.at) < routesEvery {
		return nil
	}
	return m.tell(r, row, 0)
}

// watchHost keeps what this node says of itself true while the host's addresses change.
func (d *Daemon) watchHost(ctx context.Context) {
	for {
		err := d.kernel.WatchHost(ctx, d.look)
		if ctx.Err() != nil {
			return
		}
		d.log.Warn("changes of the host's addresses are not seen; trying again", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(10 * time.Second):
		}
	}
}

// look compares the host's addresses with what this node says of itself.
func (d *Daemon) look() {
	d.change.Lock() // what changes during a join is seen after it
	defer d.change.Unlock()
	m := d.current()
	if m == nil {
		return
	}
	at, err := d.follow(m.at)
	if err == nil && at != m.at {
		err = d.move(m, at)
	} else if err == nil {
		err = m.restate(0)
	}
	if err != nil {
		d.log.Error("follow the host's addresses; trying again", "err", err)
	}
}

// follow is where this node answers, by the addresses that the host has now.
func (d *Daemon) follow(at store.Addresses) (store.Addresses, error) {
	host, err := d.candidates()
	if err != nil {
		return at, err
	}
	return follow(at, host), nil
}

// move goes on at other addresses. Everything that has the old ones in it is built anew, as at a
// start of the daemon; the kernel's state stays.
func (d *Daemon) move(m *member, at store.Addresses) error {
	if err := d.store.SaveAddresses(at); err != nil {
		return err
	}
	if at.Advertise == m.at.Advertise && at.Local() == m.at.Local() {
		return nil // a link has another name
	}
	d.log.Info("the host's addresses have changed; this node moves", "advertise", at.Advertise, "was", m.at.Advertise, "data-path", at.Local(), "data-path-was", m.at.Local())
	m.stop()
	if err := d.enter(m.cred.Identity()); err != nil {
		d.fail("move to "+at.Advertise.String(), err)
	}
	return nil
}

// register tells the managers where this node is when its row says otherwise.
func (m *member) register(ctx context.Context) error {
	tick := time.NewTicker(registerEvery)
	defer tick.Stop()
	for {
		here := api.Addresses{Control: netip.AddrPortFrom(m.at.Advertise, m.d.cfg.ControlPort), Gossip: netip.AddrPortFrom(m.at.Advertise, m.d.cfg.GossipPort)}
		if row, ok := m.self(); ok && (row.Control != here.Control || row.Gossip != here.Gossip) {
			if _, err := m.client.UpdateSelf(ctx, here); err != nil && ctx.Err() == nil {
				m.log.Warn("tell the managers where this node is; trying again", "addr", here.Control, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// where is the control port of a node by what it says of itself, which is newer than its row.
func (m *member) where(id overlay.NodeID) (netip.AddrPort, bool) {
	g := m.gossip.Load()
	if g == nil {
		return netip.AddrPort{}, false
	}
	r, ok := g.Record(id)
	return r.Control, ok && r.Control.IsValid()
}

// follow is where a node answers on a host that has these addresses now. An address that is gone
// is replaced by the first of its family on the same link, or the only one there is.
func follow(at store.Addresses, host []candidate) store.Addresses {
	now := func(a netip.Addr, link *string) netip.Addr {
		if i := slices.IndexFunc(host, func(c candidate) bool { return c.Addr == a }); i >= 0 {
			*link = host[i].Link
			return a
		}
		var same []candidate
		for _, c := range host {
			if c.Addr.Is4() == a.Is4() {
				same = append(same, c)
			}
		}
		if i := slices.IndexFunc(same, func(c candidate) bool { return c.Link == *link }); i >= 0 {
			return same[i].Addr
		}
		if len(same) == 1 {
			*link = same[0].Link
			return same[0].Addr
		}
		return a
	}
	if at.Underlay.IsValid() { // the others' addresses of this node are the translator's
		at.Underlay = now(at.Underlay, &at.DataLink)
		return at
	}
	was := at.Advertise
	at.Advertise = now(at.Advertise, &at.Link)
	at.DataPath = now(at.DataPath, &at.DataLink)
	if at.Listen == was {
		at.Listen = at.Advertise
	}
	return at
}
