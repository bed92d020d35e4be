package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/heddle-net/heddle/overlay"
)

// envelope is an entry of the log: format "command".
type envelope struct {
	V     int             `json:"v"`
	Level int             `json:"level"`
	Req   string          `json:"req,omitempty"`
	Kind  Kind            `json:"kind"`
	Body  json.RawMessage `json:"body"`
}

// maxReq bounds a request ID in bytes.
const maxReq = 64

// Encode makes an entry of the log that every build of the cluster's feature level reads, or
// returns a [*TooNew]. req is the ID of the writer's request, at most 64 bytes; a retry with
// the same ID is answered as the first try. An empty one is never recognised.
func Encode(level int, req string, c Command) ([]byte, error) {
	if len(req) > maxReq {
		return nil, overlay.Errorf(overlay.Invalid, "request ID of %d bytes is too long; use at most %d", len(req), maxReq)
	}
	c, level, err := written(c, level)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(c)
	if err == nil {
		body, err = json.Marshal(envelope{V: 1, Level: level, Req: req, Kind: c.kind(), Body: body})
	}
	if err != nil {
		return nil, overlay.Errorf(overlay.Internal, "encode command %s: %w", c.kind(), err)
	}
	return body, nil
}

// fatal is an error after which a manager can't follow the log.
type fatal struct{ err error }

func (f *fatal) Error() string { return "this manager can't follow the log: " + f.err.Error() }
func (f *fatal) Unwrap() error { return f.err }

// Fatal says whether an error of Apply or Restore means that this build can't follow the
// log, so that the manager must stop.
func Fatal(err error) bool {
	_, ok := errors.AsType[*fatal](err)
	return ok
}

func fatalf(format string, args ...any) error {
	return &fatal{overlay.Errorf(overlay.Unread, format, args...)}
}

// decode reads an entry of the log. Whatever it does not know all of is fatal.
func decode(entry []byte) (envelope, Command, error) {
	var e envelope
	bad := strict(entry, &e)
	if bad != nil { // of a version with other fields, perhaps
		e = envelope{}
		if err := json.Unmarshal(entry, &e); err != nil {
			return e, nil, fatalf("an entry of the log is no command: %w", err)
		}
	}
	if err := readable("command", e.V, e.Level); err != nil {
		return e, nil, err
	}
	if bad != nil || len(e.Req) > maxReq {
		return e, nil, fatalf("a command %.32q can't be read: %v", string(e.Kind), bad)
	}
	c := blank(e.Kind)
	if c == nil {
		return e, nil, fatalf("command %.32q is unknown here; upgrade heddle on this node", e.Kind)
	}
	if err := strict(e.Body, c); err != nil {
		return e, nil, fatalf("command %s can't be read: %w", e.Kind, err)
	}
	return e, c, nil
}

// readable refuses a version or a feature level that this build does not know.
func readable(format string, v, level int) error {
	if err := overlay.CheckVersion(format, v); err != nil {
		return &fatal{err}
	}
	if level < 1 || level > Level {
		return fatalf("a %s has feature level %d, and this build knows 1 to %d; upgrade heddle on this node", format, level, Level)
	}
	return nil
}

// strict decodes one JSON value that has no unknown field and nothing after it.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("data after the end at byte %d", d.InputOffset())
	}
	return nil
}

// blank is an empty command of the kind, or nil.
func blank(k Kind) Command {
	switch k {
	case KindInit:
		return new(Init)
	case KindJoin:
		return new(Join)
	case KindSetRole:
		return new(SetRole)
	case KindSetAvailability:
		return new(SetAvailability)
	case KindUpdateNode:
		return new(UpdateNode)
	case KindRemoveNode:
		return new(RemoveNode)
	case KindCreateToken:
		return new(CreateToken)
	case KindRevokeToken:
		return new(RevokeToken)
	case KindRotateTokens:
		return new(RotateTokens)
	case KindCreateNetwork:
		return new(CreateNetwork)
	case KindRemoveNetwork:
		return new(RemoveNetwork)
	case KindGrant:
		return new(Grant)
	case KindUpdateNetwork:
		return new(UpdateNetwork)
	case KindUpdateParams:
		return new(UpdateParams)
	case KindRelease:
		return new(Release)
	case KindUnfence:
		return new(Unfence)
	case KindSetLevel:
		return new(SetLevel)
	case KindCreateService:
		return new(CreateService)
	case KindUpdateService:
		return new(UpdateService)
	case KindRemoveService:
		return new(RemoveService)
	}
	return nil
}

func (Init) kind() Kind            { return KindInit }
func (Join) kind() Kind            { return KindJoin }
func (SetRole) kind() Kind         { return KindSetRole }
func (SetAvailability) kind() Kind { return KindSetAvailability }
func (UpdateNode) kind() Kind      { return KindUpdateNode }
func (RemoveNode) kind() Kind      { return KindRemoveNode }
func (CreateToken) kind() Kind     { return KindCreateToken }
func (RevokeToken) kind() Kind     { return KindRevokeToken }
func (RotateTokens) kind() Kind    { return KindRotateTokens }
func (CreateNetwork) kind() Kind   { return KindCreateNetwork }
func (RemoveNetwork) kind() Kind   { return KindRemoveNetwork }
func (Grant) kind() Kind           { return KindGrant }
func (UpdateNetwork) kind() Kind   { return KindUpdateNetwork }
func (UpdateParams) kind() Kind    { return KindUpdateParams }
func (Release) kind() Kind         { return KindRelease }
func (Unfence) kind() Kind         { return KindUnfence }
func (SetLevel) kind() Kind        { return KindSetLevel }
func (CreateService) kind() Kind   { return KindCreateService }
func (UpdateService) kind() Kind   { return KindUpdateService }
func (RemoveService) kind() Kind   { return KindRemoveService }
