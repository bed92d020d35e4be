package kernel

import (
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// mostListed is how many elements are in one message, whose attributes have 64 KiB at most.
const mostListed = 500

// frontWriter gathers what changes in the sets of a balancer.
type frontWriter struct {
	gone, come map[string][]setElement // by set
	spreads    map[string]spreading    // chains that are led to
}

// spreading is for what a chain is.
type spreading struct {
	family   inetFamily
	backends int
}

func newFrontWriter() *frontWriter {
	return &frontWriter{map[string][]setElement{}, map[string][]setElement{}, map[string]spreading{}}
}

// change gathers what has become of a VIP.
func (w *frontWriter) change(c datapath.VIPChange) {
	fronts := c.Now.Fronts()
	for _, f := range c.Was.Fronts() {
		if _, stays := c.Now.At(f); !stays {
			fronts = append(fronts, f)
		}
	}
	for _, f := range fronts {
		was, before := c.Was.At(f)
		now, after := c.Now.At(f)
		w.lead(f, before, was.Behind(f), after, now.Behind(f))
	}
	for _, a := range c.Was.Addresses() {
		if !c.Now.Has(a) {
			put(w.gone, familyOf(a).vips, setElement{key: a.AsSlice()})
		}
	}
	for _, a := range c.Now.Addresses() {
		if !c.Was.Has(a) {
			put(w.come, familyOf(a).vips, setElement{key: a.AsSlice()})
		}
	}
}

func put(to map[string][]setElement, set string, e setElement) { to[set] = append(to[set], e) }

// lead gathers what changes in a front that was there, or is afterwards.
func (w *frontWriter) lead(f datapath.Front, before bool, was []netip.AddrPort, after bool, now []netip.AddrPort) {
	in := familyOf(f.Addr)
	for i := range max(len(was), len(now)) {
		if i < len(was) && i < len(now) && was[i] == now[i] {
			continue
		}
		if i < len(was) {
			put(w.gone, in.backends, setElement{key: slotKey(f, i)})
		}
		if i < len(now) {
			put(w.come, in.backends, setElement{key: slotKey(f, i), data: target(now[i])})
		}
	}
	if before && after && len(was) == len(now) {
		return
	}
	if before {
		put(w.gone, in.ports, setElement{key: frontKey(f)})
	}
	if after {
		chain := leadsTo(in, len(now))
		put(w.come, in.ports, setElement{key: frontKey(f), chain: chain})
		if len(now) > 0 {
			w.spreads[chain] = spreading{in, len(now)}
		}
	}
}

// messages are the transaction's, but for chains that there are already. What goes comes first: most
// of it makes room for what comes.
func (w *frontWriter) messages(there func(chain string) (bool, error)) (all []*message, err error) {
	for name, s := range w.spreads {
		is, err := there(name)
		if err != nil {
			return nil, err
		}
		if is {
			continue
		}
		rule, err := newRule(name, spread(s.family, s.backends), spreadComment(name))
		if err != nil {
			return nil, err
		}
		all = append(all, newChain(name), rule)
	}
	list := func(typ uint16, sets map[string][]setElement) {
		for set, elements := range sets {
			for part := range slices.Chunk(elements, mostListed) {
				all = append(all, setElements(typ, set, part))
			}
		}
	}
	list(unix.NFT_MSG_DELSETELEM, w.gone)
	list(unix.NFT_MSG_NEWSETELEM, w.come)
	return all, nil
}

// hasChain says whether the balancer's table has a chain.
func (b *Balance) hasChain(name string) (bool, error) {
	err := b.h.get(inet(unix.NFT_MSG_GETCHAIN, 0).str(unix.NFTA_CHAIN_NAME, name), func([]byte) {})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, explainNFT(err)
}
