package state

import (
	"sync"

	"github.com/heddle-net/heddle/overlay"
)

// State is the replicated state of one manager. It is safe for concurrent use; Apply and
// Restore have one caller at a time, the log. Use New.
type State struct {
	mu      sync.Mutex
	t       *tables
	journal journal
	waiting map[uint64]chan struct{} // by the revision to leave behind
	view    *View                    // nil after a change
}

// New is the state before the first command.
func New() *State {
	return &State{t: newTables(), waiting: map[uint64]chan struct{}{}}
}

// Apply does what an entry of the log says, at its index, which grows from call to call. The
// result has the type that the command names. An error for which [Fatal] is true says that
// this build can't follow the log: the node must stop, since to skip the entry would be to
// disagree with the other managers. Every other error is the command's answer, an
// overlay.Error, and the rows are as they were. A repeated request is answered as the first
// time, from the rows as they are, and changes nothing.
func (s *State) Apply(index uint64, entry []byte) (any, error) {
	e, c, err := decode(entry)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.t
	if index <= t.applied {
		return nil, fatalf("entry %d of the log comes after entry %d", index, t.applied)
	}
	t.applied = index
	if o, ok := t.done.find(e.Req); ok {
		if o.Kind != e.Kind {
			return nil, overlay.Errorf(overlay.Invalid, "request %s was a %s before, and is a %s; draw another ID", e.Req, o.Kind, e.Kind)
		}
		return t.answer(o)
	}
	o := outcome{Req: e.Req, Kind: e.Kind}
	if o.ref, err = t.apply(c, index); err != nil {
		o.Error = &overlay.Error{Kind: overlay.KindOf(err), Msg: err.Error()}
	}
	t.done.add(o)
	if len(t.changes) > 0 {
		s.publish()
	}
	return t.answer(o)
}

// Answered says whether a request was executed, and the error that it was answered with.
func (s *State) Answered(req string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.t.done.find(req)
	if o.Error != nil {
		return ok, o.Error
	}
	return ok, nil
}

// publish makes what Apply has changed the newest revision.
func (s *State) publish() {
	s.t.revision = s.t.applied
	s.journal.add(s.t.revision, s.t.changes)
	s.t.changes = nil
	s.announce()
}

func (s *State) announce() {
	s.view = nil
	for rev, ch := range s.waiting {
		if rev < s.t.revision {
			close(ch)
			delete(s.waiting, rev)
		}
	}
}

// Changed returns a channel that is closed once the revision is higher than rev.
func (s *State) Changed(rev uint64) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rev < s.t.revision {
		return closed
	}
	if s.waiting[rev] == nil {
		s.waiting[rev] = make(chan struct{})
	}
	return s.waiting[rev]
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Level is the cluster's feature level.
func (s *State) Level() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.t.level
}

// View is the state for readers, at one revision. It is cheap, and never changes.
func (s *State) View() *View {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.view == nil {
		t := s.t
		s.view = &View{
			Revision: t.revision, Place: t.Place, Level: t.level, Params: t.Params, CA: t.CA, CAKey: t.CAKey, Ring: t.Ring, GossipKeys: t.GossipKeys,
			Nodes: t.nodes.share(), Removals: t.removals.share(), Tokens: t.tokens.share(), networks: t.networks.share(), services: t.services.share(), members: t.members.share(),
		}
	}
	return s.view
}
