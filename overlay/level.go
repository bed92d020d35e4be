package overlay

import (
	"fmt"
	"strings"
)

// Level is the highest feature level that this build reads. The managers' state has a level,
// which rises when all of them read the next one; what came in with a level is written, and
// asked of others, from then on.
const Level = 4

// Features are, for people, what this build's level brings to a cluster.
const Features = "services"

// Level is the highest feature level that a build reads. The first builds said nothing of it.
func (h Hello) Level() int { return max(1, h.Reads["level"].Max) }

// Behind names the managers that are not known to read a feature level, as people read it.
// record is what a node says of itself.
func Behind(level int, managers []Node, record func(NodeID) (NodeRecord, bool)) []string {
	var out []string
	for _, n := range managers {
		r, said := record(n.ID)
		switch {
		case !said && level > 1:
			out = append(out, n.Name+" (not heard of yet)")
		case said && r.Hello.Level() < level:
			out = append(out, fmt.Sprintf("%s (heddle %s, reads level %d)", n.Name, r.Hello.Version, r.Hello.Level()))
		}
	}
	return out
}

// Waits says what waits for managers that are behind a feature level.
func Waits(what string, level int, behind []string) error {
	return Errorf(Unsupported, "%s needs feature level %d and waits for %s; upgrade heddle there", what, level, strings.Join(behind, ", "))
}
