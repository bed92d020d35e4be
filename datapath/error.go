package datapath

import (
	"errors"
	"fmt"
)

// Fault sorts errors by what stands in the way, for those who turn them into answers.
type Fault string

const (
	Foreign     Fault = "foreign"      // something that is not heddle's has a name that is wanted
	NoNamespace Fault = "no-namespace" // the namespace does not exist
	Replaced    Fault = "replaced"     // another namespace stands at the path
	Taken       Fault = "taken"        // another device has the VNI, or another process the UDP port
	Unsupported Fault = "unsupported"  // this kernel can't do it
	Denied      Fault = "denied"       // not enough privilege
)

// Error is a refusal whose cause is known: one line that says what stands in the way and
// what to do. Trying again changes nothing until somebody has done that.
type Error struct {
	Fault Fault
	Msg   string
	Err   error // the kernel's word, for errors.Is; may be nil
}

func (e *Error) Error() string { return e.Msg }
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error. A %w in the format keeps the cause.
func Errorf(f Fault, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Fault: f, Msg: err.Error(), Err: errors.Unwrap(err)}
}

// FaultOf is the fault of the first Error in err's chain, or "".
func FaultOf(err error) Fault {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Fault
	}
	return ""
}
