package kernel

import (
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

// table is a table of rules that is written whole. Its rules carry its text as a comment, which
// tells whether it is there as heddle writes it: a rule that somebody replaces has none.
type table struct {
	name   string
	text   string // names everything that the rules depend on
	chains []chain
	sets   []filled // and maps, that the rules look into, or fill
}

// filled is a set with what is in it at first. Its Table is set when it is written.
type filled struct {
	set      *nftables.Set
	elements []nftables.SetElement
}

type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook // nil: others jump to it
	priority nftables.ChainPriority
	rules    [][]expr.Any
}

func (t table) comment(chain, rule int) string {
	return fmt.Sprintf("heddle %s %d.%d", t.text, chain, rule)
}

func (t table) nft() *nftables.Table {
	return &nftables.Table{Name: t.name, Family: nftables.TableFamilyINet}
}

// write replaces the table in one transaction.
func (t table) write(c *nftables.Conn) error {
	there, err := t.there(c)
	if err != nil {
		return err
	}
	nt := t.nft()
	if there { // only then: a deletion costs a socket some 10 ms at its close
		if err := t.mayWrite(c); err != nil {
			return err
		}
		c.DelTable(nt)
	}
	c.AddTable(nt)
	for _, s := range t.sets {
		s.set.Table = nt
		if err := c.AddSet(s.set, s.elements); err != nil {
			return fmt.Errorf("add a set to table %s: %w", t.name, err)
		}
	}
	for i, ch := range t.chains {
		nc := &nftables.Chain{Name: ch.name, Table: nt}
		if ch.hook != nil {
			nc.Type, nc.Hooknum, nc.Priority = ch.kind, ch.hook, &ch.priority
		}
		c.AddChain(nc)
		for j, exprs := range ch.rules {
			c.AddRule(&nftables.Rule{Table: nt, Chain: nc, Exprs: exprs, UserData: userdata.AppendString(nil, userdata.TypeComment, t.comment(i, j))})
		}
	}
	return explainNFT(c.Flush())
}

// comments are those of the rules that are there, chain by chain; nil where a chain is missing
// or one is too many.
func (t table) comments(c *nftables.Conn) ([]string, error) {
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, explainNFT(fmt.Errorf("list chains: %w", err))
	}
	there := map[string]*nftables.Chain{}
	for _, ch := range all {
		if ch.Table.Name == t.name {
			there[ch.Name] = ch
		}
	}
	if len(there) != len(t.chains) {
		return nil, nil
	}
	out := []string{}
	for _, ch := range t.chains {
		is := there[ch.name]
		if is == nil || ch.hook != nil && (is.Hooknum == nil || *is.Hooknum != *ch.hook || is.Priority == nil || *is.Priority != ch.priority) {
			return nil, nil
		}
		rules, err := c.GetRules(t.nft(), is)
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

// stands says whether the table is there as it would be written.
func (t table) stands(c *nftables.Conn) (bool, error) {
	got, err := t.comments(c)
	if err != nil || got == nil {
		return false, err
	}
	for i, ch := range t.chains {
		for j := range ch.rules {
			if len(got) == 0 || got[0] != t.comment(i, j) {
				return false, nil
			}
			got = got[1:]
		}
	}
	return len(got) == 0, nil
}

// there says whether a table of the name is there, whoever made it.
func (t table) there(c *nftables.Conn) (bool, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, explainNFT(fmt.Errorf("list tables: %w", err))
	}
	for _, o := range tables {
		if o.Name == t.name {
			return true, nil
		}
	}
	return false, nil
}

// mayWrite refuses to replace a table without a rule of heddle's.
func (t table) mayWrite(c *nftables.Conn) error {
	there, err := t.there(c)
	if err != nil || !there {
		return err
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	rules := 0
	for _, ch := range chains {
		if ch.Table.Name != t.name {
			continue
		}
		list, err := c.GetRules(t.nft(), ch)
		if err != nil {
			return fmt.Errorf("list rules: %w", err)
		}
		for _, r := range list {
			rules++
			if comment, _ := userdata.GetString(r.UserData, userdata.TypeComment); len(comment) > 7 && comment[:7] == "heddle " {
				return nil
			}
		}
	}
	if rules == 0 {
		return nil
	}
	return datapath.Errorf(datapath.Foreign, "nftables table `inet %s` is not heddle's; rename it, or remove it with `nft delete table inet %s`", t.name, t.name)
}

// remove deletes the table, if it is there and heddle's.
func (t table) remove(c *nftables.Conn) error {
	there, err := t.there(c)
	if err != nil || !there {
		return err
	}
	if err := t.mayWrite(c); err != nil {
		return err
	}
	c.DelTable(t.nft())
	return gone(c.Flush())
}

// nftIn calls fn with a connection to nf_tables of an open namespace.
func (k *Kernel) nftIn(f *os.File, fn func(*nftables.Conn) error) error {
	var c *nftables.Conn
	err := netns.Do(f, func() (err error) {
		c, err = k.low.dial()
		return err
	})
	if err != nil {
		return fmt.Errorf("open nf_tables: %w", err)
	}
	defer k.low.hangUp(c)
	return fn(c)
}
