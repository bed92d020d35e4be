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

// The host's table, as nft would print it:
//
//	table inet heddle {
//		counter denied { }
//		set members4 { typeof ip saddr . @th,96,32 }
//		set members6 { typeof ip6 saddr . @th,96,32 }
//		chain judge {
//			meta nfproto ipv4 ip saddr . @th,96,32 @members4 accept
//			meta nfproto ipv6 ip6 saddr . @th,96,32 @members6 accept
//			counter name "denied" drop
//		}
//		chain prerouting { type filter hook prerouting priority raw;  OURS notrack }
//		chain input      { type filter hook input priority raw;       OURS goto judge }
//		chain output     { type filter hook output priority raw;      OURS notrack }
//	}
//
// where OURS is: meta l4proto udp, th dport PORT, @th,96,32 & -(MINVNI << 8) != 0. Frames are
// judged in input, after fragments were put together (a first fragment too short to hold the
// VNI would pass by), and so that frames which this host forwards to others are not judged.
//
// The VNI is read with the reserved byte behind it, in which Linux sends 0 and takes nothing
// else, and compared by its bits: four aligned bytes and a mask take nf_tables' fast paths;
// three bytes, or an order, would cost 2.5 % of all packets/s.
const (
	tableName   = "heddle"
	deniedName  = "denied"
	setMark     = "heddle"
	vniOffset   = 12 // bytes into UDP: its header, then flags and a reserved field
	vniBytes    = 4  // with the reserved byte behind it
	maxComment  = 128
	judgeChain  = "judge"
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
			KeyType: nftables.MustConcatSetType(ip, nftables.TypeInteger), KeyByteOrder: binaryutil.BigEndian,
		}
	}
	base := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return &nftables.Chain{Name: name, Table: r.table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRaw}
	}
	judge := &nftables.Chain{Name: judgeChain, Table: r.table}
	pre, in, out := base("prerouting", nftables.ChainHookPrerouting), base("input", nftables.ChainHookInput), base("output", nftables.ChainHookOutput)
	r.chains = []*nftables.Chain{judge, pre, in, out}
	ours := func() []expr.Any { return matchOurs(port, minVNI) }
	for i, rule := range []struct {
		chain *nftables.Chain
		exprs []expr.Any
	}{
		{judge, accept(unix.NFPROTO_IPV4, 12, 4, registerKey+8, r.sets[0])},
		{judge, accept(unix.NFPROTO_IPV6, 8, 16, registerKey+1, r.sets[1])},
		{judge, []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: deniedName}, &expr.Verdict{Kind: expr.VerdictDrop}}},
		{pre, append(ours(), &expr.Notrack{})},
		{in, append(ours(), &expr.Verdict{Kind: expr.VerdictGoto, Chain: judgeChain})},
		{out, append(ours(), &expr.Notrack{})},
	} {
		comment := fmt.Sprintf("heddle port %d vni %d- rule %d", port, minVNI, i)
		r.rules = append(r.rules, &nftables.Rule{
			Table: r.table, Chain: rule.chain, Exprs: rule.exprs,
			UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
		})
	}
	return r
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
	return k.withNFT(func(c *nftables.Conn) error {
		r := newRuleset(f.Port, f.MinVNI)
		if _, err := findTable(c, r); err != nil {
			return err
		}
		c.AddTable(r.table)
		c.DelTable(r.table)
		c.AddTable(r.table)
		c.AddObj(&nftables.CounterObj{Table: r.table, Name: deniedName})
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

func (k *Kernel) delFilter() error {
	return k.withNFT(func(c *nftables.Conn) error {
		r := newRuleset(0, 0)
		if there, err := findTable(c, r); err != nil || !there {
			return err
		}
		c.DelTable(r.table)
		return gone(c.Flush())
	})
}

// allow adds elements to the allow-set, or takes them out, in one transaction.
func (k *Kernel) allow(allowed []datapath.Allow, add bool) error {
	return k.withNFT(func(c *nftables.Conn) error {
		change := c.SetDeleteElements
		if add {
			change = c.SetAddElements
		}
		for i, set := range newRuleset(0, 0).sets {
			if e := elements(allowed, i == 0); len(e) > 0 {
				if err := change(set, e); err != nil {
					return err
				}
			}
		}
		return c.Flush()
	})
}

// readFilter reads the table. One whose chains or rules are not as heddle writes them has
// port 0, so that it is made again.
func (k *Kernel) readFilter() (datapath.FilterState, error) {
	f := datapath.FilterState{Allowed: map[datapath.Allow]bool{}}
	err := k.withNFT(func(c *nftables.Conn) error {
		there, err := findTable(c, newRuleset(0, 0))
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
	return f, err
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

// Denied is how many VXLAN frames the allow-set has dropped since the table was made; 0
// without a table.
func (k *Kernel) Denied() (uint64, error) {
	var n uint64
	err := k.withNFT(func(c *nftables.Conn) error {
		r := newRuleset(0, 0)
		if there, err := findTable(c, r); err != nil || !there {
			return err
		}
		o, err := c.GetObject(&nftables.CounterObj{Table: r.table, Name: deniedName})
		if err != nil {
			return fmt.Errorf("read counter %s: %w", deniedName, err)
		}
		if counter, ok := o.(*nftables.CounterObj); ok {
			n = counter.Packets
		}
		return nil
	})
	return n, err
}
