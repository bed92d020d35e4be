// Package kernel is the one way down to Linux: it reads what the kernel holds of heddle's
// objects and applies operations to them.
//
// A namespace in which the wanted state has a link is heddle's alone: unknown things there
// are reported, so that they are removed. Elsewhere only what carries heddle's mark or is
// wanted and provably heddle's is seen.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

// Config says where this node is. The zero value is the daemon's own namespace.
type Config struct {
	Host  string    // path of the namespace that datapath.NS{} means; "" is the daemon's
	Netns netns.Dir // where datapath's /run/netns is; "" is there

	// WireGuard is the command that carries a WireGuard device's packets where the kernel can't; the
	// device's name is added. Nil is this program with the argument wireguard.
	WireGuard []string
}

// Kernel reads and changes this node's kernel objects. Read, Apply, ApplyEntries and Release are
// for one goroutine; the other methods may be called by any.
type Kernel struct {
	cfg       Config
	host      *handle
	own       map[string]*handle      // namespaces that heddle made, by name
	guests    map[datapath.NS]*handle // namespaces of others, open until Release
	foreign   map[string]uint64       // names in Netns that are known not to be heddle's, by inode
	nftMu     sync.Mutex              // guards nft
	nft       *nftables.Conn          // nil until needed, and after an error
	low       low
	underlays underlays
	// children are processes of WireGuard devices that this one has started.
	children []int

	rules    abroad
	newsroom *newsroom
	names    *nameWatch // nil before the first namespace of heddle's
}

// New prepares access; nothing is opened before it is needed.
func New(cfg Config) *Kernel {
	if cfg.Netns == "" {
		cfg.Netns = netns.Run
	}
	if cfg.WireGuard == nil {
		program, _ := os.Executable() // without one, starting tells
		cfg.WireGuard = []string{program, "wireguard"}
	}
	return &Kernel{cfg: cfg, own: map[string]*handle{}, guests: map[datapath.NS]*handle{}, foreign: map[string]uint64{}, newsroom: newNewsroom()}
}

// Close closes what is open. The kernel's objects stay.
func (k *Kernel) Close() {
	k.Release()
	for name, h := range k.own {
		h.close()
		delete(k.own, name)
	}
	if k.host != nil {
		k.host.close()
		k.host = nil
	}
	if k.names != nil {
		k.names.close()
		k.names = nil
	}
	k.closeNFT()
	k.low.close()
}

// Release closes what is open of namespaces that others made, so that they are not kept
// alive. It is to be called after a round of operations.
func (k *Kernel) Release() {
	for ns, h := range k.guests {
		h.close()
		delete(k.guests, ns)
	}
}

// handle is an open namespace with a socket in it.
type handle struct {
	*conn
	file  *os.File
	inode uint64
	index map[string]int32 // of links, as last seen
	// packets is a socket to send frames by, 0 before the first. To close one takes the kernel
	// some 20 ms, so that it stays open.
	packets int
	tunnels *tunnels           // nil until needed
	watcher *watcher           // nil in namespaces of others, which must not be kept alive
	forget  func()             // of the socket to nf_tables, where there is one
	known   map[string]*locked // locks as they were at a generation of nf_tables, nil before the first
	knownAt uint32
}

func openHandle(path string, inode uint64) (*handle, error) {
	f, err := netns.Open(path, inode)
	if err != nil {
		return nil, err
	}
	h := &handle{file: f, index: map[string]int32{}}
	if h.inode, err = netns.InodeOf(f); err == nil {
		err = netns.Do(f, func() (err error) {
			h.conn, err = dial()
			return err
		})
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return h, nil
}

func (h *handle) close() {
	if h.watcher != nil {
		h.watcher.close()
	}
	h.conn.close()
	if h.forget != nil {
		h.forget()
	}
	if h.packets != 0 {
		_ = unix.Close(h.packets)
	}
	h.tunnels.close()
	h.file.Close()
}

// in is an open handle of the namespace.
func (k *Kernel) in(ns datapath.NS) (*handle, error) {
	if ns.Path == "" {
		return k.hostHandle()
	}
	if name, ok := ownName(ns); ok { // one that heddle makes: its absence is no fault of others
		if h := k.own[name]; h != nil {
			return h, nil
		}
		return nil, fmt.Errorf("namespace %s is not there: %w", name, unix.ENOENT)
	}
	if h := k.guests[ns]; h != nil {
		return h, nil
	}
	h, err := openHandle(k.path(ns), ns.Inode)
	if err == nil {
		k.guests[ns] = h
	}
	return h, err
}

func (k *Kernel) hostHandle() (*handle, error) {
	if k.host == nil {
		h, err := openHandle(k.hostPath(), 0)
		if err != nil {
			return nil, err
		}
		if h.watcher, err = k.watchIn(datapath.NS{}, h); err != nil {
			h.close()
			return nil, err
		}
		k.host = h
	}
	return k.host, nil
}

func (k *Kernel) hostPath() string {
	if k.cfg.Host == "" {
		return "/proc/thread-self/ns/net"
	}
	return k.cfg.Host
}

// ownName is the name of a namespace in the directory of named ones that may be heddle's.
func ownName(ns datapath.NS) (string, bool) {
	name, ok := strings.CutPrefix(ns.Path, string(netns.Run)+"/")
	return name, ok && ns.Inode == 0 && name != "" && !strings.Contains(name, "/")
}

func (k *Kernel) path(ns datapath.NS) string {
	if name, ok := strings.CutPrefix(ns.Path, string(netns.Run)+"/"); ok {
		return k.cfg.Netns.Path(name)
	}
	return ns.Path
}

// Apply does one operation. An error is a *datapath.Error when its cause is known;
// any other means that the kernel is not as it was read, and should be read again.
func (k *Kernel) Apply(ctx context.Context, op datapath.Op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := k.apply(op)
	if err == nil || datapath.FaultOf(err) != "" {
		return err
	}
	if errors.Is(err, unix.EPERM) {
		return datapath.Errorf(datapath.Denied, "%s: %w; heddle needs root (CAP_NET_ADMIN)", op, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

func (k *Kernel) apply(op datapath.Op) error {
	switch op := op.(type) {
	case datapath.SetFilter:
		return k.setFilter(op.Filter)
	case datapath.DelFilter:
		return gone(k.delFilter(op.NS))
	case datapath.AddAllow:
		return k.allow(op.Filter, true)
	case datapath.DelAllow:
		return k.allow(op.Filter, false)
	case datapath.SetEgress:
		return k.setEgress(op.Egress)
	case datapath.DelEgress:
		return k.delEgress()
	case datapath.SetEntrance:
		return k.setEntrance(op)
	case datapath.DelEntrance:
		return gone(k.delEntrance(op.NS))
	case datapath.SetRoute:
		return k.route(unix.RTM_NEWROUTE, op.Route)
	case datapath.DelRoute:
		return gone(k.route(unix.RTM_DELROUTE, op.Route))
	case datapath.SetNamespace:
		return k.setNamespace(op.Namespace)
	case datapath.DelNamespace:
		return k.delNamespace(op.Name)
	case datapath.AddLink:
		return k.addLink(op.Link)
	case datapath.SetLink:
		return k.setLink(op.Link)
	case datapath.UpLink:
		return k.upLink(op.Link)
	case datapath.DelLink:
		return k.delLink(op.Link)
	case datapath.SetLock:
		return k.setLock(op.Lock)
	case datapath.DelLock:
		return gone(k.delLock(op.Lock))
	case datapath.SetAddress:
		return k.setAddress(op.Address)
	case datapath.DelAddress:
		return k.delAddress(op.Address)
	case datapath.SetNeighbor, datapath.SetFDB:
		return k.setEntry(op)
	case datapath.DelNeighbor:
		return gone(k.setEntry(op))
	case datapath.Announce:
		return k.announce(op.Neighbor)
	case datapath.SetWGPeer:
		return k.setWGPeer(op.WGPeer)
	case datapath.DelWGPeer:
		return k.delWGPeer(op.WGPeer)
	case datapath.DelFDB:
		return k.delFDB(op.FDBEntry)
	}
	return fmt.Errorf("unknown operation %T", op)
}

// gone makes the absence of what is to be deleted no error.
func gone(err error) error {
	for _, e := range []error{os.ErrNotExist, unix.ENODEV, unix.ESRCH, unix.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return nil
		}
	}
	if datapath.FaultOf(err) == datapath.NoNamespace || datapath.FaultOf(err) == datapath.Replaced {
		return nil
	}
	return err
}
