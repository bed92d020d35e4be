package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

func (k *Kernel) setLock(l datapath.Lock) error {
	h, err := k.in(l.NS)
	if err != nil {
		return err
	}
	if err := h.nft(&k.low.own); err != nil {
		return err
	}
	name := lockPrefix + l.Link
	table := func(typ, flags uint16) *message { return netdev(typ, flags).str(unix.NFTA_TABLE_NAME, name) }
	var all []*message
	switch err := h.get(table(unix.NFT_MSG_GETTABLE, 0), func([]byte) {}); {
	case err == nil:
		all = append(all, table(unix.NFT_MSG_DELTABLE, 0))
	case !errors.Is(err, unix.ENOENT):
		return explainLock(err)
	}
	chain := netdev(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE).str(unix.NFTA_CHAIN_TABLE, name).str(unix.NFTA_CHAIN_NAME, lockChain).str(unix.NFTA_CHAIN_TYPE, "filter")
	chain.nest(unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED, func() {
		chain.be32(unix.NFTA_HOOK_HOOKNUM, unix.NF_NETDEV_INGRESS).be32(unix.NFTA_HOOK_PRIORITY, 0).str(unix.NFTA_HOOK_DEV, l.Link)
	})
	all = append(all, table(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE), chain)
	rules := lockRules(l)
	for i, comment := range lockComments(l, rules) {
		m := netdev(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND).str(unix.NFTA_RULE_TABLE, name).str(unix.NFTA_RULE_CHAIN, lockChain)
		if err := m.rule(unix.NFPROTO_NETDEV, rules[i].exprs(), comment); err != nil {
			return fmt.Errorf("encode rule %d: %w", i, err)
		}
		all = append(all, m)
	}
	return explainLock(h.transact(all...))
}

func (k *Kernel) delLock(l datapath.Lock) error {
	h, err := k.in(l.NS)
	if err != nil {
		return err
	}
	if err := h.nft(&k.low.own); err != nil {
		return err
	}
	return h.transact(netdev(unix.NFT_MSG_DELTABLE, 0).str(unix.NFTA_TABLE_NAME, lockPrefix+l.Link))
}

func explainLock(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return datapath.Errorf(datapath.Unsupported, "this kernel lacks nf_tables for netdev, by which workloads are kept from forging addresses: %w; load the module nf_tables", err)
	}
	return err
}

// readLocks reads what locks are there. One that is not as it would be written allows nothing.
func (r *reader) readLocks(ns datapath.NS, h *handle) error {
	if err := h.nft(&r.k.low.own); err != nil {
		return err
	}
	locks, err := h.knownLocks()
	for port, is := range locks {
		row := datapath.Lock{NS: ns, Link: port}
		if want := r.want.locks[row.Key()]; want != nil && is.stands(*want) {
			row = *want
		}
		r.s.Locks[row.Key()] = row
	}
	if datapath.FaultOf(explainLock(err)) == datapath.Unsupported {
		err = nil // whoever wants one learns of it
	}
	return err
}

// Dropped is how many frames the locks of a namespace have dropped since they were written, by
// port and kind. Any goroutine may ask.
func (k *Kernel) Dropped(ns datapath.NS) (map[string]map[datapath.Forgery]uint64, error) {
	f, err := netns.Open(k.path(ns), ns.Inode)
	if err != nil {
		return nil, err
	}
	h := &handle{file: f, conn: &conn{sockets: map[int]*nl.SocketHandle{}}}
	defer h.close()
	if err := h.nft(&k.low.own); err != nil {
		return nil, err
	}
	locks, err := h.locks()
	out := map[string]map[datapath.Forgery]uint64{}
	for port, l := range locks {
		out[port] = l.dropped
	}
	return out, err
}

// locked is what nf_tables has of a lock.
type locked struct {
	on       string   // the device that its chain sees
	comments []string // of its rules
	dropped  map[datapath.Forgery]uint64
	stood    string // what it was found to allow
}

// stands says whether the lock is there as it would be written.
func (l *locked) stands(want datapath.Lock) bool {
	allows := want.Allows()
	if l.stood != allows && l.on == want.Link && slices.Equal(l.comments, lockComments(want, lockRules(want))) {
		l.stood = allows
	}
	return l.stood == allows
}

// knownLocks are the tables of locks by port, but for their counters, which may be old: they are read
// anew when there was a transaction in the namespace since, since a thousand have 30,000 rules.
func (h *handle) knownLocks() (all map[string]*locked, err error) {
	generation, err := h.generation()
	if err != nil || h.known != nil && h.knownAt == generation {
		return h.known, err
	}
	if all, err = h.locks(); err == nil {
		h.known, h.knownAt = all, generation
	}
	return all, err
}

// generation is that of all rules in the namespace. Each transaction makes another.
func (h *handle) generation() (g uint32, err error) {
	err = h.get(netdev(unix.NFT_MSG_GETGEN, 0), func(b []byte) {
		if len(b) > nfgenmsg {
			g = be32(attribute(b[nfgenmsg:], unix.NFTA_GEN_ID))
		}
	})
	return g, err
}

// locks are the tables of locks, by port.
func (h *handle) locks() (map[string]*locked, error) {
	all := map[string]*locked{}
	list := func(typ uint16, begin func(l *locked), row func(l *locked, b []byte)) error {
		err := h.dump(netdev(typ, 0), func() {
			for _, l := range all {
				begin(l)
			}
		}, func(b []byte) {
			if len(b) < nfgenmsg {
				return
			}
			port, is := strings.CutPrefix(text(attribute(b[nfgenmsg:], unix.NFTA_TABLE_NAME)), lockPrefix) // the table's name in all kinds
			if !is {
				return
			}
			if all[port] == nil {
				all[port] = &locked{dropped: map[datapath.Forgery]uint64{}}
			}
			row(all[port], b[nfgenmsg:])
		})
		if err != nil {
			return fmt.Errorf("list locks: %w", err)
		}
		return nil
	}
	err := list(unix.NFT_MSG_GETTABLE, func(*locked) {}, func(*locked, []byte) {})
	if err == nil {
		err = list(unix.NFT_MSG_GETCHAIN, func(l *locked) { l.on = "" }, (*locked).addChain)
	}
	if err == nil {
		err = list(unix.NFT_MSG_GETRULE, func(l *locked) { l.comments = nil; clear(l.dropped) }, (*locked).addRule)
	}
	return all, err
}

func (l *locked) addChain(b []byte) {
	hook := attribute(b, unix.NFTA_CHAIN_HOOK)
	if text(attribute(b, unix.NFTA_CHAIN_NAME)) == lockChain && be32(attribute(hook, unix.NFTA_HOOK_PRIORITY)) == 0 {
		l.on = text(attribute(hook, unix.NFTA_HOOK_DEV))
	}
}

func (l *locked) addRule(b []byte) {
	comment, _ := userdata.GetString(attribute(b, unix.NFTA_RULE_USERDATA), userdata.TypeComment)
	l.comments = append(l.comments, comment)
	kind := datapath.Forgery(comment[strings.LastIndexByte(comment, ' ')+1:])
	if kind == "" {
		return
	}
	for _, e := range attributes(attribute(b, unix.NFTA_RULE_EXPRESSIONS)) {
		if text(attribute(e, unix.NFTA_EXPR_NAME)) == "counter" {
			packets := attribute(attribute(e, unix.NFTA_EXPR_DATA), unix.NFTA_COUNTER_PACKETS)
			if len(packets) == 8 {
				l.dropped[kind] += binary.BigEndian.Uint64(packets)
			}
		}
	}
}

// attribute is the value of the first attribute of a type, or nil.
func attribute(b []byte, typ uint16) []byte {
	for t, v := range attributes(b) {
		if t == typ {
			return v
		}
	}
	return nil
}

func be32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}
