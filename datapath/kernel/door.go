package kernel

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"github.com/heddle-net/heddle/datapath"
)

// An accept in heddle's own table does not undo a drop in another's. Docker gives others a
// chain of their own, DOCKER-USER: two marked rules there let uplinks through. The rules have
// no more than iptables can print.
const (
	doorChain = "DOCKER-USER"
	doorTable = "filter"
	doorMark  = "heddle door"
)

// door is a chain that lacks heddle's rules.
type door struct{ family nftables.TableFamily }

func (d door) table() *nftables.Table {
	return &nftables.Table{Name: doorTable, Family: d.family}
}

func (d door) chain() *nftables.Chain {
	return &nftables.Chain{Name: doorChain, Table: d.table()}
}

// ours are heddle's rules in the chain.
func (d door) ours(c *nftables.Conn) ([]*nftables.Rule, error) {
	rules, err := c.GetRules(d.table(), d.chain())
	if err != nil {
		return nil, fmt.Errorf("list rules of %s: %w", doorChain, err)
	}
	return slices.DeleteFunc(rules, func(r *nftables.Rule) bool {
		comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		return comment != doorMark
	}), nil
}

// doors are the chains that there are for such rules.
func doors(c *nftables.Conn) (out []door, err error) {
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Name == doorChain && ch.Table.Name == doorTable && (ch.Table.Family == nftables.TableFamilyIPv4 || ch.Table.Family == nftables.TableFamilyIPv6) {
			out = append(out, door{ch.Table.Family})
		}
	}
	return out, nil
}

func closedDoors(c *nftables.Conn, uplinks string) (out []door, err error) {
	all, err := doors(c)
	for _, d := range all {
		rules, err := d.ours(c)
		if err != nil {
			return nil, err
		}
		if len(rules) != 2 {
			out = append(out, d)
		}
	}
	return out, err
}

func openDoors(c *nftables.Conn, closed []door, uplinks string) error {
	if len(closed) == 0 {
		return nil
	}
	for _, d := range closed {
		old, err := d.ours(c)
		if err != nil {
			return err
		}
		for _, r := range old {
			if err := c.DelRule(r); err != nil {
				return err
			}
		}
		for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
			c.InsertRule(&nftables.Rule{
				Table: d.table(), Chain: d.chain(), UserData: userdata.AppendString(nil, userdata.TypeComment, doorMark),
				Exprs: slices.Concat(linkIs(key, uplinks), []expr.Any{&expr.Counter{}}, verdict(expr.VerdictAccept)),
			})
		}
	}
	return c.Flush()
}

func shutDoors(c *nftables.Conn) error {
	all, err := doors(c)
	if err != nil {
		return err
	}
	for _, d := range all {
		rules, err := d.ours(c)
		if err != nil {
			return err
		}
		for _, r := range rules {
			if err := c.DelRule(r); err != nil {
				return err
			}
		}
	}
	return gone(c.Flush())
}

// Obstacles are chains of others that drop, unless a rule says otherwise, what heddle needs:
// one line each, with what to type. It judges by reading: a rule that it does not understand
// may let the traffic through all the same. Any goroutine may ask.
func (k *Kernel) Obstacles(e datapath.Egress, ports ...datapath.Port) (out []string, err error) {
	err = k.withNFT(func(c *nftables.Conn) error {
		chains, err := c.ListChains()
		if err != nil {
			return fmt.Errorf("list chains: %w", err)
		}
		w := walls{c: c, uplinks: e.Uplinks, byName: map[string]*nftables.Chain{}}
		for _, ch := range chains {
			w.byName[chainName(ch)] = ch
		}
		for _, ch := range chains {
			if ch.Hooknum == nil || ch.Type != nftables.ChainTypeFilter || strings.HasPrefix(ch.Table.Name, tableName) {
				continue
			}
			for _, judge := range []func(*nftables.Chain, []datapath.Port) ([]string, error){w.judge, w.droppers} {
				lines, err := judge(ch, ports)
				if err != nil {
					return err
				}
				out = append(out, lines...)
			}
		}
		return nil
	})
	slices.Sort(out)
	return out, err
}

func chainName(ch *nftables.Chain) string {
	family := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet", nftables.TableFamilyNetdev: "netdev"}[ch.Table.Family]
	return family + " " + ch.Table.Name + " " + ch.Name
}

// walls judges others' base chains.
type walls struct {
	c       *nftables.Conn
	uplinks string
	byName  map[string]*nftables.Chain
}

// judge are the lines about a chain that stands in the way.
func (w walls) judge(ch *nftables.Chain, ports []datapath.Port) (out []string, err error) {
	forward, what := ch.Table.Family != nftables.TableFamilyNetdev && *ch.Hooknum == *nftables.ChainHookForward, way(ch)
	if !forward && what == "" || forward && w.uplinks == "" {
		return nil, nil
	}
	rules, err := w.c.GetRules(ch.Table, ch)
	if err != nil {
		return nil, fmt.Errorf("list rules of %s: %w", chainName(ch), err)
	}
	drops := ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
	if n := len(rules); n > 0 {
		drops = drops || refusesAll(rules[n-1])
	}
	if !drops {
		return nil, nil
	}
	if forward {
		ok, err := w.letsThrough(ch, rules, w.acceptsUplinks, 3)
		if ok || err != nil {
			return nil, err
		}
		return []string{fmt.Sprintf("the chain `%s` drops what workloads send out; type `%s`", chainName(ch), w.openForward(ch))}, nil
	}
	for _, p := range ports {
		if otherFamily(ch, p) {
			continue
		}
		ok, err := w.letsThrough(ch, rules, func(r *nftables.Rule) bool { return accepts(r) && w.concerns(r, p) != no }, 3)
		if err != nil {
			return nil, err
		}
		if !ok {
			out = append(out, fmt.Sprintf("the chain `%s` drops what %s %d/%s; type `%s`", chainName(ch), what, p.Port, p.Proto, openPort(ch, p)))
		}
	}
	return out, nil
}

// tool is the iptables that a chain is of, or "" where nft is the word.
func tool(ch *nftables.Chain) string {
	switch {
	case ch.Table.Name != "filter" || ch.Table.Family == nftables.TableFamilyINet:
		return ""
	case ch.Table.Family == nftables.TableFamilyIPv6:
		return "ip6tables"
	}
	return "iptables"
}

func (w walls) openForward(ch *nftables.Chain) string {
	if t := tool(ch); t != "" {
		return fmt.Sprintf("%s -I FORWARD -i %s+ -j ACCEPT && %s -I FORWARD -o %s+ -j ACCEPT", t, w.uplinks, t, w.uplinks)
	}
	return fmt.Sprintf("nft insert rule %s iifname \"%s*\" accept && nft insert rule %s oifname \"%s*\" accept", chainName(ch), w.uplinks, chainName(ch), w.uplinks)
}

func openPort(ch *nftables.Chain, p datapath.Port) string {
	if t := tool(ch); t != "" {
		return fmt.Sprintf("%s -I %s -p %s --dport %d -j ACCEPT", t, ch.Name, p.Proto, p.Port)
	}
	return fmt.Sprintf("nft insert rule %s %s dport %d accept", chainName(ch), p.Proto, p.Port)
}

// letsThrough looks for an accepting rule in a chain and in those that it calls.
func (w walls) letsThrough(ch *nftables.Chain, rules []*nftables.Rule, passes func(*nftables.Rule) bool, depth int) (bool, error) {
	for _, r := range rules {
		if passes(r) {
			return true, nil
		}
		v, ok := last(r).(*expr.Verdict)
		if !ok || depth == 0 || (v.Kind != expr.VerdictJump && v.Kind != expr.VerdictGoto) {
			continue
		}
		called := w.byName[chainName(&nftables.Chain{Table: ch.Table, Name: v.Chain})]
		if called == nil {
			continue
		}
		more, err := w.c.GetRules(called.Table, called)
		if err != nil {
			return false, fmt.Errorf("list rules of %s: %w", chainName(called), err)
		}
		if ok, err := w.letsThrough(called, more, passes, depth-1); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

func last(r *nftables.Rule) expr.Any {
	if len(r.Exprs) == 0 {
		return nil
	}
	return r.Exprs[len(r.Exprs)-1]
}

// refusesAll says whether a rule drops or rejects whatever comes.
func refusesAll(r *nftables.Rule) bool {
	for _, e := range r.Exprs[:max(0, len(r.Exprs)-1)] {
		if _, counts := e.(*expr.Counter); !counts {
			return false
		}
	}
	return refuses(last(r))
}

// refuses says whether a verdict is to drop or reject.
func refuses(e expr.Any) bool {
	switch e := e.(type) {
	case *expr.Verdict:
		return e.Kind == expr.VerdictDrop
	case *expr.Reject:
		return true
	case *expr.Target:
		return e.Name == "REJECT" || e.Name == "DROP"
	}
	return false
}

func accepts(r *nftables.Rule) bool {
	v, ok := last(r).(*expr.Verdict)
	return ok && v.Kind == expr.VerdictAccept
}

// acceptsUplinks says whether a rule accepts what comes from uplinks, or from anywhere.
func (w walls) acceptsUplinks(r *nftables.Rule) bool {
	if !accepts(r) {
		return false
	}
	asks := false
	for i, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			if e.Key == expr.MetaKeyIIFNAME && i+1 < len(r.Exprs) {
				cmp, ok := r.Exprs[i+1].(*expr.Cmp)
				return ok && cmp.Op == expr.CmpOpEq && strings.HasPrefix(w.uplinks, strings.TrimRight(string(cmp.Data), "\x00"))
			}
			asks = true
		case *expr.Counter, *expr.Verdict:
		default:
			asks = true
		}
	}
	return !asks
}

func (w walls) matchesPort(r *nftables.Rule, e expr.Any, port []byte) bool {
	switch e := e.(type) {
	case *expr.Cmp:
		return e.Op == expr.CmpOpEq && string(e.Data) == string(port)
	case *expr.Lookup:
		return slices.ContainsFunc(w.elements(r, e), func(s nftables.SetElement) bool { return string(s.Key) == string(port) })
	}
	return false
}

// elements are those of a set that a rule looks into; none where it can't be read.
func (w walls) elements(r *nftables.Rule, l *expr.Lookup) []nftables.SetElement {
	set, err := w.c.GetSetByName(r.Table, l.SetName)
	if err != nil {
		return nil
	}
	out, _ := w.c.GetSetElements(set)
	return out
}
