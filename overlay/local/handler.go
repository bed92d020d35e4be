package local

import (
	"bytes"
	"context"
	"io"
	"net/http"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/wire"
)

// Node is what the daemon does for its own node. All methods may be called concurrently.
type Node interface {
	Init(context.Context, overlay.InitRequest) (overlay.MemberReply, error)
	Join(context.Context, overlay.JoinRequest) (overlay.MemberReply, error)
	Leave(ctx context.Context, force bool) error
	Status(context.Context) (overlay.Status, error)
	// Doctor looks for what is wrong on the node. It may take some seconds.
	Doctor(context.Context) (overlay.Diagnosis, error)
	Attach(context.Context, overlay.AttachRequest) (overlay.AttachReply, error)
	Detach(context.Context, overlay.DetachRequest) (overlay.DetachReply, error)
	Endpoints(context.Context) ([]overlay.Endpoint, error)
	// Resolve answers what workloads of a network would be told of a name. It asks nobody.
	Resolve(context.Context, overlay.ResolveRequest) (overlay.ResolveReply, error)
	RotateKeys(context.Context) error
	// Copy is what the node itself holds of the cluster. It asks nobody.
	Copy(context.Context) (overlay.Copy, error)
	// Here completes a network row with what this node has of it.
	Here(*overlay.NetworkRow)
	// Count completes service rows with what went to their backends from this node.
	Count([]overlay.ServiceRow)
	// Cluster passes a request on to a manager and returns its answer as it is.
	Cluster(ctx context.Context, method, path string, body []byte) (status int, answer []byte, err error)
}

// NewHandler serves a node's local API.
func NewHandler(n Node) http.Handler {
	h := handler{n}
	m := http.NewServeMux()
	stream(m, "POST /v1/init", n.Init)
	stream(m, "POST /v1/join", n.Join)
	stream(m, "POST /v1/attach", n.Attach)
	stream(m, "POST /v1/leave", func(ctx context.Context, r LeaveRequest) (struct{}, error) {
		return struct{}{}, n.Leave(ctx, r.Force)
	})
	stream(m, "POST /v1/detach", n.Detach)
	stream(m, "POST /v1/keys/rotate", func(ctx context.Context, _ struct{}) (struct{}, error) {
		return struct{}{}, n.RotateKeys(ctx)
	})
	m.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		s, err := n.Status(r.Context())
		wire.Write(w, s, err)
	})
	m.HandleFunc("GET /v1/resolve", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		a, err := n.Resolve(r.Context(), overlay.ResolveRequest{Name: q.Get("name"), Network: q.Get("network")})
		wire.Write(w, a, err)
	})
	m.HandleFunc("GET /v1/doctor", func(w http.ResponseWriter, r *http.Request) {
		d, err := n.Doctor(r.Context())
		wire.Write(w, d, err)
	})
	m.HandleFunc("GET /v1/copy", func(w http.ResponseWriter, r *http.Request) {
		c, err := n.Copy(r.Context())
		wire.Write(w, c, err)
	})
	m.HandleFunc("GET /v1/endpoints", h.endpoints)
	complete(m, "GET /v1/networks/{ref}", h, n.Here)
	complete(m, "GET /v1/networks", h, func(rows *[]overlay.NetworkRow) {
		for i := range *rows {
			n.Here(&(*rows)[i])
		}
	})
	complete(m, "GET /v1/services", h, func(rows *[]overlay.ServiceRow) { n.Count(*rows) })
	complete(m, "GET /v1/services/{ref}", h, func(row *overlay.ServiceRow) { n.Count([]overlay.ServiceRow{*row}) })
	for _, what := range []string{"networks", "services", "nodes", "tokens", "cluster"} {
		m.HandleFunc("/v1/"+what, h.cluster)
		m.HandleFunc("/v1/"+what+"/", h.cluster)
	}
	m.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		wire.Write(w, nil, overlay.Errorf(overlay.NotFound, "%s %s is not part of this daemon's API; are heddle and its daemon of one version?", r.Method, r.URL.Path))
	})
	return m
}

// stream serves an operation that may take long: its answer says what it waits for.
func stream[Q, A any](m *http.ServeMux, pattern string, op func(context.Context, Q) (A, error)) {
	m.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var q Q
		if err := wire.Read(w, r, &q); err != nil {
			wire.Write(w, nil, err)
			return
		}
		wire.Stream(w, r, func(ctx context.Context) (any, error) { return op(ctx, q) })
	})
}

type handler struct{ Node }

// endpoints lists this node's own endpoints, or all that the managers see.
func (h handler) endpoints(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("local") == "" {
		h.cluster(w, r)
		return
	}
	rows, err := h.Endpoints(r.Context())
	wire.Write(w, rows, err)
}

// cluster passes a request on to a manager.
func (h handler) cluster(w http.ResponseWriter, r *http.Request) {
	status, answer, err := h.pass(w, r)
	if err != nil {
		wire.Write(w, nil, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(answer)
}

func (h handler) pass(w http.ResponseWriter, r *http.Request) (int, []byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, wire.MaxBody))
	if err != nil {
		return 0, nil, overlay.Errorf(overlay.Invalid, "the request is longer than %d bytes", wire.MaxBody)
	}
	return h.Cluster(r.Context(), r.Method, r.URL.RequestURI(), body)
}

// complete serves a read that is passed on, and whose answer is completed with what is on this node.
func complete[T any](m *http.ServeMux, pattern string, h handler, with func(*T)) {
	m.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		status, answer, err := h.pass(w, r)
		if err != nil {
			wire.Write(w, nil, err)
			return
		}
		var v T
		resp := &http.Response{StatusCode: status, Body: io.NopCloser(bytes.NewReader(answer))}
		if err := wire.Decode(resp, &v); err != nil {
			wire.Write(w, nil, err)
			return
		}
		with(&v)
		wire.Write(w, v, nil)
	})
}
