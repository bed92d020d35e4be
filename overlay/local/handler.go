package local

import (
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/wire"
)

// Node is what the daemon does for its own node. All methods may be called concurrently.
type Node interface {
	Init(context.Context, overlay.InitRequest) (overlay.MemberReply, error)
	Join(context.Context, overlay.JoinRequest) (overlay.MemberReply, error)
	Leave(ctx context.Context, force bool) error
	Status(context.Context) (overlay.Status, error)
	Attach(context.Context, overlay.AttachRequest) (overlay.AttachReply, error)
	Detach(ctx context.Context, name, network string) error
	Endpoints(context.Context) ([]overlay.Endpoint, error)
	// Copy is what the node itself holds of the cluster. It asks nobody.
	Copy(context.Context) (overlay.Copy, error)
	// Here completes a network row with what this node has of it.
	Here(*overlay.NetworkRow)
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
	stream(m, "POST /v1/detach", func(ctx context.Context, r DetachRequest) (struct{}, error) {
		return struct{}{}, n.Detach(ctx, r.Name, r.Network)
	})
	m.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		s, err := n.Status(r.Context())
		wire.Write(w, s, err)
	})
	m.HandleFunc("GET /v1/copy", func(w http.ResponseWriter, r *http.Request) {
		c, err := n.Copy(r.Context())
		wire.Write(w, c, err)
	})
	m.HandleFunc("GET /v1/endpoints", h.endpoints)
	m.HandleFunc("GET /v1/networks", func(w http.ResponseWriter, r *http.Request) { networks[[]overlay.NetworkRow](h, w, r) })
	m.HandleFunc("GET /v1/networks/{ref}", func(w http.ResponseWriter, r *http.Request) { networks[overlay.NetworkRow](h, w, r) })
	for _, what := range []string{"networks", "nodes", "tokens", "cluster"} {
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

// networks passes a read of networks on, and completes the rows with what is on this node.
func networks[T overlay.NetworkRow | []overlay.NetworkRow](h handler, w http.ResponseWriter, r *http.Request) {
	status, answer, err := h.pass(w, r)
	if err != nil {
		wire.Write(w, nil, err)
		return
	}
	var rows T
	resp := &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(string(answer)))}
	if err := wire.Decode(resp, &rows); err != nil {
		wire.Write(w, nil, err)
		return
	}
	switch v := any(&rows).(type) {
	case *overlay.NetworkRow:
		h.Here(v)
	case *[]overlay.NetworkRow:
		for i := range *v {
			h.Here(&(*v)[i])
		}
	}
	wire.Write(w, rows, nil)
}
