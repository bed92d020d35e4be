package kernel

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

// Balance is an open namespace, in which the rules of a balancer are read and changed. It keeps the
// namespace alive until it is closed. It is for one goroutine.
type Balance struct {
	h  *handle
	ns datapath.NS
}

// Balance opens a namespace for its balancer. Any goroutine may call it.
func (k *Kernel) Balance(ns datapath.NS) (*Balance, error) {
	b, err := k.openBalance(ns)
	if err != nil {
		return nil, err
	}
	if err := k.rules.know(k, ns, b.h); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// Inode is that of the namespace which is at its path now.
func (k *Kernel) Inode(ns datapath.NS) (uint64, error) { return netns.Inode(k.pathOf(ns)) }

// pathOf is where a namespace is, the host's own too.
func (k *Kernel) pathOf(ns datapath.NS) string {
	if ns.Path == "" {
		return k.hostPath()
	}
	return k.path(ns)
}

// openBalance is Balance without news of what changes there.
func (k *Kernel) openBalance(ns datapath.NS) (*Balance, error) {
	f, err := netns.Open(k.pathOf(ns), ns.Inode)
	if err != nil {
		return nil, err
	}
	h := &handle{file: f, conn: &conn{sockets: map[int]*nl.SocketHandle{}}}
	if h.inode, err = netns.InodeOf(f); err == nil {
		err = h.nft(&k.low.own)
	}
	if err != nil {
		h.close()
		return nil, err
	}
	// A transaction is one datagram.
	_ = unix.SetsockoptInt(h.sockets[unix.NETLINK_NETFILTER].Socket.GetFd(), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, transactionMost)
	return &Balance{h, ns}, nil
}

const transactionMost = 8 << 20 // bytes

// Inode is the namespace's.
func (b *Balance) Inode() uint64 { return b.h.inode }

// Close lets go of the namespace. Some 20 ms after a change it costs nothing, sooner it waits so long
// for the kernel.
func (b *Balance) Close() { b.h.close() }

// Generation names the state of all rules in the namespace.
func (b *Balance) Generation() (uint32, error) { return b.h.generation() }

// Read is what is there, compared with what is wanted. It changes nothing. A table of that name
// which is not heddle's is an error.
func (b *Balance) Read(want []*datapath.VIP) (datapath.Standing, error) {
	for range 10 {
		s := datapath.Standing{}
		var err error
		if s.Generation, err = b.h.generation(); err != nil {
			return s, err
		}
		t, err := b.h.readBalancer()
		if err != nil {
			return s, fmt.Errorf("read the rules of services in %s: %w", b.ns, err)
		}
		if now, err := b.h.generation(); err != nil || now != s.Generation {
			continue
		}
		if t.foreign() {
			return s, datapath.Errorf(datapath.Foreign, "nftables table `inet %s` in %s is not heddle's; rename it, or remove it with `nft delete table inet %s`", balancerTable, b.ns, balancerTable)
		}
		t.compare(want, &s)
		return s, nil
	}
	return datapath.Standing{}, fmt.Errorf("read the rules of services in %s: others change rules there all the time", b.ns)
}

// Write does changes in one transaction, and answers the generation that it makes. It does nothing
// when the rules of the namespace are not of the generation given. With anew it makes the table first,
// in place of one that is there.
func (b *Balance) Write(generation uint32, anew bool, changes []datapath.VIPChange) (uint32, error) {
	w := newFrontWriter()
	for _, c := range changes {
		w.change(c)
	}
	var all []*message
	known := b.hasChain
	if anew {
		var err error
		if all, err = b.create(); err != nil {
			return 0, err
		}
		known = func(chain string) (bool, error) { return isShared(chain), nil }
	}
	more, err := w.messages(known)
	if err != nil {
		return 0, err
	}
	if all = append(all, more...); len(all) == 0 {
		return generation, nil
	}
	if err := b.h.transactAt(generation, all...); errors.Is(err, unix.ERESTART) {
		return 0, fmt.Errorf("write the rules of services in %s: %w", b.ns, datapath.ErrOtherGeneration)
	} else if err != nil {
		return 0, explainNFT(fmt.Errorf("write the rules of services in %s: %w", b.ns, err))
	}
	return after(generation), nil
}

// create are the messages that make the table, in place of one that is there.
func (b *Balance) create() (all []*message, err error) {
	there, err := b.there()
	if err != nil {
		return nil, err
	}
	shared, err := sharedMessages()
	if there {
		all = append(all, inet(unix.NFT_MSG_DELTABLE, 0))
	}
	return append(all, shared...), err
}

// Remove takes the table away, if it is there.
func (b *Balance) Remove() error {
	there, err := b.there()
	if err != nil || !there {
		return err
	}
	if _, err := b.Read(nil); err != nil { // a stranger's
		return err
	}
	return gone(b.h.transact(inet(unix.NFT_MSG_DELTABLE, 0)))
}

func (b *Balance) there() (bool, error) {
	err := b.h.get(inet(unix.NFT_MSG_GETTABLE, 0), func([]byte) {})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, explainNFT(err)
}

// after is the generation that follows.
func after(generation uint32) uint32 {
	if generation++; generation == 0 {
		generation = 1
	}
	return generation
}
