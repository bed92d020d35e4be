//go:build linux

package daemon

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/agent"
	"github.com/heddle-net/heddle/overlay/own"
	"github.com/heddle-net/heddle/overlay/plan"
)

// lone is what a node in no cluster runs while it has networks of its own.
type lone struct {
	networks *own.Networks
	agent    *agent.Agent
	cancel   context.CancelFunc
	group    errgroup.Group
}

// openLone loads what a node in no cluster has, and starts it. Called with change held, or before
// anybody can call.
func (d *Daemon) openLone() (*lone, error) {
	if l := d.alone(); l != nil {
		return l, nil
	}
	id, err := d.identity()
	if err != nil {
		return nil, err
	}
	name, err := nodeName()
	if err != nil {
		return nil, err
	}
	k, random := kernelState{d.kernel, d.loop, d.balance}, func(b []byte) { _, _ = rand.Read(b) }
	l := &lone{}
	if l.networks, err = own.Open(own.Config{Self: id.Node, Name: name, Key: id.Key, Store: d.store, Routes: k.Routes, Random: random}); err != nil {
		return nil, err
	}
	l.agent, err = agent.New(agent.Config{
		Self: id.Node, Name: name, Key: id.Key, Boot: bootID(),
		Facts: l.networks, Control: own.Control{Networks: l.networks}, Peers: own.Peers{Networks: l.networks}, Tunnels: noTunnels{}, Datapath: k,
		Processes: processes{}, Workloads: workloads{d.kernel}, Resolver: d.resolver, Store: d.store, Random: random, Log: d.log,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	l.group.Go(func() error {
		if err := l.agent.Run(ctx); err != nil && ctx.Err() == nil {
			d.fail("agent", err)
		}
		return nil
	})
	d.mu.Lock()
	d.lone = l
	d.mu.Unlock()
	return l, nil
}

// resumeLone goes on with the networks that a node in no cluster had before; it reports whether there
// are any.
func (d *Daemon) resumeLone() (bool, error) {
	s, err := d.store.LoadOwn()
	if err != nil || len(s.Networks) == 0 {
		return false, err
	}
	if _, err := pki.LoadIdentity(d.identityFile()); errors.Is(err, fs.ErrNotExist) {
		return false, overlay.Errorf(overlay.Internal, "this node has networks, but its identity %s is gone; put it back from a backup, or empty the data directory", d.identityFile())
	}
	_, err = d.openLone()
	return err == nil, err
}

// closeLone ends it. The kernel's state stays.
func (d *Daemon) closeLone() {
	d.mu.Lock()
	l := d.lone
	d.lone = nil
	d.mu.Unlock()
	if l != nil {
		l.cancel()
		_ = l.group.Wait()
	}
}

// alone is what this node runs while it is in no cluster, or nil.
func (d *Daemon) alone() *lone {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lone
}

// unbound makes way for a cluster: it refuses while the node has networks of its own. Called with
// change held.
func (d *Daemon) unbound() error {
	l := d.alone()
	if l == nil {
		return nil
	}
	var names []string
	for _, r := range l.networks.Rows() {
		names = append(names, r.Name)
	}
	if len(names) > 0 {
		return overlay.Errorf(overlay.InUse, "this node has networks of its own (%s), and this version does not keep them in a cluster; remove them with `heddle network rm` first", strings.Join(names, ", "))
	}
	d.closeLone()
	d.resolver.forget()
	return nil
}

// agent is the one that answers for this node, or an error that says why there is none.
func (d *Daemon) agent() (*agent.Agent, error) {
	if l := d.alone(); l != nil {
		return l.agent, nil
	}
	m, err := d.joined()
	if err != nil {
		return nil, err
	}
	return m.agent, nil
}

// createOwn makes a network of this node's own.
func (d *Daemon) createOwn(s overlay.NetworkSpec) (overlay.NetworkRow, error) {
	d.change.Lock()
	defer d.change.Unlock()
	if d.current() != nil || d.wasRemoved() != nil {
		return overlay.NetworkRow{}, overlay.Errorf(overlay.Unsupported, "network %q would be this node's own, and this version keeps such networks only on nodes in no cluster; use -d overlay", s.Name)
	}
	l, err := d.openLone()
	if err != nil {
		return overlay.NetworkRow{}, err
	}
	return l.networks.Create(s)
}

// predefined makes the networks host and none of a node in no cluster when somebody asks for them, as
// Docker has them.
func (d *Daemon) predefined(name string) error {
	s := overlay.NetworkSpec{Name: name, Driver: name}
	if !s.Bare() || d.current() != nil || d.wasRemoved() != nil {
		return nil
	}
	if _, err := d.createOwn(s); err != nil && overlay.KindOf(err) != overlay.Exists {
		return err
	}
	return nil
}

// own answers a request about networks and endpoints that needs no manager. It reports whether it is
// one.
func (d *Daemon) own(ctx context.Context, method, path string, body []byte) (answer any, mine bool, err error) {
	path, _, _ = strings.Cut(path, "?")
	ref, one := strings.CutPrefix(path, "/v1/networks/")
	if ref, err = url.PathUnescape(ref); err != nil {
		return nil, false, nil
	}
	if method == http.MethodPost && path == "/v1/networks" {
		var s overlay.NetworkSpec
		if json.Unmarshal(body, &s) == nil && (s.Scope() == "node" || d.alone() != nil) {
			answer, err = d.createOwn(s)
			return answer, true, err
		}
	}
	l := d.alone()
	if l == nil {
		return nil, false, nil
	}
	switch {
	case method == http.MethodGet && path == "/v1/networks":
		return l.networks.Rows(), true, nil
	case method == http.MethodGet && path == "/v1/endpoints":
		answer, err = l.agent.Endpoints(ctx)
		return answer, true, err
	case method == http.MethodGet && one:
		answer, err = l.networks.Row(ref)
		return answer, true, err
	case method == http.MethodDelete && one:
		return struct{}{}, true, l.networks.Remove(ref)
	case one:
		return nil, true, overlay.Errorf(overlay.Unsupported, "a network of this node's own can't be changed in this version; make another")
	}
	return nil, false, nil
}

// aloneStatus adds what a node in no cluster has of its own.
func (d *Daemon) aloneStatus(ctx context.Context, s *overlay.Status) error {
	l := d.alone()
	if l == nil {
		return nil
	}
	eps, err := l.agent.Endpoints(ctx)
	s.Endpoints, s.Networks = append(s.Endpoints, eps...), len(l.networks.Rows())
	return err
}

// noTunnels are those of a node in no cluster.
type noTunnels struct{}

func (noTunnels) Tunnels() plan.Tunnels    { return plan.Tunnels{} }
func (noTunnels) Changed() <-chan struct{} { return nil }
