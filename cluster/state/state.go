package state

import (
	"io"
	"sync"

	"github.com/heddle-net/heddle/overlay"
)

// State is the replicated state of one manager. It is safe for concurrent use; Apply and
// Restore have one caller at a time, the log. The zero value is not ready; use New.
type State struct {
	mu sync.Mutex
}

// New is the state before the first command.
func New() *State { return &State{} }

// Apply does what an entry of the log says, at its index, which grows from call to call. The
// result has the type that the command names. An error for which [Fatal] is true says that
// this build can't follow the log: the node must stop, since to skip the entry would be to
// disagree with the other managers. Every other error is the command's answer, an
// overlay.Error, and the state is as it was. A repeated request is answered as the first
// time, and changes nothing.
func (s *State) Apply(index uint64, entry []byte) (any, error) { panic("not yet") }

// View is the state for readers, at one revision. It is cheap, and never changes.
func (s *State) View() *View { panic("not yet") }

// Changed returns a channel that is closed once the revision is higher than rev.
func (s *State) Changed(rev uint64) <-chan struct{} { panic("not yet") }

// FactsFor is what a node may see. A manager sees everything.
func (s *State) FactsFor(node overlay.NodeID) *overlay.Facts { panic("not yet") }

// Since is the difference between what the node could see at a revision and what it may see
// at this one. False means that the state can't tell any more: send Facts in Delta.Full.
func (s *State) Since(rev uint64, node overlay.NodeID) (overlay.Delta, bool) { panic("not yet") }

// Snapshot captures the state. Its Write may run while commands are applied.
func (s *State) Snapshot() *Snapshot { panic("not yet") }

// Restore replaces the state by what Write wrote, all of it or nothing. Fatal errors are
// those of Apply.
func (s *State) Restore(r io.Reader) error { panic("not yet") }
