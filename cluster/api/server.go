package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/heddle-net/heddle/cluster/pki"
)

// Serve answers the connections of a listener until ctx ends, then lets requests finish for a
// moment. The listener is one protocol's share of the control port: its connections are checked.
func Serve(ctx context.Context, l net.Listener, h *Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext:       withPeer,
	}
	return serve(ctx, l, srv, h)
}

// ServeJoin answers the connections of nodes that are no members yet, with one request each.
func ServeJoin(ctx context.Context, l net.Listener, h *Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:        h,
		ReadTimeout:    10 * time.Second,
		WriteTimeout:   20 * time.Second,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, peer{})
		},
	}
	srv.SetKeepAlivesEnabled(false)
	return serve(ctx, l, srv, h)
}

func serve(ctx context.Context, l net.Listener, srv *http.Server, h *Handler) error {
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		srv.Close()
		if errors.Is(err, net.ErrClosed) { // the port was closed, or another handler took over
			return nil
		}
		return fmt.Errorf("serve the managers' API: %w", err)
	case <-ctx.Done():
	}
	h.endStreams()
	stop, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if srv.Shutdown(stop) != nil {
		srv.Close()
	}
	<-done
	return nil
}

// endStreams ends watch streams, so that their readers go to another manager.
func (h *Handler) endStreams() { h.once.Do(func() { close(h.done) }) }

// withPeer keeps who is at the other end of a connection, for its requests.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	p := peer{}
	if state, ok := c.(interface{ ConnectionState() tls.ConnectionState }); ok {
		if s, err := pki.PeerSubject(state.ConnectionState()); err == nil {
			p = peer{s, true}
		}
	}
	return context.WithValue(ctx, peerKey{}, p)
}
