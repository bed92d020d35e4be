//go:build linux

package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-net/heddle/cluster"
	"github.com/heddle-net/heddle/cluster/api"
	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/store"
	"github.com/heddle-net/heddle/overlay/wire"
)

// resolve finds the addresses that a request means. found is the advertise address where it
// is known by other means; a data path of the other family than six says is refused.
func (d *Daemon) resolve(command string, found netip.Addr, advertise, listen, dataPath string, six *bool) (a store.Addresses, err error) {
	all, err := d.candidates()
	if err != nil {
		return a, err
	}
	a.Advertise = found
	translated, err := netip.ParseAddr(advertise)
	switch {
	case err == nil && found.IsValid() && !slices.ContainsFunc(all, func(c candidate) bool { return c.Addr == translated.Unmap() }):
		// Not this host's: others may reach it by it all the same (1:1 NAT). A manager tries.
		a.Advertise, a.Underlay = translated.Unmap(), found
	case advertise != "" || !found.IsValid():
		if a.Advertise, err = choose(command, "--advertise-addr", advertise, all); err != nil {
			return a, err
		}
	}
	a.Listen = netip.IPv6Unspecified()
	if listen != "" {
		if a.Listen, err = overlay.ParseAddr("--listen-addr", listen); err != nil {
			return a, err
		}
	}
	a.DataPath = a.Advertise
	if dataPath != "" || six != nil && a.DataPath.Is6() != *six {
		fit := all
		if six != nil {
			if fit = family(all, *six); len(fit) == 0 {
				return a, overlay.Errorf(overlay.Invalid, "the data path of this cluster is %s, and this host has no global %[1]s address; give it one", familyName(*six))
			}
		}
		if a.DataPath, err = choose(command, "--data-path-addr", dataPath, fit); err != nil {
			return a, err
		}
	}
	return follow(a, all), nil
}

// identity is this node's ID and key, drawn the first time.
func (d *Daemon) identity() (pki.Identity, error) {
	id, err := pki.LoadIdentity(d.identityFile())
	if !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	if id, err = pki.NewIdentity(); err != nil {
		return id, err
	}
	return id, id.Save(d.identityFile())
}

// beginChange keeps init, join and leave apart; end lets the next one in.
func (d *Daemon) beginChange() (end func(), err error) {
	if !d.asked.TryLock() {
		return nil, overlay.Errorf(overlay.InUse, "this node is joining or leaving a cluster right now; try again when that has ended")
	}
	d.change.Lock()
	return func() { d.change.Unlock(); d.asked.Unlock() }, nil
}

// outside refuses when this node is in a cluster, or has networks of its own. Called with change held.
func (d *Daemon) outside() error {
	if m := d.current(); m != nil {
		return overlay.Errorf(overlay.Exists, "this node is in cluster %.12s already; `heddle leave` takes it out first", m.place().Cluster)
	}
	if d.wasRemoved() != nil {
		return errRemoved
	}
	return d.unbound()
}

// nodeName is the host's name, as far as a node may have it.
func nodeName() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", overlay.Errorf(overlay.Internal, "read the host's name: %w", err)
	}
	return name, overlay.ValidateName("node", name)
}

// hostPort is a manager's address as a user types it, with the control port where none is
// given.
func hostPort(s string, port uint16) string {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, port).String()
	}
	if _, _, err := net.SplitHostPort(s); err == nil {
		return s
	}
	return net.JoinHostPort(s, strconv.Itoa(int(port)))
}

// Init makes a cluster of this node.
func (d *Daemon) Init(ctx context.Context, r overlay.InitRequest) (reply overlay.MemberReply, err error) {
	end, err := d.beginChange()
	if err != nil {
		return reply, err
	}
	defer end()
	if err := d.outside(); err != nil {
		return reply, err
	}
	params, err := parameters(r)
	if err != nil {
		return reply, err
	}
	at, err := d.resolve("init", netip.Addr{}, r.AdvertiseAddr, r.ListenAddr, r.DataPathAddr, nil)
	if err != nil {
		return reply, err
	}
	params.DataPath6 = at.DataPath.Is6()
	if err := d.free(at, params.DataPathPort); err != nil {
		return reply, err
	}
	name, err := nodeName()
	if err != nil {
		return reply, err
	}
	id, err := d.identity()
	if err != nil {
		return reply, err
	}
	control := netip.AddrPortFrom(at.Advertise, d.cfg.ControlPort)
	f, err := cluster.Found(id, cluster.Founding{
		Name: name, Control: control, Params: params,
		Gossip: netip.AddrPortFrom(at.Advertise, d.cfg.GossipPort),
	}, time.Now())
	if err != nil {
		return reply, err
	}
	token, err := d.found(ctx, f, at, control)
	if err != nil {
		return reply, err
	}
	return overlay.MemberReply{Node: id.Node, Role: overlay.Manager, Join: token.Join}, nil
}

// found starts the first manager and all that a member runs. When it fails nothing stays.
func (d *Daemon) found(ctx context.Context, f *cluster.Founded, at store.Addresses, control netip.AddrPort) (token overlay.TokenReply, err error) {
	if err := cluster.Forget(d.raftDir()); err != nil { // of an init that failed half-way
		return token, err
	}
	m, err := openMember(d, f.Identity, at, []api.Manager{{ID: f.Identity.Node, Control: control}})
	if err != nil {
		return token, err
	}
	defer func() {
		if err != nil {
			m.stop()
			err = errors.Join(err, cluster.Forget(d.raftDir()), d.store.Clear())
		}
	}()
	first, err := m.role.open()
	if err != nil {
		return token, err
	}
	if err := first.Bootstrap(f); err != nil {
		return token, errors.Join(err, first.Close())
	}
	m.must("control port", m.port.Run)
	m.role.become(overlay.Manager, first)
	wire.Waiting(ctx, "the first manager to lead")
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if token, err = first.Init(ctx, f); err != nil {
		return token, err
	}
	return token, d.settle(m, first.FactsFor(f.Identity.Node))
}

// settle completes a member that has just come into a cluster, and keeps it on the disk.
func (d *Daemon) settle(m *member, first *overlay.Facts) error {
	if err := d.store.SaveAddresses(m.at); err != nil {
		return err
	}
	if err := m.build(first); err != nil {
		return err
	}
	if err := m.cred.Identity().Save(d.identityFile()); err != nil {
		return err
	}
	m.runRest()
	d.mu.Lock()
	d.member = m
	d.mu.Unlock()
	return nil
}

// Join brings this node into a cluster, by the first manager that answers.
func (d *Daemon) Join(ctx context.Context, r overlay.JoinRequest) (reply overlay.MemberReply, err error) {
	end, err := d.beginChange()
	if err != nil {
		return reply, err
	}
	defer end()
	if err := d.outside(); err != nil {
		return reply, err
	}
	token, err := pki.ParseToken(r.Token)
	if err != nil {
		return reply, err
	}
	if len(r.Managers) == 0 {
		return reply, overlay.Errorf(overlay.Invalid, "join which cluster? name a manager, as in `heddle join HOST --token T`")
	}
	var last error
	for _, host := range r.Managers {
		to := hostPort(host, d.cfg.ControlPort)
		wire.Waiting(ctx, "manager "+to)
		c, err := api.DialJoin(ctx, to, token)
		if err != nil {
			last = err
			continue
		}
		t, err := termsOf(ctx, c)
		if err != nil {
			return reply, err
		}
		if c, err = api.DialJoin(ctx, to, token); err != nil {
			return reply, err
		}
		defer c.Close()
		return d.join(ctx, c, r, t)
	}
	return reply, last
}

func (d *Daemon) join(ctx context.Context, c *api.JoinConn, r overlay.JoinRequest, t terms) (reply overlay.MemberReply, err error) {
	at, err := d.resolve("join", c.Local(), r.AdvertiseAddr, r.ListenAddr, r.DataPathAddr, t.six())
	if err != nil {
		return reply, err
	}
	if err := d.free(at, t.DataPathPort); err != nil {
		return reply, err
	}
	name, err := nodeName()
	if err != nil {
		return reply, err
	}
	id, err := d.identity()
	if err != nil {
		return reply, err
	}
	answer, err := d.ask(ctx, c, at, t, api.JoinRequest{
		V: 1, Node: id.Node, Key: id.Public(), Name: name, Hello: d.hello(),
		Control: netip.AddrPortFrom(at.Advertise, d.cfg.ControlPort), Gossip: netip.AddrPortFrom(at.Advertise, d.cfg.GossipPort),
	})
	if err != nil {
		return reply, err
	}
	if id, err = id.Joined(answer.Place, answer.Cert, answer.CA); err != nil {
		return reply, err
	}
	m, err := openMember(d, id, at, api.Managers(&answer.Facts))
	if err != nil {
		return reply, err
	}
	if answer.Node.Role == overlay.Manager {
		err = cluster.Forget(d.raftDir()) // of an earlier life
	}
	if err == nil {
		m.run()
		err = d.settle(m, &answer.Facts)
	}
	if err != nil {
		m.stop()
		return reply, err
	}
	wire.Waiting(ctx, "the first other member to answer")
	reply = overlay.MemberReply{Node: id.Node, Role: answer.Node.Role}
	if !m.ready(ctx) {
		reply.Warnings = append(reply.Warnings, fmt.Sprintf("this node → others, %d/tcp and %d/udp: nobody answers yet; open these ports on the other nodes, and look at `heddle status`", d.cfg.GossipPort, d.cfg.GossipPort))
	}
	reply.Warnings = append(reply.Warnings, m.gossip.Load().Conflicts()...)
	return reply, nil
}

// readyTime is how long a join waits for contact with another member, without which it is
// still a join: `heddle status` shows who answers.
const readyTime = 5 * time.Second

// ready waits until this node is in contact and, as a manager, has its vote. False says that it
// waited in vain. A manager knows where all nodes are; another node may have come in at the same
// time, and does for want of one.
func (m *member) ready(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	votes := func() bool { return m.role.running() == nil || m.role.running().Voter() }
	met, manager := false, false
	for {
		for _, p := range m.gossip.Load().Peers() {
			manages := m.facts().Nodes[p.Node].Role == overlay.Manager
			if p.State == "alive" && !manager && (manages || !met) && m.gossip.Load().Introduce(ctx, p.Node) == nil {
				met, manager = true, manages
			}
		}
		if manager && votes() {
			return true
		}
		select {
		case <-ctx.Done():
			return met && votes()
		case <-tick.C:
		}
	}
}

// Leave takes this node out of its cluster, and everything of it off the disk and the kernel.
func (d *Daemon) Leave(ctx context.Context, force bool) error {
	end, err := d.beginChange()
	if err != nil {
		return err
	}
	defer end()
	if d.wasRemoved() != nil {
		return d.clean(ctx)
	}
	m, err := d.joined()
	if err != nil {
		return err
	}
	eps, err := m.agent.Endpoints(ctx)
	if err != nil {
		return err
	}
	if len(eps) > 0 && !force {
		return overlay.Errorf(overlay.InUse, "workloads are attached on this node (%s); detach them, or add --force", workloadNames(eps))
	}
	if _, member := m.self(); member {
		if err := m.depart(ctx, force); err != nil {
			return err
		}
	}
	_ = m.gossip.Load().Leave(time.Second) // a hint to the others
	d.stop()
	return d.clean(ctx)
}

// depart detaches what is left and tells the managers. With force it goes on without them.
func (m *member) depart(ctx context.Context, force bool) error {
	wire.Waiting(ctx, "the other participants")
	if err := m.agent.Drop(ctx); err != nil && !force {
		return err
	}
	wire.Waiting(ctx, "the managers")
	err := m.client.Leave(ctx)
	if err != nil && force {
		m.log.Warn("left without the managers' word; run `heddle node rm` on one of them", "err", err)
		return nil
	}
	return err
}

// clean takes away what a member leaves: kernel objects, identity, facts, the managers' log.
func (d *Daemon) clean(ctx context.Context) error {
	d.resolver.forget()
	gen := d.loop.Set(datapath.Config{})
	if err := seen(d.loop.Wait(ctx, gen)); err != nil {
		return err
	}
	if err := os.Remove(d.identityFile()); err != nil {
		return overlay.Errorf(overlay.Internal, "remove the node's identity: %w", err)
	}
	d.mu.Lock()
	d.removed = nil
	d.mu.Unlock()
	return errors.Join(d.store.Clear(), cluster.Forget(d.raftDir()))
}

func workloadNames(eps []overlay.Endpoint) string {
	var s []string
	for _, e := range eps {
		s = append(s, e.Name)
	}
	slices.Sort(s)
	s = slices.Compact(s)
	if len(s) > 5 {
		s = append(s[:5], "…")
	}
	return strings.Join(s, ", ")
}

// Defaults of a cluster (DESIGN, the CLI contract).
const (
	defaultDataPathPort = 4789 // IANA's for VXLAN, RFC 7348
	defaultMask4        = 24
	mask6               = 64
)

// parameters are what a cluster is made with: the request's, or the defaults.
func parameters(r overlay.InitRequest) (p overlay.Params, err error) {
	p = overlay.Params{DataPathPort: defaultDataPathPort, Pools: r.Pools, PoolBits4: defaultMask4, PoolBits6: mask6}
	if r.DataPathPort != 0 {
		p.DataPathPort = r.DataPathPort
	}
	if r.PoolMaskLength != 0 {
		p.PoolBits4 = r.PoolMaskLength
	}
	var has4, has6 bool
	for _, pool := range p.Pools {
		bits := mask6
		if has4 = has4 || pool.Addr().Is4(); pool.Addr().Is4() {
			bits = p.PoolBits4
		} else {
			has6 = true
		}
		if pool.Masked() != pool || pool.Bits() > bits {
			return p, overlay.Errorf(overlay.Invalid, "--default-addr-pool %s can't be cut into /%d subnets; write a larger network address like 10.64.0.0/11", pool, bits)
		}
	}
	if !has4 {
		p.Pools = append(p.Pools, netip.MustParsePrefix("10.64.0.0/11"))
	}
	if !has6 {
		var ula [16]byte // RFC 4193: 40 random bits behind fd
		_, _ = rand.Read(ula[1:6])
		ula[0] = 0xfd
		p.Pools = append(p.Pools, netip.PrefixFrom(netip.AddrFrom16(ula), 48))
	}
	if p.PoolBits4 < 9 || p.PoolBits4 > 29 {
		return p, overlay.Errorf(overlay.Invalid, "--default-addr-pool-mask-length %d is no length of a subnet; use 9 to 29", p.PoolBits4)
	}
	return p, nil
}
