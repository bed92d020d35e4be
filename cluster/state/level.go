package state

import (
	"fmt"

	"github.com/heddle-net/heddle/overlay"
)

// Level is the highest feature level that this build applies. The cluster has a level of its
// own, at most that of each manager's build, and commands and snapshots are written for it:
// managers of two versions read the same log, and do the same by it.
const Level = overlay.Level

// TooNew is a command that a cluster's managers do not all read.
type TooNew struct {
	Level int    // with which it came in
	Doing string // what it does, for people
}

func (e *TooNew) Error() string {
	return fmt.Sprintf("%s needs feature level %d", e.Doing, e.Level)
}

// written is a command as it is written at a feature level: without what came in later. What
// makes a level is written at that level, so that a build that does not read it says so.
func written(c Command, level int) (Command, int, error) {
	switch c := c.(type) {
	case Init:
		if c.Level <= 1 {
			c.Level = 0
		}
		return c, max(1, c.Level), nil
	case SetLevel:
		return c, c.Level, nil
	}
	if early := tooNew(c, level); early != nil {
		return nil, level, early
	}
	if level < 2 {
		c, err := first(c)
		return c, level, err
	}
	return c, level, nil
}

// tooNew refuses what came in with the levels above the second.
func tooNew(c Command, level int) error {
	switch c := c.(type) {
	case CreateNetwork:
		if level < 3 && c.Spec.Encrypted {
			return &TooNew{3, "making an encrypted network"}
		}
	case Grant:
		if level < 4 && c.Bare {
			return &TooNew{4, "entering a network without an address"}
		}
	case CreateService, UpdateService, RemoveService:
		if level < 4 {
			return &TooNew{4, "making or changing a service"}
		}
	}
	return nil
}

// first is a command as the first level has it.
func first(c Command) (Command, error) {
	switch c := c.(type) {
	case Grant:
		c.Spare, c.Now = false, 0
		return c, nil
	case RemoveNode:
		c.Force, c.Now = false, 0
		return c, nil
	case Release:
		return nil, &TooNew{2, "giving addresses of a lease back"}
	case UpdateNetwork:
		return nil, &TooNew{2, "updating a network"}
	case UpdateParams:
		return nil, &TooNew{2, "adding an address pool"}
	case Unfence:
		return nil, &TooNew{2, "freeing the addresses of a removed node"}
	}
	return c, nil
}

func (c SetLevel) apply(t *tables, _ uint64) (ref, error) {
	if c.Level < 1 || c.Level > Level {
		return ref{}, overlay.Errorf(overlay.Invalid, "feature level %d is unknown", c.Level)
	}
	if c.Level > t.level {
		t.level = c.Level
		t.changed(key{table: tLevel})
	}
	return ref{}, nil
}
