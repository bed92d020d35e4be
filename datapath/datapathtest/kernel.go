// Package datapathtest is an in-memory kernel with the rules of the real one, and the list
// of cases that both must pass.
package datapathtest

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/heddle-net/heddle/datapath"
)

// Kernel holds state in memory. Its methods may be called from any goroutine.
type Kernel struct {
	mu        sync.Mutex
	state     *datapath.State
	workloads map[string]uint64         // namespaces that others made: path and inode
	foreign   map[datapath.LinkKey]bool // links that others made
	log       []datapath.Op
	fail      func(datapath.Op) error
	reads     int
	news      []datapath.News
	lost      bool
	stirred   chan struct{}
}

// NewKernel is a kernel that holds nothing.
func NewKernel() *Kernel {
	return &Kernel{state: datapath.NewState(), workloads: map[string]uint64{}, foreign: map[datapath.LinkKey]bool{}, stirred: make(chan struct{}, 1)}
}

// Tell notifies of changes; without news it says that some were lost.
func (k *Kernel) Tell(news ...datapath.News) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.news, k.lost = append(k.news, news...), k.lost || len(news) == 0
	select {
	case k.stirred <- struct{}{}:
	default:
	}
}

// Stirred signals after Tell.
func (k *Kernel) Stirred() <-chan struct{} { return k.stirred }

// TakeNews is what was told.
func (k *Kernel) TakeNews() (news []datapath.News, lost bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	news, lost, k.news, k.lost = k.news, k.lost, nil, false
	return news, lost
}

// String is the state as sorted lines.
func (k *Kernel) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state.String()
}

// Ops are the operations that succeeded since the last call.
func (k *Kernel) Ops() []datapath.Op {
	k.mu.Lock()
	defer k.mu.Unlock()
	ops := k.log
	k.log = nil
	return ops
}

// Reads is how often the kernel was read.
func (k *Kernel) Reads() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.reads
}

// FailWith makes Apply return what fn returns, when that is not nil.
func (k *Kernel) FailWith(fn func(datapath.Op) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = fn
}

// Edit changes the state behind everybody's back.
func (k *Kernel) Edit(fn func(*datapath.State)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fn(k.state)
}

// AddWorkload makes a namespace as somebody else would.
func (k *Kernel) AddWorkload(ns datapath.NS) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.workloads[ns.Path] = ns.Inode
}

// DelWorkload ends a namespace that somebody else made, with what is in it.
func (k *Kernel) DelWorkload(ns datapath.NS) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.workloads, ns.Path)
	for _, l := range k.state.Links {
		if l.NS.Path == ns.Path || l.Peer.NS.Path == ns.Path && l.Kind == datapath.Veth {
			k.state.Apply(datapath.DelLink{Link: l.Link})
		}
	}
}

// AddForeign makes a link as somebody else would.
func (k *Kernel) AddForeign(l datapath.LinkKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.foreign[l] = true
}

// Read is everything there is of heddle's.
func (k *Kernel) Read(ctx context.Context, want *datapath.Config) (*datapath.State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reads++
	return k.state.Clone(), ctx.Err()
}

// Release does nothing.
func (k *Kernel) Release() {}

// Apply does what Linux would.
func (k *Kernel) Apply(ctx context.Context, op datapath.Op) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if k.fail != nil {
		if err := k.fail(op); err != nil {
			return err
		}
	}
	if err := k.check(op); err != nil {
		return err
	}
	k.state.Apply(op)
	k.log = append(k.log, op)
	return nil
}

// ApplyEntries does what Linux would.
func (k *Kernel) ApplyEntries(ctx context.Context, ops []datapath.Op) (errs []error) {
	for _, op := range ops {
		errs = append(errs, k.Apply(ctx, op))
	}
	return errs
}

func (k *Kernel) check(op datapath.Op) error {
	switch op := op.(type) {
	case datapath.AddAllow, datapath.DelAllow:
		if k.state.Filters[op.At().NS].Port == 0 {
			return fmt.Errorf("%s: no table", op)
		}
	case datapath.AddLink:
		return k.checkAdd(op.Link)
	case datapath.SetLink:
		return k.checkPort(op.Link)
	case datapath.UpLink:
		if op.Kind == datapath.VXLAN && k.state.Filters[op.VXLAN.Underlay].Port != op.VXLAN.Port {
			return fmt.Errorf("%s: the allow-set is not loaded", op)
		}
		return k.there(op)
	case datapath.SetAddress:
		return k.checkAddress(op)
	case datapath.SetNeighbor:
		return k.there(op)
	case datapath.SetFDB:
		if err := k.there(op); err != nil {
			return err
		}
		if l := k.state.Links[op.At()]; l.Master == "" {
			return fmt.Errorf("%s: no port of a bridge", op)
		}
	}
	return nil
}

// namespace says what is wrong with a namespace, if anything.
func (k *Kernel) namespace(ns datapath.NS) error {
	if ns.Path == "" {
		return nil
	}
	for _, n := range k.state.Namespaces {
		if n.NS() == ns {
			return nil
		}
	}
	inode, ok := k.workloads[ns.Path]
	switch {
	case !ok && ns.Inode == 0 && strings.HasPrefix(ns.Path, "/run/netns/"):
		return fmt.Errorf("namespace %s, which heddle makes, is not there", ns.Path)
	case !ok:
		return datapath.Errorf(datapath.NoNamespace, "namespace %s does not exist", ns.Path)
	case ns.Inode != 0 && ns.Inode != inode:
		return datapath.Errorf(datapath.Replaced, "namespace %s was replaced", ns.Path)
	}
	return nil
}

// there refuses work on a link, near or far end, that does not exist.
func (k *Kernel) there(op datapath.Op) error {
	if err := k.namespace(op.At().NS); err != nil {
		return err
	}
	if _, ok := k.state.Links[op.At()]; ok || k.isPeer(op.At()) || op.At().Name == datapath.Nowhere {
		return nil
	}
	return fmt.Errorf("%s: no such link", op)
}

func (k *Kernel) isPeer(key datapath.LinkKey) bool {
	for _, l := range k.state.Links {
		if l.Kind == datapath.Veth && l.Peer.Key() == key {
			return true
		}
	}
	return false
}

func (k *Kernel) checkAdd(l datapath.Link) error {
	if err := k.namespace(l.NS); err != nil {
		return err
	}
	if err := k.free(l.Key()); err != nil {
		return err
	}
	switch l.Kind {
	case datapath.Veth:
		if err := k.namespace(l.Peer.NS); err != nil {
			return err
		}
		if err := k.free(l.Peer.Key()); err != nil {
			return err
		}
	case datapath.VXLAN:
		for _, o := range k.state.Links {
			if o.Kind == datapath.VXLAN && o.VXLAN.VNI == l.VXLAN.VNI && o.VXLAN.Port == l.VXLAN.Port {
				return datapath.Errorf(datapath.Taken, "VNI %d is taken", l.VXLAN.VNI)
			}
		}
	}
	return k.checkPort(l)
}

func (k *Kernel) free(key datapath.LinkKey) error {
	if k.foreign[key] {
		return datapath.Errorf(datapath.Foreign, "link %s/%s is not heddle's", key.NS, key.Name)
	}
	if _, ok := k.state.Links[key]; ok || k.isPeer(key) {
		return fmt.Errorf("link %s/%s exists", key.NS, key.Name)
	}
	return nil
}

func (k *Kernel) checkPort(l datapath.Link) error {
	if b := k.state.Links[datapath.LinkKey{NS: l.NS, Name: l.Master}]; l.Master != "" && b.Kind != datapath.Bridge {
		return fmt.Errorf("link %s/%s: no bridge %s", l.NS, l.Name, l.Master)
	}
	return nil
}

func (k *Kernel) checkAddress(op datapath.SetAddress) error {
	for a := range k.state.Addresses {
		if a.NS == op.NS && a.Link == op.Link && a.Prefix.Addr() == op.Prefix.Addr() && a.Prefix != op.Prefix && a.Prefix.Addr().Is6() {
			return fmt.Errorf("%s: the address exists with another prefix length", op)
		}
	}
	return k.there(op)
}
