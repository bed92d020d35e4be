package overlay

import (
	"errors"
	"fmt"
)

// Kind sorts errors by what the caller can do about them. It travels in API answers, so
// the values are part of the wire format.
type Kind string

const (
	Invalid     Kind = "invalid"     // the request is malformed; the same request always fails
	NotFound    Kind = "not-found"   // the thing named does not exist
	Exists      Kind = "exists"      // the name or address is taken
	InUse       Kind = "in-use"      // the thing can't go while others hold it
	Denied      Kind = "denied"      // the caller may not do this, or a token, key or signature is wrong
	Exhausted   Kind = "exhausted"   // no address, VNI or lease is left
	Unavailable Kind = "unavailable" // nobody who could answer can be reached now; a retry may help
	NotMember   Kind = "not-member"  // this node is in no cluster
	Unsupported Kind = "unsupported" // this kernel or this version can't do it
	Unread      Kind = "unread"      // a format version that this build does not read
	Internal    Kind = "internal"    // a defect or a failing disk or kernel
)

// Error is an error that a user may see: one line that says what happened, to what, and
// what to do next.
type Error struct {
	Kind Kind   `json:"kind"`
	Msg  string `json:"error"`
	Err  error  `json:"-"` // the cause, for errors.Is; never sent to another node
}

func (e *Error) Error() string { return e.Msg }
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error of the kind. A %w in the format keeps the cause.
func Errorf(k Kind, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: k, Msg: err.Error(), Err: errors.Unwrap(err)}
}

// KindOf is the kind of the first Error in err's chain, or Internal.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}
