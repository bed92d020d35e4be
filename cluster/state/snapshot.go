package state

import "io"

// Snapshot is a captured state. It is immutable.
type Snapshot struct{}

// Write writes the snapshot: format "snapshot". The same state gives the same bytes.
func (s *Snapshot) Write(w io.Writer) error { panic("not yet") }
