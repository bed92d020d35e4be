//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"time"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

// swarm measures Docker Swarm as heddle is measured, in a lab of the same kind.
func (b *bench) swarm(ctx context.Context) (err error) {
	if _, err := exec.LookPath("dockerd"); err != nil {
		fmt.Fprintln(os.Stderr, "dockerd is not installed, so Swarm's rows are left out")
		return nil
	}
	s, err := newSwarmLab(ctx, 3, 3)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	for _, part := range []func(context.Context, *swarmLab) error{
		b.swarmForms, b.swarmMemory, b.swarmCreates, b.swarmAttaches, b.swarmConverges, b.swarmTraffic, b.swarmLeader,
	} {
		if err := part(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

type swarmNode struct {
	ID            string
	Description   struct{ Hostname string }
	Status        struct{ State string }
	ManagerStatus *struct {
		Leader       bool
		Reachability string
	}
}

// swarmForms measures workers' joins.
func (b *bench) swarmForms(ctx context.Context, s *swarmLab) error {
	first := docker(s.Host(1))
	if _, err := first.call(ctx, "POST", "/swarm/init", map[string]any{"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": s.Host(1).Addr()}); err != nil {
		return err
	}
	var tokens struct {
		JoinTokens struct{ Worker, Manager string }
	}
	if err := first.get(ctx, "/swarm", &tokens); err != nil {
		return err
	}
	var joins []float64
	for i, h := range s.nodes()[1:] {
		token := tokens.JoinTokens.Worker
		if i+1 < s.managers {
			token = tokens.JoinTokens.Manager
		}
		took, err := timed(func() error { return joinSwarm(ctx, s.Host(1), h, token) })
		if err != nil {
			return err
		}
		if i+1 >= s.managers {
			joins = append(joins, took)
		}
	}
	var docker struct{ Version string }
	if err := first.get(ctx, "/version", &docker); err != nil {
		return err
	}
	b.add(figure{Name: "swarm: worker joins, until a manager lists it as ready", Unit: "ms", Note: "this and the following rows: Docker " + docker.Version}, joins)
	return nil
}

func joinSwarm(ctx context.Context, manager, h *lab.Host, token string) error {
	_, err := docker(h).call(ctx, "POST", "/swarm/join", map[string]any{
		"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": h.Addr(), "RemoteAddrs": []string{manager.Addr().String() + ":2377"}, "JoinToken": token,
	})
	if err != nil {
		return err
	}
	return cluster.Eventually(ctx, 20*time.Second, func(ctx context.Context) error {
		nodes, err := swarmNodes(ctx, manager)
		for _, n := range nodes {
			if n.Description.Hostname == h.Name() && n.Status.State == "ready" {
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("%s is not ready", h.Name()))
	})
}

func swarmNodes(ctx context.Context, ask *lab.Host) (nodes []swarmNode, err error) {
	err = docker(ask).get(ctx, "/nodes", &nodes)
	return nodes, err
}

func (b *bench) swarmMemory(_ context.Context, s *swarmLab) error {
	var daemons, helpers []float64
	for _, h := range s.nodes() {
		d, c, err := memory(h)
		if err != nil {
			return err
		}
		daemons, helpers = append(daemons, d), append(helpers, c)
	}
	b.add(figure{Name: "swarm: dockerd RSS, idle, each host", Unit: "MiB"}, daemons)
	b.add(figure{Name: "swarm: its containerd's RSS", Unit: "MiB"}, helpers)
	return nil
}

// swarmCreates measures network creates at the leader.
func (b *bench) swarmCreates(ctx context.Context, s *swarmLab) error {
	a := docker(s.Host(1))
	var ids []string
	one, err := repeat(b.n, func(i int) (float64, error) {
		return timed(func() error {
			id, err := a.createOverlay(ctx, fmt.Sprintf("create-%d", i))
			ids = append(ids, id)
			return err
		})
	})
	if err != nil {
		return err
	}
	b.add(figure{Name: "swarm: network create", Unit: "ms"}, one)
	for _, id := range ids {
		if err := a.removeOverlay(ctx, id); err != nil {
			return err
		}
	}
	const clients, each = 8, 100
	var all []*api
	for range clients {
		all = append(all, docker(s.Host(1)))
	}
	many, err := repeat(3, func(round int) (float64, error) {
		made := make([]string, each)
		took, err := timed(func() error {
			return share(all, each, func(a *api, i int) (err error) {
				made[i], err = a.createOverlay(ctx, fmt.Sprintf("many-%d-%d", round, i))
				return err
			})
		})
		if err != nil {
			return 0, err
		}
		return each / took * 1000, share(all, each, func(a *api, i int) error { return a.removeOverlay(ctx, made[i]) })
	})
	if err != nil {
		return err
	}
	b.add(figure{Name: "swarm: network creates with 8 clients", Unit: "1/s", Note: fmt.Sprintf("a sample is %d creates", each)}, many)
	return nil
}

// swarmAttaches measures what the network adds to a container's start: where the node has an
// endpoint of it already, and where it has none.
func (b *bench) swarmAttaches(ctx context.Context, s *swarmLab) error {
	id, err := docker(s.Host(1)).createOverlay(ctx, "attach")
	if err != nil {
		return err
	}
	keeps := docker(s.Host(5))
	if _, err := keeps.run(ctx, "keep", "attach"); err != nil {
		return err
	}
	for _, at := range []struct {
		name string
		h    *lab.Host
		n    int
	}{
		{"attach, network part of a container's start", s.Host(5), max(5, b.n/10)},
		{"attach, the same, first of the network on a node", s.Host(4), max(5, b.n/10)},
	} {
		var with []float64
		part, err := repeat(at.n, func(int) (float64, error) {
			none, err := startTime(ctx, docker(at.h), "none")
			if err != nil {
				return 0, err
			}
			all, err := startTime(ctx, docker(at.h), "attach")
			with = append(with, all)
			return all - none, err
		})
		if err != nil {
			return err
		}
		b.add(figure{Name: "swarm: " + at.name, Unit: "ms", Note: fmt.Sprintf("start less a start without network just before; the whole start takes %s ms", number(medianOf(with)))}, part)
	}
	if err := keeps.remove(ctx, "keep"); err != nil {
		return err
	}
	return docker(s.Host(1)).removeOverlay(ctx, id)
}

// startTime is how many milliseconds the start of a container takes.
func startTime(ctx context.Context, a *api, network string) (float64, error) {
	if err := a.create(ctx, "probe", network); err != nil {
		return 0, err
	}
	took, err := timed(func() error { return a.start(ctx, "probe") })
	return took, errors.Join(err, removeProbe(ctx, a))
}

// removeProbe waits until Swarm has forgotten the container, too. While it forgets, the
// network may still be there on a node that has no endpoint of it any more, or a start may
// fail since the network is not found.
func removeProbe(ctx context.Context, a *api) error {
	if err := a.remove(ctx, "probe"); err != nil {
		return err
	}
	return pause(ctx, time.After(time.Second))
}

// swarmConverges measures from a container's link in the bridge of its own node to its
// entries on another.
func (b *bench) swarmConverges(ctx context.Context, s *swarmLab) error {
	id, err := docker(s.Host(1)).createOverlay(ctx, "conv")
	if err != nil {
		return err
	}
	watchers := map[*lab.Host]*watcher{}
	at, on := s.Host(6), s.Host(5)
	for _, h := range []*lab.Host{at, on} {
		if _, err := docker(h).run(ctx, "keep", "conv"); err != nil {
			return err
		}
		w, err := watchNS(h.Path("/run/docker/netns/1-" + id[:10]))
		if err != nil {
			return err
		}
		defer w.close()
		watchers[h] = w
	}
	a := docker(on)
	took, err := repeat(max(5, b.n/5), func(int) (float64, error) {
		begin := time.Now()
		c, err := a.run(ctx, "probe", "conv")
		if err != nil {
			return 0, err
		}
		arrived, err := swarmEntries(ctx, watchers[at], c.NetworkSettings.Networks["conv"].MacAddress)
		if err != nil {
			return 0, err
		}
		stands := watchers[on].first(begin)
		return ms(arrived.Sub(stands)), removeProbe(ctx, a)
	})
	if err != nil {
		return err
	}
	b.add(figure{Name: "swarm: endpoint stands on B → its entries stand at A", Unit: "ms"}, took)
	return errors.Join(a.remove(ctx, "keep"), docker(at).remove(ctx, "keep"), docker(s.Host(1)).removeOverlay(ctx, id))
}

// swarmEntries is when the second entry of a MAC came: Swarm writes one forwarding entry and
// one neighbour.
func swarmEntries(ctx context.Context, w *watcher, mac string) (at time.Time, err error) {
	err = cluster.Eventually(ctx, 5*time.Second, func(context.Context) error {
		times := w.times(mac)
		if len(times) < 2 {
			return fmt.Errorf("%d of 2 entries of %s came", len(times), mac)
		}
		at = times[1]
		return nil
	})
	return at, err
}

// first is when the first entry after that time came, of whatever MAC.
func (w *watcher) first(after time.Time) (first time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, times := range w.seen {
		for _, t := range times {
			if t.After(after) && (first.IsZero() || t.Before(first)) {
				first = t
			}
		}
	}
	return first
}

// swarmTraffic compares as traffic does.
func (b *bench) swarmTraffic(ctx context.Context, s *swarmLab) error {
	id, err := docker(s.Host(1)).createOverlay(ctx, "flow")
	if err != nil {
		return err
	}
	over := way{addr: map[family]netip.Addr{}}
	for i, end := range []*string{&over.from, &over.to} {
		h := s.Host(4 + i)
		c, err := docker(h).run(ctx, "flow", "flow")
		if err != nil {
			return err
		}
		*end, over.addr[ipv4] = c.netns(h), c.NetworkSettings.Networks["flow"].IPAddress
	}
	const mtu = 1450 // Docker's for an underlay of 1500
	hand, err := handmade(ctx, s.Host(7), s.Host(8), mtu)
	if err != nil {
		return err
	}
	if err := b.against(ctx, over, hand, "swarm: ", nil); err != nil {
		return err
	}
	return errors.Join(docker(s.Host(4)).remove(ctx, "flow"), docker(s.Host(5)).remove(ctx, "flow"), docker(s.Host(1)).removeOverlay(ctx, id))
}

// swarmLeader kills the leader's dockerd and creates at the others until that works.
func (b *bench) swarmLeader(ctx context.Context, s *swarmLab) error {
	took, err := repeat(max(2, b.n/50), func(i int) (float64, error) {
		leader, others, err := s.leader(ctx)
		if err != nil {
			return 0, err
		}
		if err := s.kill(leader); err != nil {
			return 0, err
		}
		tries := 0
		took, err := timed(func() error {
			return cluster.Eventually(ctx, time.Minute, func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, time.Second/2) // a try without a leader would hang
				defer cancel()
				tries++
				_, err := docker(others[tries%len(others)]).createOverlay(ctx, fmt.Sprintf("leader-%d-%d", i, tries))
				return err
			})
		})
		if err != nil {
			return 0, err
		}
		if err := s.startDaemon(leader); err != nil {
			return 0, err
		}
		return took, cluster.Eventually(ctx, time.Minute, func(ctx context.Context) error { return s.allReachable(ctx, others[0]) })
	})
	if err != nil {
		return err
	}
	b.add(figure{Name: "swarm: leader killed → next write accepted", Unit: "ms", Note: "a try is given up after 0.5 s"}, took)
	return nil
}

// leader returns the leading manager and the other managers.
func (s *swarmLab) leader(ctx context.Context) (leader *lab.Host, others []*lab.Host, err error) {
	nodes, err := swarmNodes(ctx, s.Host(1))
	if err != nil {
		return nil, nil, err
	}
	for _, h := range s.Hosts()[:s.managers] {
		leads := false
		for _, n := range nodes {
			leads = leads || n.Description.Hostname == h.Name() && n.ManagerStatus != nil && n.ManagerStatus.Leader
		}
		if leads {
			leader = h
		} else {
			others = append(others, h)
		}
	}
	if leader == nil {
		return nil, nil, errors.New("the swarm has no leader")
	}
	return leader, others, nil
}

func (s *swarmLab) allReachable(ctx context.Context, ask *lab.Host) error {
	nodes, err := swarmNodes(ctx, ask)
	well := 0
	for _, n := range nodes {
		if n.ManagerStatus != nil && n.ManagerStatus.Reachability == "reachable" {
			well++
		}
	}
	if err == nil && well < s.managers {
		err = fmt.Errorf("%d managers are reachable", well)
	}
	return err
}
