package state

import (
	"time"

	"github.com/heddle-net/heddle/overlay"
)

type ref struct{}

type network struct {
	def    overlay.Network
	leases map[overlay.NodeID]overlay.Signed
}

func (Init) apply(*State, uint64) (ref, error)            { panic("not yet") }
func (Join) apply(*State, uint64) (ref, error)            { panic("not yet") }
func (SetRole) apply(*State, uint64) (ref, error)         { panic("not yet") }
func (SetAvailability) apply(*State, uint64) (ref, error) { panic("not yet") }
func (UpdateNode) apply(*State, uint64) (ref, error)      { panic("not yet") }
func (RemoveNode) apply(*State, uint64) (ref, error)      { panic("not yet") }
func (CreateToken) apply(*State, uint64) (ref, error)     { panic("not yet") }
func (RevokeToken) apply(*State, uint64) (ref, error)     { panic("not yet") }
func (RotateTokens) apply(*State, uint64) (ref, error)    { panic("not yet") }
func (CreateNetwork) apply(*State, uint64) (ref, error)   { panic("not yet") }
func (RemoveNetwork) apply(*State, uint64) (ref, error)   { panic("not yet") }
func (Grant) apply(*State, uint64) (ref, error)           { panic("not yet") }

func unix(s int64) time.Time { return time.Unix(s, 0).UTC() }

func (t Token) check(now int64) error { panic("not yet") }
