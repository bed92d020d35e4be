package kernel

import (
	"strings"
	"testing"
)

// nft lists the whole rule set of a host that has heddle, as administrators and other programs
// have it do, with every member.
func TestNftListsTheAllowSet(t *testing.T) {
	n := newNode(t)
	n.o.Members = append(n.o.Members, vtep(2), vtep(3))
	c := n.o.Open()
	must(t, n.loop.Wait(t.Context(), n.loop.Set(c), "n1"))
	rules := run(t, hostPath(n.host), "nft", "list", "ruleset")
	for i := 1; i <= 3; i++ {
		if member := vtep(i).String() + " . 128.0.1.0"; !strings.Contains(rules, member) {
			t.Errorf("%s is not listed:\n%s", member, rules)
		}
	}
}
