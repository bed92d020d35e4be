package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// balancerState is what nf_tables has of a balancer.
type balancerState struct {
	table   bool                // is there
	ours    bool                // a rule in it is heddle's
	strange bool                // something in it is not
	hooked  bool                // a chain is, as wanted
	rules   map[string][]string // comments, by chain
	fronts  map[datapath.Front]int
	slots   map[datapath.Front]map[int]netip.AddrPort
	vips    map[netip.Addr]bool
}

// readBalancer lists the table, which may be missing.
func (h *handle) readBalancer() (*balancerState, error) {
	t := &balancerState{rules: map[string][]string{}, fronts: map[datapath.Front]int{}, slots: map[datapath.Front]map[int]netip.AddrPort{}, vips: map[netip.Addr]bool{}}
	err := h.get(inet(unix.NFT_MSG_GETTABLE, 0), func([]byte) {})
	if errors.Is(err, unix.ENOENT) {
		return t, nil
	}
	if err != nil {
		return nil, explainNFT(err)
	}
	t.table = true
	list := func(m *message, row func(b []byte)) error {
		err := h.dump(m, func() {}, func(b []byte) {
			if len(b) > nfgenmsg && text(attribute(b[nfgenmsg:], unix.NFTA_TABLE_NAME)) == balancerTable {
				row(b[nfgenmsg:])
			}
		})
		if errors.Is(err, unix.ENOENT) { // a set is missing
			t.strange, err = true, nil
		}
		return err
	}
	if err := list(inet(unix.NFT_MSG_GETCHAIN, 0), t.addChain); err != nil {
		return nil, err
	}
	if err := list(inet(unix.NFT_MSG_GETRULE, 0), t.addRule); err != nil {
		return nil, err
	}
	for _, f := range families {
		for set, add := range map[string]func(f inetFamily, key, data []byte) bool{f.ports: t.addFront, f.backends: t.addSlot, f.vips: t.addVIP} {
			err := list(inet(unix.NFT_MSG_GETSETELEM, 0).str(unix.NFTA_SET_ELEM_LIST_SET, set), func(b []byte) {
				for _, e := range attributes(attribute(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
					key := attribute(attribute(e, unix.NFTA_SET_ELEM_KEY), unix.NFTA_DATA_VALUE)
					t.strange = !add(f, key, attribute(e, unix.NFTA_SET_ELEM_DATA)) || t.strange
				}
			})
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", set, err)
			}
		}
	}
	return t, nil
}

// foreign says whether the table is another's: it has rules, and none of heddle's.
func (t *balancerState) foreign() bool {
	rules := 0
	for _, list := range t.rules {
		rules += len(list)
	}
	return rules > 0 && !t.ours
}

func (t *balancerState) addChain(b []byte) {
	name, hook := text(attribute(b, unix.NFTA_CHAIN_NAME)), attribute(b, unix.NFTA_CHAIN_HOOK)
	t.rules[name] = nil
	if name == balancerChain {
		t.hooked = text(attribute(b, unix.NFTA_CHAIN_TYPE)) == "nat" && be32(attribute(hook, unix.NFTA_HOOK_HOOKNUM)) == unix.NF_INET_LOCAL_OUT &&
			be32(attribute(hook, unix.NFTA_HOOK_PRIORITY)) == dstNAT
	}
}

func (t *balancerState) addRule(b []byte) {
	chain := text(attribute(b, unix.NFTA_RULE_CHAIN))
	comment, _ := userdata.GetString(attribute(b, unix.NFTA_RULE_USERDATA), userdata.TypeComment)
	t.rules[chain] = append(t.rules[chain], comment)
	t.ours = t.ours || strings.HasPrefix(comment, "heddle ")
}

func (t *balancerState) addFront(f inetFamily, key, data []byte) bool {
	verdict := attribute(data, unix.NFTA_DATA_VERDICT)
	front, ok := frontOf(f, key)
	n, known := backendsOf(f, text(attribute(verdict, unix.NFTA_VERDICT_CHAIN)))
	t.fronts[front] = n
	return ok && known && be32(attribute(verdict, unix.NFTA_VERDICT_CODE)) == verdictGoto
}

func (t *balancerState) addSlot(f inetFamily, key, data []byte) bool {
	front, n, ok := slotOf(f, key)
	backend, known := targetOf(f, attribute(data, unix.NFTA_DATA_VALUE))
	if t.slots[front] == nil {
		t.slots[front] = map[int]netip.AddrPort{}
	}
	t.slots[front][n] = backend
	return ok && known
}

func (t *balancerState) addVIP(_ inetFamily, key, _ []byte) bool {
	a, ok := netip.AddrFromSlice(key)
	t.vips[a] = true
	return ok
}

// compare fills in what stands. What heddle does not leave behind, such as a backend of no port, makes
// the whole unsound.
func (t *balancerState) compare(want []*datapath.VIP, s *datapath.Standing) {
	s.There, s.Sound = t.table, t.sound()
	at := map[netip.Addr][]datapath.Front{}
	for f := range t.fronts {
		at[f.Addr] = append(at[f.Addr], f)
	}
	for _, v := range want {
		was, ok := t.there(v.Service, v.Addrs, at)
		s.Sound = s.Sound && ok
		switch {
		case !s.Sound:
		case same(v, was):
			s.VIPs = append(s.VIPs, v)
		case was != nil:
			s.VIPs = append(s.VIPs, was)
		}
		for _, a := range v.Addrs {
			delete(t.vips, a)
		}
	}
	for a := range t.vips {
		was, _ := t.there("surplus "+a.String(), []netip.Addr{a}, at)
		s.VIPs = append(s.VIPs, was)
	}
	if !s.Sound {
		s.VIPs = nil
	}
	slices.SortFunc(s.VIPs, func(a, b *datapath.VIP) int { return strings.Compare(a.Service, b.Service) })
}

// sound says whether all chains are as heddle makes them, and each front has all of its backends, and
// its VIP.
func (t *balancerState) sound() bool {
	want := map[string][]string{balancerChain: nil, refuseChain: nil}
	for _, r := range sharedRules() {
		want[r.chain] = append(want[r.chain], r.comment)
	}
	for chain, comments := range t.rules {
		right, shared := want[chain]
		if !shared {
			right = []string{spreadComment(chain)}
		}
		if !slices.Equal(comments, right) {
			return false
		}
		delete(want, chain)
	}
	if len(want) > 0 || !t.hooked || t.strange {
		return false
	}
	backends := 0
	for f, n := range t.fronts {
		if _, there := t.rules[leadsTo(familyOf(f.Addr), n)]; !there || !t.vips[f.Addr] || len(t.slots[f]) != n {
			return false
		}
		for i := range n {
			if _, there := t.slots[f][i]; !there {
				return false
			}
		}
		backends += n
	}
	for _, s := range t.slots {
		backends -= len(s)
	}
	return backends == 0
}

// there is what is at addresses, or nil. The addresses of a service have the same ports: ok is false
// where they don't.
func (t *balancerState) there(service string, addrs []netip.Addr, at map[netip.Addr][]datapath.Front) (v *datapath.VIP, ok bool) {
	v = &datapath.VIP{Service: service}
	for _, a := range addrs {
		if t.vips[a] {
			v.Addrs = append(v.Addrs, a)
		}
	}
	if len(v.Addrs) == 0 {
		return nil, true
	}
	for _, f := range at[v.Addrs[0]] {
		v.Ports = append(v.Ports, datapath.VIPPort{Proto: f.Proto, Port: f.Port})
	}
	for _, a := range v.Addrs {
		if len(at[a]) != len(v.Ports) {
			return nil, false
		}
		for i := range v.Ports {
			p := &v.Ports[i]
			f := datapath.Front{Addr: a, Proto: p.Proto, Port: p.Port}
			n, there := t.fronts[f]
			if !there {
				return nil, false
			}
			for slot := range n {
				p.Backends = append(p.Backends, t.slots[f][slot])
			}
		}
	}
	return v, true
}

// same says whether a VIP is there as it would be written, and nothing more at its addresses.
func same(v, was *datapath.VIP) bool {
	if was == nil || len(was.Addrs) != len(v.Addrs) || len(was.Ports) != len(v.Ports) {
		return false
	}
	for _, f := range v.Fronts() {
		p, _ := v.At(f)
		is, there := was.At(f)
		if !there || !slices.Equal(is.Behind(f), p.Behind(f)) {
			return false
		}
	}
	return true
}
