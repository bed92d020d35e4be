//go:build linux

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/balance"
	"github.com/heddle-net/heddle/datapath/kernel"
	"github.com/heddle-net/heddle/datapath/reconcile"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
	"github.com/heddle-net/heddle/overlay/store"
)

// Daemon is the process's own state: what lasts through init, join and leave.
type Daemon struct {
	cfg      Config
	version  string
	log      *slog.Logger
	store    *store.Store
	kernel   *kernel.Kernel
	loop     *reconcile.Loop
	balance  *balance.Loop
	resolver *resolver
	failed   chan error // size 1: why the daemon must end

	asked  sync.Mutex // held while init, join or leave runs
	change sync.Mutex // held while membership changes: by those, or with the host's addresses

	mu      sync.Mutex
	member  *member       // nil in no cluster
	lone    *lone         // nil in a cluster, and without networks of this node's own
	removed *pki.Identity // of a node that was removed and has not left; there is no member then
}

// Privileged refuses to run without the rights that a daemon needs.
func Privileged() error {
	if os.Geteuid() != 0 {
		return overlay.Errorf(overlay.Denied, "the daemon changes the kernel's network and needs root; run it with sudo, or as the systemd unit heddle.service")
	}
	return nil
}

// Run is the daemon, until ctx ends. It leaves the kernel's state as it is, so that traffic
// goes on.
func Run(ctx context.Context, cfg Config, version string, log *slog.Logger) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if err := Privileged(); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return overlay.Errorf(overlay.Internal, "make the data directory: %w", err)
	}
	st, err := store.Open(filepath.Join(cfg.DataDir, "node.db"))
	if err != nil {
		return err
	}
	defer st.Close()
	k := kernel.New(kernel.Config{})
	defer k.Close()
	loop, err := reconcile.New(k, reconcile.Config{}, log)
	if err != nil {
		return err
	}
	r := newResolver(log)
	defer r.stop()
	d := Daemon{
		cfg: cfg, version: version, log: log, store: st, kernel: k, loop: loop, resolver: r,
		balance: balance.New(balancing{k}, balance.Config{}, log), failed: make(chan error, 1),
	}
	return d.run(ctx)
}

// run starts the reconciler and what the node is a member of, then opens the socket: it
// appears when everything behind it works. It stops in the reverse order.
func (d *Daemon) run(ctx context.Context) error {
	kernelCtx, stopKernel := context.WithCancel(context.Background())
	var under errgroup.Group
	under.Go(func() error { return d.loop.Run(kernelCtx) })
	under.Go(func() error { return d.balance.Run(kernelCtx) })
	under.Go(func() error { d.watchFirewall(kernelCtx); return nil })
	defer func() { stopKernel(); _ = under.Wait() }()

	id, err := pki.LoadIdentity(d.identityFile())
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case id.Member():
		if err := d.enter(id); err != nil {
			return err
		}
	}
	defer d.stop()
	under.Go(func() error { d.watchHost(kernelCtx); return nil })
	if d.current() == nil && d.wasRemoved() == nil {
		has, err := d.resumeLone()
		if err != nil {
			return err
		}
		if !has {
			d.loop.Set(datapath.Config{}) // what an earlier life left behind goes
		}
	}
	l, err := listenUnix(d.cfg.Socket, d.cfg.SocketGroup)
	if err != nil {
		return err
	}
	d.log.Info("ready", "socket", d.cfg.Socket, "member", d.current() != nil, "version", d.version)
	_, _ = sd.SdNotify(false, sd.SdNotifyReady)
	return d.serve(ctx, l)
}

// serve answers the local API until ctx ends. The socket's file stays: the next daemon takes
// its place, and meanwhile clients are told that none answers.
func (d *Daemon) serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: local.NewHandler(node{d}), ReadHeaderTimeout: 10 * time.Second, ConnContext: withCaller,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the local API: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		var failed error
		select {
		case <-gctx.Done():
		case failed = <-d.failed:
		}
		_, _ = sd.SdNotify(false, sd.SdNotifyStopping)
		stop, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if srv.Shutdown(stop) != nil {
			_ = srv.Close()
		}
		return failed
	})
	return g.Wait()
}

func (d *Daemon) identityFile() string { return filepath.Join(d.cfg.DataDir, "identity.json") }
func (d *Daemon) raftDir() string      { return filepath.Join(d.cfg.DataDir, "raft") }

func (d *Daemon) current() *member {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.member
}

// joined is the member, or an error that says how to become one.
func (d *Daemon) joined() (*member, error) {
	if m := d.current(); m != nil {
		return m, nil
	}
	if d.wasRemoved() != nil {
		return nil, errRemoved
	}
	return nil, overlay.Errorf(overlay.NotMember, "this node is in no cluster; make one with `heddle init`, or join one with `heddle join HOST --token T`")
}

var errRemoved = overlay.Errorf(overlay.NotMember, "this node was removed from the cluster; run `heddle leave --force`, then join again")

// wasRemoved is this node's identity when it was removed before the daemon started, or nil.
func (d *Daemon) wasRemoved() *pki.Identity {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.removed
}

// enter starts what a member runs, from what its disk has. Nobody speaks with a node that was
// removed: it runs nothing, and its overlays go.
func (d *Daemon) enter(id pki.Identity) error {
	f, err := d.store.LoadFacts()
	if err != nil {
		return err
	}
	if f != nil && f.Removed(id.Node) {
		d.log.Warn(errRemoved.Error(), "node", id.Node)
		d.mu.Lock()
		d.member, d.removed = nil, &id
		d.mu.Unlock()
		d.loop.Set(datapath.Config{})
		return nil
	}
	at, err := d.store.LoadAddresses()
	if err != nil {
		return err
	}
	if at, err = d.follow(at); err != nil {
		return err
	}
	m, err := openMember(d, id, at, nil)
	if err != nil {
		return err
	}
	if err := m.build(nil); err != nil {
		m.stop()
		return err
	}
	m.run()
	m.runRest()
	d.mu.Lock()
	d.member = m
	d.mu.Unlock()
	return nil
}

// hello is what this build tells others of itself.
func (d *Daemon) hello() overlay.Hello {
	return overlay.Hello{Version: d.version, Reads: overlay.Reads()}
}

// fail ends the daemon because of a part that it can't do without.
func (d *Daemon) fail(what string, err error) {
	select {
	case d.failed <- fmt.Errorf("%s: %w", what, err):
	default:
	}
}

// stop ends what a member runs, or a node in no cluster, and waits for it.
func (d *Daemon) stop() {
	d.closeLone()
	d.mu.Lock()
	m := d.member
	d.member = nil
	d.mu.Unlock()
	if m != nil {
		m.stop()
	}
}
