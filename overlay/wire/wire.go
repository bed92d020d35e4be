// Package wire reads and writes heddle's JSON messages over HTTP, with limits, and maps
// error kinds to status codes. The node's local API and the managers' API share it.
package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/heddle-net/heddle/overlay"
)

// MaxBody bounds a request's body in bytes.
const MaxBody = 1 << 20

var status = map[overlay.Kind]int{
	overlay.Invalid:     http.StatusBadRequest,
	overlay.NotFound:    http.StatusNotFound,
	overlay.Exists:      http.StatusConflict,
	overlay.InUse:       http.StatusConflict,
	overlay.Denied:      http.StatusForbidden,
	overlay.Exhausted:   http.StatusInsufficientStorage,
	overlay.Unavailable: http.StatusServiceUnavailable,
	overlay.NotMember:   http.StatusPreconditionFailed,
	overlay.Unsupported: http.StatusNotImplemented,
	overlay.Unread:      http.StatusHTTPVersionNotSupported,
	overlay.Internal:    http.StatusInternalServerError,
}

// Read decodes the body of a request, at most MaxBody bytes, into v. Unknown fields are an
// error, so that a misspelt one does not pass silently.
func Read(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, MaxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return overlay.Errorf(overlay.Invalid, "the request is longer than %d bytes", MaxBody)
		}
		return overlay.Errorf(overlay.Invalid, "the request can't be read: %v", err)
	}
	return nil
}

// Write answers with v as JSON, or with the error.
func Write(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		e := toError(err)
		w.WriteHeader(status[e.Kind])
		_ = json.NewEncoder(w).Encode(e)
		return
	}
	_ = json.NewEncoder(w).Encode(v)
}

// toError is err as it travels. An error without a kind is a defect, and says so.
func toError(err error) *overlay.Error {
	e := &overlay.Error{Kind: overlay.KindOf(err), Msg: err.Error()}
	if _, ok := status[e.Kind]; !ok {
		e.Kind = overlay.Internal
	}
	return e
}

// Decode reads an answer into v, which may be nil, or returns the error that it carries.
func Decode(resp *http.Response, v any) error {
	if resp.StatusCode >= 300 {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		e := &overlay.Error{}
		if json.Unmarshal(b, e) != nil || e.Msg == "" {
			return overlay.Errorf(overlay.Internal, "unexpected answer %s: %s", resp.Status, bytes.TrimSpace(b))
		}
		return e
	}
	if v == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return overlay.Errorf(overlay.Internal, "read the answer: %w", err)
	}
	return nil
}

// event is a line of a streamed answer: what the server waits for, then one result or error.
type event struct {
	Waiting string          `json:"waiting,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *overlay.Error  `json:"error,omitempty"`
}

type progressKey struct{}

// WithProgress gives operations below ctx a way to say what they wait for.
func WithProgress(ctx context.Context, p func(string)) context.Context {
	return context.WithValue(ctx, progressKey{}, p)
}

// Waiting tells the operation's caller what it waits for. Without a listener it does nothing.
func Waiting(ctx context.Context, what string) {
	if p, ok := ctx.Value(progressKey{}).(func(string)); ok {
		p(what)
	}
}

// Stream runs an operation that may take long and answers line by line: what it waits for,
// then its result or error. The status is always 200.
func Stream(w http.ResponseWriter, r *http.Request, op func(ctx context.Context) (any, error)) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	var mu sync.Mutex // serialises lines: op may report from its own goroutines
	enc := json.NewEncoder(w)
	send := func(e event) {
		mu.Lock()
		defer mu.Unlock()
		_ = enc.Encode(e)
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
	}
	v, err := op(WithProgress(r.Context(), func(s string) { send(event{Waiting: s}) }))
	if err != nil {
		send(event{Error: toError(err)})
		return
	}
	b, err := json.Marshal(v)
	if err != nil {
		send(event{Error: toError(err)})
		return
	}
	send(event{Result: b})
}

// ReadStream reads a streamed answer: waiting is called for each thing waited for, v gets
// the result.
func ReadStream(resp *http.Response, waiting func(string), v any) error {
	if resp.StatusCode >= 300 {
		return Decode(resp, nil)
	}
	d := json.NewDecoder(resp.Body)
	for {
		var e event
		switch err := d.Decode(&e); {
		case err != nil:
			return overlay.Errorf(overlay.Unavailable, "the daemon went away in the middle of the answer (%w); see its log", err)
		case e.Error != nil:
			return e.Error
		case e.Waiting != "":
			if waiting != nil {
				waiting(e.Waiting)
			}
		case v == nil || len(e.Result) == 0:
			return nil
		default:
			return json.Unmarshal(e.Result, v)
		}
	}
}
