package api

import (
	"slices"
	"testing"

	"github.com/heddle-net/heddle/overlay"
)

// The order in which managers are asked: the one in use first, this node last.
func TestTheOrderOfManagers(t *testing.T) {
	ids := func(c *Client) (out []overlay.NodeID) {
		for _, m := range c.Managers() {
			out = append(out, m.ID)
		}
		return out
	}
	all := func(ids ...overlay.NodeID) (out []Manager) {
		for _, id := range ids {
			out = append(out, Manager{ID: id})
		}
		return out
	}
	for _, tc := range []struct {
		name   string
		prefer overlay.NodeID
		set    []Manager
		want   []overlay.NodeID
	}{
		{"this node goes last", "", all("a", "self", "b"), []overlay.NodeID{"a", "b", "self"}},
		{"the one in use stays first", "b", all("a", "self", "b"), []overlay.NodeID{"b", "a", "self"}},
		{"even this one", "self", all("a", "self", "b"), []overlay.NodeID{"self", "b", "a"}},
		{"one that is gone is not asked", "b", all("a", "self"), []overlay.NodeID{"a", "self"}},
		{"none named: the old ones may know more", "", nil, []overlay.NodeID{"a", "b", "self"}},
	} {
		c := NewClient("self", nil, all("self", "a", "b"))
		c.prefer(tc.prefer)
		c.SetManagers(tc.set)
		if got := ids(c); !slices.Equal(got, tc.want) {
			t.Errorf("%s: asked in the order %v, want %v", tc.name, got, tc.want)
		}
	}
}
