package names

import (
	"iter"
	"slices"

	"github.com/heddle-net/heddle/overlay"
)

// index finds records by keys. It is never changed: an edit copies what it touches, so that a change
// costs the same however many records there are.
type index[K comparable] struct{ branches [fan]*branch[K] }

// branch has the entries of the keys whose hashes end alike.
type branch[K comparable] struct {
	by     *byte // the mark of the edit that may change it
	leaves [fan / 2][]entry[K]
}

type entry[K comparable] struct {
	key    K
	record *overlay.Record
}

const fan = 64

// find gives what has a key.
func (x *index[K]) find(key K, hash uint32) iter.Seq[*overlay.Record] {
	return func(yield func(*overlay.Record) bool) {
		b := x.branches[hash%fan]
		if b == nil {
			return
		}
		for _, e := range b.leaves[hash/fan%(fan/2)] {
			if e.key == key && !yield(e.record) {
				return
			}
		}
	}
}

// edit is a change of an index under way, to be used once.
type edit[K comparable] struct {
	now  *index[K]
	mark *byte // its own; a branch that held the edit would hold all that was ever edited
}

func (x *index[K]) edit() *edit[K] {
	copied := *x
	return &edit[K]{&copied, new(byte)}
}

// leaf is where the entries of a key are, in a branch that is the edit's own.
func (e *edit[K]) leaf(hash uint32) *[]entry[K] {
	b := &e.now.branches[hash%fan]
	switch {
	case *b == nil:
		*b = &branch[K]{by: e.mark}
	case (*b).by != e.mark:
		copied := **b
		copied.by = e.mark
		*b = &copied
	}
	return &(*b).leaves[hash/fan%(fan/2)]
}

func (e *edit[K]) add(key K, hash uint32, r *overlay.Record) {
	l := e.leaf(hash)
	*l = append(slices.Clip(*l), entry[K]{key, r})
}

// remove takes out what the record's endpoint and owner have under a key.
func (e *edit[K]) remove(key K, hash uint32, r *overlay.Record) {
	l := e.leaf(hash)
	*l = slices.DeleteFunc(slices.Clone(*l), func(o entry[K]) bool {
		return o.key == key && o.record.Endpoint == r.Endpoint && o.record.Owner == r.Owner
	})
}

// hashOf is FNV-1a.
func hashOf[K string | []byte](key K) uint32 {
	h := uint32(2166136261)
	for i := range len(key) {
		h = (h ^ uint32(key[i])) * 16777619
	}
	return h ^ h>>15 // its low bits depend little on the first bytes
}
