package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/wire"
)

// leaderWait is how long a manager looks for a leader, and tries again, before it says that
// there is none: less than a client's patience, so that the client can ask another one.
const leaderWait = 2500 * time.Millisecond

const bodyLimit = 10 * time.Second // for a request's body to arrive

// who is the least that a route asks of its caller.
type who string

const (
	member   who = "member"   // any node of the cluster
	operator who = "operator" // a manager: who works on its host, through the daemon there
	leaver   who = "leaver"   // a member, or a node that was one: the answer to its first leave may be lost
	joiner   who = "joiner"   // nobody yet; on heddle-join/1, or passed on by a manager
)

// how says where a route is answered.
type how string

const (
	here  how = "here"  // by any manager
	read  how = "read"  // by the leader, from a state that is current; ?stale=1 by any manager
	write how = "write" // by the leader
)

// call is a request on its way to the backend.
type call struct {
	*http.Request
	body []byte
	by   Caller
}

func (c call) decode(v any) error {
	d := json.NewDecoder(bytes.NewReader(c.body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return overlay.Errorf(overlay.Invalid, "the request can't be read: %v", err)
	}
	return nil
}

func (c call) flag(name string) bool {
	on, _ := strconv.ParseBool(c.URL.Query().Get(name))
	return on
}

// with decodes the body for a method of the backend.
func with[In, Out any](f func(context.Context, In) (Out, error)) func(context.Context, call) (any, error) {
	return func(ctx context.Context, c call) (any, error) {
		var in In
		if err := c.decode(&in); err != nil {
			return nil, err
		}
		return f(ctx, in)
	}
}

// of is with, for methods that act for the calling node.
func of[In, Out any](f func(context.Context, overlay.NodeID, In) (Out, error)) func(context.Context, call) (any, error) {
	return func(ctx context.Context, c call) (any, error) {
		var in In
		if err := c.decode(&in); err != nil {
			return nil, err
		}
		return f(ctx, c.by.Node, in)
	}
}

// change is with, for methods that change what the path names.
func change[In, Out any](f func(ctx context.Context, ref string, in In) (Out, error)) func(context.Context, call) (any, error) {
	return func(ctx context.Context, c call) (any, error) {
		var in In
		if err := c.decode(&in); err != nil {
			return nil, err
		}
		return f(ctx, c.PathValue("ref"), in)
	}
}

func list[Out any](f func(context.Context) (Out, error)) func(context.Context, call) (any, error) {
	return func(ctx context.Context, _ call) (any, error) { return f(ctx) }
}

type route struct {
	method, path string
	who          who
	how          how
	run          func(context.Context, call) (any, error)
}

// routes is all that managers answer. What is not here is refused.
func routes(b Backend) []route {
	return []route{
		{"GET", "/v1/networks", member, read, list(b.Networks)},
		{"GET", "/v1/networks/{ref}", member, read, func(ctx context.Context, c call) (any, error) { return b.Network(ctx, c.PathValue("ref")) }},
		{"POST", "/v1/networks", member, write, with(b.CreateNetwork)},
		{"PATCH", "/v1/networks/{ref}", member, write, change(b.UpdateNetwork)},
		{"PATCH", "/v1/cluster", operator, write, with(b.UpdateCluster)},
		{"DELETE", "/v1/networks/{ref}", member, write, func(ctx context.Context, c call) (any, error) { return nil, b.RemoveNetwork(ctx, c.PathValue("ref")) }},
		{"GET", "/v1/endpoints", member, read, list(b.Endpoints)},
		{"GET", "/v1/services", member, read, list(b.Services)},
		{"GET", "/v1/services/{ref}", member, read, func(ctx context.Context, c call) (any, error) { return b.Service(ctx, c.PathValue("ref")) }},
		{"POST", "/v1/services", member, write, with(b.CreateService)},
		{"PATCH", "/v1/services/{ref}", member, write, change(b.UpdateService)},
		{"DELETE", "/v1/services/{ref}", member, write, func(ctx context.Context, c call) (any, error) { return nil, b.RemoveService(ctx, c.PathValue("ref")) }},
		{"GET", "/v1/nodes", member, read, list(b.Nodes)},
		{"PATCH", "/v1/nodes/{ref}", operator, write, change(b.UpdateNode)},
		{"DELETE", "/v1/nodes/{ref}", operator, write, func(ctx context.Context, c call) (any, error) {
			return nil, b.RemoveNode(ctx, c.by, c.PathValue("ref"), c.flag("force"))
		}},
		{"GET", "/v1/tokens", operator, read, list(b.Tokens)},
		{"POST", "/v1/tokens", operator, write, with(b.CreateToken)},
		{"POST", "/v1/tokens/rotate", operator, write, with(b.RotateTokens)},
		{"DELETE", "/v1/tokens/{ref}", operator, write, func(ctx context.Context, c call) (any, error) { return nil, b.RevokeToken(ctx, c.PathValue("ref")) }},

		{"POST", pathJoin, joiner, write, with(b.Join)},
		{"POST", pathTerms, joiner, here, with(b.Terms)},
		{"POST", pathGrant, member, write, of(b.Grant)},
		{"POST", pathRenew, member, write, func(ctx context.Context, c call) (any, error) { return b.Renew(ctx, c.by.Node) }},
		{"POST", pathLeave, leaver, write, func(ctx context.Context, c call) (any, error) { return nil, b.Leave(ctx, c.by.Node) }},
		{"PATCH", pathSelf, member, write, of(b.UpdateSelf)},
		{"POST", pathRelease, member, write, of(b.Release)},
		{"POST", pathReady, operator, write, of(func(ctx context.Context, n overlay.NodeID, r Ready) (any, error) {
			return nil, b.ManagerReady(ctx, n, r)
		})},
	}
}

// HandlerConfig is what a handler works with.
type HandlerConfig struct {
	Credentials *pki.Credentials
	Hello       overlay.Hello
	Holder      Holder
	Backend     Backend // nil on a worker
	// Address is where a manager answers, for forwarding. Not used without Backend.
	Address func(overlay.NodeID) (netip.AddrPort, bool)
}

// Handler answers members, and joiners where it is served for heddle-join/1.
type Handler struct {
	HandlerConfig
	mux    http.ServeMux
	leader *http.Transport
	once   sync.Once
	done   chan struct{} // closed to end streams
}

// NewHandler makes the handler of a manager, or of a worker. Close it after its server.
func NewHandler(c HandlerConfig) *Handler {
	h := &Handler{HandlerConfig: c, done: make(chan struct{})}
	h.mux.HandleFunc("GET "+pathHello, h.guard(member, func(w http.ResponseWriter, _ *http.Request, _ Caller) { wire.Write(w, c.Hello, nil) }))
	for _, r := range holderRoutes(c.Holder) {
		h.mux.HandleFunc(r.method+" "+r.path, h.guard(r.who, func(w http.ResponseWriter, req *http.Request, by Caller) {
			body, err := h.read(w, req)
			var v any
			if err == nil {
				v, err = r.run(req.Context(), call{req, body, by})
			}
			wire.Write(w, v, err)
		}))
	}
	if c.Backend == nil {
		h.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
			wire.Write(w, nil, overlay.Errorf(overlay.Unavailable, "this node is no manager"))
		})
		return h
	}
	h.leader = newTransport(c.Credentials.ForManager, c.Address)
	h.mux.HandleFunc("GET "+pathWatch, h.watch)
	for _, r := range routes(c.Backend) {
		h.mux.HandleFunc(r.method+" "+r.path, h.guard(r.who, func(w http.ResponseWriter, req *http.Request, by Caller) { h.answer(w, req, r, by) }))
	}
	h.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		wire.Write(w, nil, overlay.Errorf(overlay.NotFound, "the managers have no %s %s", r.Method, r.URL.Path))
	})
	return h
}

// Close ends the connections to other managers.
func (h *Handler) Close() {
	if h.leader != nil {
		h.leader.CloseIdleConnections()
	}
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

type peerKey struct{}

// peer is who is at the other end of a request's connection.
type peer struct {
	pki.Subject
	known bool // false on heddle-join/1
}

// guard lets callers through that may use a route.
func (h *Handler) guard(need who, f func(http.ResponseWriter, *http.Request, Caller)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		by, err := h.caller(r, need)
		if err != nil {
			wire.Write(w, nil, err)
			return
		}
		f(w, r, by)
	}
}

// passedOn says whether a manager asks in another's name. That of a joiner was empty once.
func passedOn(r *http.Request) bool { return len(r.Header.Values(headerFor)) > 0 }

func (h *Handler) caller(r *http.Request, need who) (Caller, error) {
	p, _ := r.Context().Value(peerKey{}).(peer)
	if !p.known {
		if need == joiner {
			return Caller{}, nil
		}
		return Caller{}, overlay.Errorf(overlay.Denied, "only members of the cluster may ask for %s", r.URL.Path)
	}
	if need != leaver && h.Credentials.Removed(p.Subject) {
		return Caller{}, overlay.Errorf(overlay.Denied, "node %s was removed from the cluster; run `heddle leave --force` on it, then join again", p.Node.Short())
	}
	by := Caller{p.Node, overlay.Worker}
	if h.Credentials.Manager(p.Subject) {
		by.Role = overlay.Manager
	}
	if passedOn(r) {
		switch {
		case by.Role == overlay.Manager:
		case p.Role == overlay.Manager: // demoted a moment ago: its clients go to another
			return Caller{}, overlay.Errorf(overlay.Unavailable, "node %s is no manager any more", p.Node.Short())
		default:
			return Caller{}, overlay.Errorf(overlay.Denied, "only managers speak for others")
		}
		node, role, _ := strings.Cut(r.Header.Get(headerFor), " ")
		by = Caller{overlay.NodeID(node), overlay.Role(role)}
	} else if need == joiner {
		return Caller{}, overlay.Errorf(overlay.Denied, "this node is a member already")
	}
	if need == operator && by.Role != overlay.Manager {
		return Caller{}, overlay.Errorf(overlay.Denied, "a worker may not do this; run the command on a manager")
	}
	return by, nil
}

func (h *Handler) watch(w http.ResponseWriter, r *http.Request) {
	p, _ := r.Context().Value(peerKey{}).(peer)
	if p.known && h.Credentials.Removed(p.Subject) { // the one thing that a removed node is told
		if f := h.Backend.FactsFor(p.Node); f != nil {
			w.Header().Set("Content-Type", "application/x-ndjson")
			d := overlay.Delta{V: 1, Revision: f.Revision, Removals: map[overlay.NodeID]overlay.Signed{p.Node: f.Removals[p.Node]}}
			_ = json.NewEncoder(w).Encode(event{Delta: &d})
			return
		}
	}
	h.guard(member, func(w http.ResponseWriter, r *http.Request, by Caller) {
		watch(w, r, h.Backend, by.Node, h.Hello, h.done)
	})(w, r)
}

// answer runs a route here or on the leader, for as long as another try may succeed. All tries
// have one request ID.
func (h *Handler) answer(w http.ResponseWriter, r *http.Request, rt route, by Caller) {
	body, err := h.read(w, r)
	if err != nil {
		wire.Write(w, nil, err)
		return
	}
	if rt.path == pathJoin && !passedOn(r) {
		if body = h.refuseUnreachable(w, r, body); body == nil {
			return
		}
	}
	ctx, cancel := context.WithTimeout(WithRequest(r.Context(), requestID(by, r)), leaderWait)
	defer cancel()
	c := call{r, body, by}
	forwarded := passedOn(r)
	var last error
	for {
		changed := h.Backend.LeaderChanged()
		leader, self := h.Backend.Leader()
		switch {
		case self || rt.how == here || (rt.how == read && c.flag("stale")):
			var v any
			if v, last = h.run(ctx, rt, c); overlay.KindOf(last) != overlay.Unavailable || last == nil {
				wire.Write(w, v, last)
				return
			}
		case leader != "" && !forwarded && leader != h.Credentials.Identity().Node:
			var resp *http.Response
			if resp, last = h.forward(ctx, leader, c); last == nil {
				relay(w, resp)
				return
			}
		}
		if forwarded && leader != "" && !self { // whoever sent it here finds the leader
			wire.Write(w, nil, overlay.Errorf(overlay.Unavailable, "this manager does not lead"))
			return
		}
		select {
		case <-changed:
		case <-time.After(pauseMin):
		case <-ctx.Done():
			wire.Write(w, nil, noLeader(rt, last))
			return
		}
	}
}

// refuseUnreachable dials a joining node back. It returns the rest of the request, which
// leaders of all versions read, or nil when it has answered.
func (h *Handler) refuseUnreachable(w http.ResponseWriter, r *http.Request, body []byte) (rest []byte) {
	var in JoinRequest
	if err := (call{r, body, Caller{}}).decode(&in); err != nil {
		wire.Write(w, nil, err)
		return nil
	}
	source, _ := netip.ParseAddrPort(r.RemoteAddr)
	reply, err := h.Backend.DialBack(r.Context(), in, source.Addr().Unmap())
	if err == nil && len(reply.Blocked) == 0 {
		in.Probe, in.DataPath = nil, netip.AddrPort{}
		if rest, err = json.Marshal(in); err == nil {
			return rest
		}
	}
	wire.Write(w, reply, err)
	return nil
}

// read is a request's whole body.
func (h *Handler) read(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	limit := http.NewResponseController(w)
	_ = limit.SetReadDeadline(time.Now().Add(bodyLimit))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, wire.MaxBody))
	_ = limit.SetReadDeadline(time.Time{})
	if _, long := errors.AsType[*http.MaxBytesError](err); long {
		err = overlay.Errorf(overlay.Invalid, "the request is longer than %d bytes", wire.MaxBody)
	}
	return body, err
}

func requestID(by Caller, r *http.Request) string {
	id := r.Header.Get(headerRequest)
	if id == "" || len(id) > 40 {
		return ""
	}
	return by.Node.Short() + " " + id // nobody meets another's
}

// noLeader says that no answer came from a leader in time.
func noLeader(rt route, last error) error {
	hint := "try again"
	if rt.how == read {
		hint = "--stale shows this node's copy"
	}
	if last == nil {
		last = errors.New("no leader is known")
	}
	return overlay.Errorf(overlay.Unavailable, "the managers have no quorum, or are electing a leader (%w); %s", last, hint)
}

func (h *Handler) run(ctx context.Context, rt route, c call) (any, error) {
	if rt.how == read && !c.flag("stale") {
		if err := h.Backend.Verify(ctx); err != nil {
			return nil, err
		}
	}
	return rt.run(ctx, c)
}

// forward asks the leader in the caller's name. An answer of kind Unavailable is an error.
func (h *Handler) forward(ctx context.Context, leader overlay.NodeID, c call) (*http.Response, error) {
	req, err := newRequest(ctx, leader, c.Method, c.URL.RequestURI(), c.body)
	if err != nil {
		return nil, err
	}
	req.Header.Set(headerFor, fmt.Sprintf("%s %s", cmp.Or(c.by.Node, nobody), c.by.Role))
	if id := c.Header.Get(headerRequest); id != "" {
		req.Header.Set(headerRequest, id)
	}
	resp, err := h.leader.RoundTrip(req)
	if err != nil {
		return nil, overlay.Errorf(overlay.Unavailable, "ask the leader: %w", err)
	}
	if resp.StatusCode == http.StatusServiceUnavailable {
		defer resp.Body.Close()
		return nil, wire.Decode(resp, nil)
	}
	return resp, nil
}

func relay(w http.ResponseWriter, resp *http.Response) {
	defer resp.Body.Close()
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}
