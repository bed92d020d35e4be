package state

import "github.com/heddle-net/heddle/overlay"

// maxJournal bounds the number of changed rows that the journal remembers.
const maxJournal = 16384

// table names a kind of row.
type table uint8

const (
	tNode    table = iota + 1
	tRole          // of a node; what it may see changes
	tRemoval       // of a node
	tNetwork
	tLease
	tEntered // a lease whose node was no participant before
	tKeys    // ring and gossip keys
	tToken   // no node sees it
	tParams
	tLevel
	tService
	tUnpublished // a service that was on every node; it is gone, or is only where its network is
	tIngress     // a network that gets its first service on every node, or loses its last
)

// key names a row that changed.
type key struct {
	table   table
	node    overlay.NodeID
	network overlay.NetworkID
	service overlay.ServiceID
}

// journal is the newest changes, oldest first.
type journal struct {
	list  []entry
	floor uint64 // changes up to this revision may be missing
}

type entry struct {
	rev uint64
	key
}

func (j *journal) add(rev uint64, keys []key) {
	for _, k := range keys {
		j.list = append(j.list, entry{rev, k})
	}
	if drop := len(j.list) - maxJournal; drop > maxJournal/4 { // seldom, so that it costs little per change
		j.floor = j.list[drop-1].rev
		j.list = append([]entry(nil), j.list[drop:]...)
	}
}

// since is the changes after the revision, each row once, or false when some are forgotten.
func (j *journal) since(rev uint64) (map[key]bool, bool) {
	if rev < j.floor {
		return nil, false
	}
	out := map[key]bool{}
	for i := len(j.list) - 1; i >= 0 && j.list[i].rev > rev; i-- {
		out[j.list[i].key] = true
	}
	return out, true
}
