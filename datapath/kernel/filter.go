package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

// The table of an underlay, the host's or an inner one, as nft would print it:
//
//	table inet heddle {
//		counter denied { }
//		counter forged { }
//		set members4 { type ipv4_addr . ipv4_addr }
//		set members6 { type ipv6_addr . ipv4_addr }
//		chain judge {
//			meta nfproto ipv4 ip saddr . @th,96,32 @members4 accept
//			meta nfproto ipv6 ip6 saddr . @th,96,32 @members6 accept
//			counter name "denied" drop
//		}
//		chain leave {
//			meta skuid >= 0 meta priority != 8 counter name "forged" drop
//			notrack
//		}
//		chain prerouting { type filter hook prerouting priority raw;  OURS notrack }
//		chain input      { type filter hook input priority raw;       OURS goto judge }
//		chain output     { type filter hook output priority raw;      OURS goto leave }
//	}
//
// where OURS is: meta l4proto udp, th dport PORT, @th,96,32 & -(MINVNI << 8) != 0. Frames are
// judged in input, after fragments were put together (a first fragment too short to hold the
// VNI would pass by), and so that frames which this host forwards to others are not judged.
//
// What a socket of this host sends has that socket's user: the kernel's own VXLAN frames carry at
// most a workload's socket, which is of another namespace and has none here; or one of the host's,
// where the host is a workload itself (hostPriority).
//
// The VNI is read with the reserved byte behind it, in which Linux sends 0 and takes nothing
// else, and compared by its bits: four aligned bytes and a mask take nf_tables' fast paths;
// three bytes, or an order, would cost 2.5 % of all packets/s. In the sets' types it goes for an
// IPv4 address, the only type of four bytes in the network's order: on one without a length, such
// as integer, nft aborts when it lists the host's rules.
const (
	tableName   = "heddle"
	deniedName  = "denied"
	forgedName  = "forged"
	setMark     = "heddle"
	vniOffset   = 12 // bytes into UDP: its header, then flags and a reserved field
	vniBytes    = 4  // with the reserved byte behind it
	maxComment  = 128
	judgeChain  = "judge"
	leaveChain  = "leave"
	registerKey = 1
)

// ruleset is the table for one port and VNI range.
type ruleset struct {
	table  *nftables.Table
	sets   [2]*nftables.Set // IPv4, IPv6
	chains []*nftables.Chain
	rules  []*nftables.Rule
}

func newRuleset(port uint16, minVNI uint32) ruleset {
	r := ruleset{table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}}
	for i, ip := range []nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeIP6Addr} {
		r.sets[i] = &nftables.Set{
			Table: r.table, Name: []string{"members4", "members6"}[i], Concatenation: true, Comment: setMark,
			KeyType: nftables.MustConcatSetType(ip, nftables.TypeIPAddr), KeyByteOrder: binaryutil.BigEndian,
		}
	}
	base := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return &nftables.Chain{Name: name, Table: r.table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRaw}
	}
	judge, leave := &nftables.Chain{Name: judgeChain, Table: r.table}, &nftables.Chain{Name: leaveChain, Table: r.table}
	pre, in, out := base("prerouting", nftables.ChainHookPrerouting), base("input", nftables.ChainHookInput), base("output", nftables.ChainHookOutput)
	r.chains = []*nftables.Chain{judge, leave, pre, in, out}
	ours := func() []expr.Any { return matchOurs(port, minVNI) }
	for i, rule := range []struct {
		chain *nftables.Chain
		exprs []expr.Any
	}{
		{judge, accept(unix.NFPROTO_IPV4, 12, 4, registerKey+8, r.sets[0])},
		{judge, accept(unix.NFPROTO_IPV6, 8, 16, registerKey+1, r.sets[1])},
		{judge, dropAs(deniedName)},
		{leave, append([]expr.Any{
			&expr.Meta{Key: expr.MetaKeySKUID, Register: registerKey},
			&expr.Cmp{Op: expr.CmpOpGte, Register: registerKey, Data: make([]byte, 4)},
			&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: registerKey},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: registerKey, Data: binary.NativeEndian.AppendUint32(nil, hostPriority)},
		}, dropAs(forgedName)...)},
		{leave, []expr.Any{&expr.Notrack{}}},
		{pre, append(ours(), &expr.Notrack{})},
		{in, append(ours(), &expr.Verdict{Kind: expr.VerdictGoto, Chain: judgeChain})},
		{out, append(ours(), &expr.Verdict{Kind: expr.VerdictGoto, Chain: leaveChain})},
	} {
		// 2 tells from the tables of builds whose sets nft can't list, so that those are written anew.
		comment := fmt.Sprintf("heddle port %d vni %d- 2 rule %d", port, minVNI, i)
		r.rules = append(r.rules, &nftables.Rule{
			Table: r.table, Chain: rule.chain, Exprs: rule.exprs,
			UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
		})
	}
	return r
}

func dropAs(counter string) []expr.Any {
	return []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: counter}, &expr.Verdict{Kind: expr.VerdictDrop}}
}

// matchOurs matches the port's frames from a VNI on, which is a power of two.
func matchOurs(port uint16, minVNI uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: registerKey},
		&expr.Cmp{Op: expr.CmpOpEq, Register: registerKey, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: registerKey, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: registerKey, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.Payload{DestRegister: registerKey, Base: expr.PayloadBaseTransportHeader, Offset: vniOffset, Len: vniBytes},
		&expr.Bitwise{SourceRegister: registerKey, DestRegister: registerKey, Len: vniBytes, Mask: binary.BigEndian.AppendUint32(nil, -(minVNI << 8)), Xor: make([]byte, vniBytes)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: registerKey, Data: make([]byte, vniBytes)},
	}
}

// accept looks (source, VNI) up; the VNI goes into the register behind the address.
func accept(proto byte, offset, length, vniRegister uint32, set *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: registerKey},
		&expr.Cmp{Op: expr.CmpOpEq, Register: registerKey, Data: []byte{proto}},
		&expr.Payload{DestRegister: registerKey, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Payload{DestRegister: vniRegister, Base: expr.PayloadBaseTransportHeader, Offset: vniOffset, Len: vniBytes},
		&expr.Lookup{SourceRegister: registerKey, SetName: set.Name, SetID: set.ID},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

// elements are the allowed of one family as set elements: address, VNI in 24 bits, the reserved byte.
func elements(allowed []datapath.Allow, v4 bool) []nftables.SetElement {
	var out []nftables.SetElement
	for _, a := range allowed {
		if a.Source.Is4() == v4 {
			key := append(a.Source.AsSlice(), byte(a.VNI>>16), byte(a.VNI>>8), byte(a.VNI), 0)
			out = append(out, nftables.SetElement{Key: key})
		}
	}
	return out
}

func parseElement(key []byte) (datapath.Allow, bool) {
	if len(key) < 8 {
		return datapath.Allow{}, false
	}
	n := len(key) - 4
	a, ok := netip.AddrFromSlice(key[:n])
	return datapath.Allow{Source: a, VNI: binary.BigEndian.Uint32(key[n:]) >> 8}, ok
}

// withNFT calls fn with the connection to nf_tables. After an error the connection is
// closed, since it may hold half a conversation.
func (k *Kernel) withNFT(fn func(c *nftables.Conn) error) error {
	k.nftMu.Lock()
	defer k.nftMu.Unlock()
	if k.nft == nil {
		f, err := netns.Open(k.hostPath(), 0)
		if err != nil {
			return err
		}
		defer f.Close()
		err = netns.Do(f, func() (err error) {
			k.nft, err = k.low.dial()
			return err
		})
		if err != nil {
			k.nft = nil
			return fmt.Errorf("open nf_tables: %w", err)
		}
	}
	err := fn(k.nft)
	if err != nil {
		k.low.hangUp(k.nft)
		k.nft = nil
	}
	return err
}

// withNFTOf is withNFT for the host's namespace or one that heddle made.
func (k *Kernel) withNFTOf(ns datapath.NS, fn func(c *nftables.Conn) error) error {
	if ns == (datapath.NS{}) {
		return k.withNFT(fn)
	}
	h, err := k.in(ns)
	if err != nil {
		return err
	}
	return k.nftIn(h.file, fn)
}

func (k *Kernel) closeNFT() {
	k.nftMu.Lock()
	defer k.nftMu.Unlock()
	if k.nft != nil {
		k.low.hangUp(k.nft)
		k.nft = nil
	}
}

// setFilter replaces the table in one transaction: at no time is there half of it.
func (k *Kernel) setFilter(f datapath.Filter) error {
	return k.withNFTOf(f.NS, func(c *nftables.Conn) error {
		r := newRuleset(f.Port, f.MinVNI)
		if _, err := findTable(c, r); err != nil {
			return err
		}
		c.AddTable(r.table)
		c.DelTable(r.table)
		c.AddTable(r.table)
		for _, name := range []string{deniedName, forgedName} {
			c.AddObj(&nftables.CounterObj{Table: r.table, Name: name})
		}
		for i, set := range r.sets {
			if err := c.AddSet(set, nil); err != nil {
				return fmt.Errorf("add set %s: %w", set.Name, err)
			}
			if e := elements(f.Allowed, i == 0); len(e) > 0 {
				if err := c.SetAddElements(set, e); err != nil {
					return fmt.Errorf("fill set %s: %w", set.Name, err)
				}
			}
		}
		for _, chain := range r.chains {
			c.AddChain(chain)
		}
		for _, rule := range r.rules {
			c.AddRule(rule)
		}
		return explainNFT(c.Flush())
	})
}

func explainNFT(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return datapath.Errorf(datapath.Unsupported, "this kernel lacks nf_tables for inet with notrack: %w; load the modules nf_tables, nft_ct and nf_conntrack", err)
	}
	return err
}

// findTable says whether heddle's table is there. A table of that name that is somebody
// else's is an error.
func findTable(c *nftables.Conn, r ruleset) (bool, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, explainNFT(fmt.Errorf("list tables: %w", err))
	}
	for _, t := range tables {
		if t.Name != tableName {
			continue
		}
		sets, err := c.GetSets(r.table)
		if err != nil {
			return false, fmt.Errorf("list sets: %w", err)
		}
		for _, s := range sets {
			if s.Comment == setMark {
				return true, nil
			}
		}
		return false, datapath.Errorf(datapath.Foreign, "nftables table `inet %s` is not heddle's; rename it, or remove it with `nft delete table inet %s`", tableName, tableName)
	}
	return false, nil
}

func (k *Kernel) delFilter(ns datapath.NS) error {
	return k.withNFTOf(ns, func(c *nftables.Conn) error {
		r := newRuleset(0, 0)
		if there, err := findTable(c, r); err != nil || !there {
			return err
		}
		c.DelTable(r.table)
		return gone(c.Flush())
	})
}

// allow adds elements to the allow-set, or takes them out, in one transaction.
func (k *Kernel) allow(f datapath.Filter, add bool) error {
	return k.withNFTOf(f.NS, func(c *nftables.Conn) error {
		change := c.SetDeleteElements
		if add {
			change = c.SetAddElements
		}
		for i, set := range newRuleset(0, 0).sets {
			if e := elements(f.Allowed, i == 0); len(e) > 0 {
				if err := change(set, e); err != nil {
					return err
				}
			}
		}
		return c.Flush()
	})
}

// readFilter reads the table of a namespace, if there is one. One whose chains or rules are not
// as heddle writes them has port 0, so that it is made again.
func (k *Kernel) readFilter(ns datapath.NS) (f datapath.FilterState, there bool, err error) {
	f.Allowed = map[datapath.Allow]bool{}
	err = k.withNFTOf(ns, func(c *nftables.Conn) (err error) {
		there, err = findTable(c, newRuleset(0, 0))
		if !there || err != nil {
			if fault := datapath.FaultOf(err); fault == datapath.Foreign || fault == datapath.Unsupported {
				err = nil // whoever wants to make the table learns it
			}
			return err
		}
		comments, err := readComments(c)
		if err != nil {
			return err
		}
		var port uint16
		var min uint32
		if len(comments) > 0 {
			fmt.Sscanf(comments[0], "heddle port %d vni %d-", &port, &min)
		}
		want := newRuleset(port, min)
		if len(comments) == len(want.rules) {
			f.Port, f.MinVNI = port, min
		}
		for i := 0; i < len(comments) && f.Port != 0; i++ {
			if w, _ := userdata.GetString(want.rules[i].UserData, userdata.TypeComment); w != comments[i] {
				f.Port, f.MinVNI = 0, 0
			}
		}
		for _, set := range want.sets {
			e, err := c.GetSetElements(set)
			if err != nil {
				f.Port = 0
				continue
			}
			for _, e := range e {
				if a, ok := parseElement(e.Key); ok {
					f.Allowed[a] = true
				}
			}
		}
		return nil
	})
	return f, there, err
}

// readComments are the comments of all rules in the order in which heddle writes them.
// They tell its rules from others, since a replaced rule loses its comment. Rules in other
// chains of the table add to the list.
func readComments(c *nftables.Conn) ([]string, error) {
	want := newRuleset(0, 0)
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	there := map[string]*nftables.Chain{}
	for _, ch := range chains {
		if ch.Table.Name == tableName {
			there[ch.Name] = ch
		}
	}
	if len(there) != len(want.chains) {
		return nil, nil
	}
	var out []string
	for _, w := range want.chains {
		ch := there[w.Name]
		if ch == nil || w.Hooknum != nil && (ch.Hooknum == nil || *ch.Hooknum != *w.Hooknum || ch.Priority == nil || *ch.Priority != *w.Priority) {
			return nil, nil
		}
		rules, err := c.GetRules(want.table, w)
		if err != nil {
			return nil, fmt.Errorf("list rules: %w", err)
		}
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			out = append(out, comment)
		}
	}
	return out, nil
}

// Denied is how many VXLAN frames the allow-sets of all underlays have dropped since their tables
// were made, and how many that programs of this host wanted to send. Any goroutine may ask.
func (k *Kernel) Denied() (received, sent uint64, err error) {
	add := func(c *nftables.Conn) error {
		r := newRuleset(0, 0)
		if there, err := findTable(c, r); err != nil || !there {
			return err
		}
		for name, n := range map[string]*uint64{deniedName: &received, forgedName: &sent} {
			o, err := c.GetObject(&nftables.CounterObj{Table: r.table, Name: name})
			if err != nil {
				return fmt.Errorf("read counter %s: %w", name, err)
			}
			if counter, ok := o.(*nftables.CounterObj); ok {
				*n += counter.Packets
			}
		}
		return nil
	}
	if err := k.withNFT(add); err != nil {
		return 0, 0, err
	}
	err = k.underlays.each(k, func(h *handle) error { return k.nftIn(h.file, add) })
	return received, sent, err
}
