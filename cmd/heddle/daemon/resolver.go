//go:build linux

package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/dns"
	"github.com/heddle-net/heddle/overlay/names"
)

const (
	dnsPort = 53
	// holdTime is how long questions wait in their sockets for the others' names, after a start.
	holdTime = time.Second
)

// resolver has a socket of each kind at each gateway address of the node's networks, and the files
// that send workloads there. Its sockets outlive the daemon, so that what is asked meanwhile waits.
type resolver struct {
	log    *slog.Logger
	server *dns.Server
	store  *fdStore
	table  atomic.Pointer[names.Table]

	mu     sync.Mutex
	places map[overlay.NetworkID]*place
	files  resolvFiles
	stuck  string // what failed last, so that it is told once
	served sync.WaitGroup
}

// place is where the workloads of a network ask.
type place struct {
	inode   uint64 // of the network's namespace
	since   time.Time
	sockets map[string]*socket // by their names in the store
	serving bool
}

// socket is a UDP socket or a TCP listener.
type socket struct {
	packets *net.UDPConn
	streams *net.TCPListener
	serving bool
}

func newResolver(log *slog.Logger) *resolver {
	return &resolver{
		log: log, server: dns.NewServer(dns.NewServers(), log), store: openFDStore(),
		places: map[overlay.NetworkID]*place{}, files: resolvFiles{dir: netnsEtc},
	}
}

// Answer makes t what is answered from.
func (r *resolver) Answer(t *names.Table) {
	r.server.Answer(t)
	r.table.Store(t)
}

// Follow brings sockets and files in line with the newest table.
func (r *resolver) Follow() {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.table.Load()
	if t == nil {
		return
	}
	zones := t.Zones()
	var errs error
	for id, p := range r.places {
		if zones[id] == nil {
			errs = errors.Join(errs, r.leave(p))
			delete(r.places, id)
		}
	}
	for id, z := range zones {
		if err := r.be(id, z); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	errs = errors.Join(errs, r.store.rest(), r.files.write(t))
	said := ""
	if errs != nil {
		said = errs.Error()
	}
	if said != r.stuck && errs != nil {
		r.log.Error("some workloads can't ask for names; trying again", "err", errs)
	}
	r.stuck = said
}

// be opens what is missing of a network whose namespace is there, and begins to answer when the
// others' names are known, or can't be had. The caller holds mu.
func (r *resolver) be(id overlay.NetworkID, z *names.Zone) error {
	ns, err := netns.Open(datapath.Namespace{Name: z.NamespaceName()}.NS().Path, 0)
	if datapath.FaultOf(err) == datapath.NoNamespace {
		return nil // not yet, or not any more
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	inode, err := netns.InodeOf(ns)
	if err != nil {
		return err
	}
	p := r.places[id]
	if p != nil && p.inode != inode { // it was removed, and made again
		err = r.leave(p)
		p = nil
	}
	if p == nil {
		p = &place{inode: inode, since: time.Now(), sockets: map[string]*socket{}}
		r.places[id] = p
	}
	for _, s := range z.Subnets {
		for _, proto := range []string{"udp", "tcp"} {
			err = errors.Join(err, r.open(p, id, ns, proto, s.Gateway))
		}
	}
	if p.serving = p.serving || !z.Partial || time.Since(p.since) >= holdTime; p.serving {
		for _, s := range p.sockets {
			r.serve(id, s)
		}
	}
	return err
}

// open opens a socket, unless it is there or an earlier daemon has left it. The caller holds mu.
func (r *resolver) open(p *place, id overlay.NetworkID, ns *os.File, proto string, at netip.Addr) error {
	b := at.As16()
	name := fmt.Sprintf("dns-%s-%s-%x", id, proto, b)
	if p.sockets[name] != nil {
		return nil
	}
	f := r.store.take(name)
	if f != nil {
		if inode, err := netns.OfSocket(f); err != nil || inode != p.inode {
			f.Close()
			f = nil
			if err := r.store.remove(name); err != nil {
				return err
			}
		}
	}
	if f == nil {
		var err error
		if f, err = netns.Listen(ns, proto, netip.AddrPortFrom(at, dnsPort)); err != nil {
			return err
		}
		if err := r.store.put(name, f); err != nil {
			r.log.Warn("a restart will lose questions", "err", err)
		}
	}
	defer f.Close()
	s := &socket{}
	if proto == "udp" {
		c, err := net.FilePacketConn(f)
		if err != nil {
			return err
		}
		s.packets = c.(*net.UDPConn)
	} else {
		l, err := net.FileListener(f)
		if err != nil {
			return err
		}
		s.streams = l.(*net.TCPListener)
	}
	p.sockets[name] = s
	return nil
}

// serve answers at a socket until it is closed, once. The caller holds mu.
func (r *resolver) serve(id overlay.NetworkID, s *socket) {
	if s.serving {
		return
	}
	s.serving = true
	r.served.Go(func() {
		if s.packets != nil {
			r.server.ServePackets(id, s.packets)
		} else {
			r.server.ServeStreams(id, s.streams)
		}
	})
}

// leave closes a network's sockets for good. The caller holds mu.
func (r *resolver) leave(p *place) (err error) {
	for name, s := range p.sockets {
		s.close()
		err = errors.Join(err, r.store.remove(name))
	}
	return err
}

func (s *socket) close() {
	if s.packets != nil {
		s.packets.Close()
	} else {
		s.streams.Close()
	}
}

// stop ends the answering. What is asked from now on waits for the next daemon.
func (r *resolver) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.places {
		for _, s := range p.sockets {
			if s.packets != nil {
				_ = s.packets.SetReadDeadline(time.Unix(1, 0))
			} else {
				_ = s.streams.SetDeadline(time.Unix(1, 0))
			}
		}
	}
	r.served.Wait()
	r.server.Close()
	for _, p := range r.places {
		for _, s := range p.sockets {
			s.close()
		}
	}
}

// forget takes away all that workloads could ask, as in a node that leaves its cluster.
func (r *resolver) forget() {
	r.Answer(&names.Table{})
	r.Follow()
}
