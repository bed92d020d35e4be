package overlay

import (
	"fmt"
	"testing"
)

func TestBehind(t *testing.T) {
	nodes := []Node{{ID: "1", Name: "n1"}, {ID: "2", Name: "n2"}, {ID: "3", Name: "n3"}}
	said := func(id NodeID) (NodeRecord, bool) {
		switch id {
		case "1":
			return NodeRecord{Hello: Hello{Version: "new", Reads: Reads()}}, true
		case "2":
			return NodeRecord{Hello: Hello{Version: "old", Reads: map[string]Range{"record": {1, 1}}}}, true
		}
		return NodeRecord{}, false
	}
	for _, tc := range []struct {
		level int
		want  string
	}{
		{1, "[]"}, // which every build reads
		{2, "[n2 (heddle old, reads level 1) n3 (not heard of yet)]"},
		{Level + 1, "[n1 (heddle new, reads level 4) n2 (heddle old, reads level 1) n3 (not heard of yet)]"},
	} {
		if got := fmt.Sprint(Behind(tc.level, nodes, said)); got != tc.want {
			t.Errorf("level %d: %s, want %s", tc.level, got, tc.want)
		}
	}
	if err := Waits("updating a network", 2, Behind(2, nodes[:2], said)); KindOf(err) != Unsupported ||
		err.Error() != "updating a network needs feature level 2 and waits for n2 (heddle old, reads level 1); upgrade heddle there" {
		t.Error(err)
	}
}
