//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

// api speaks to a host's daemon on its unix socket, so that the command line's own cost is
// not measured.
type api struct{ http *http.Client }

// client opens a connection for each call, as the command line does.
func client(h *lab.Host) *api { return clientAt(h.Path("/run/heddle/heddle.sock")) }

func clientAt(sock string) *api {
	return &api{&http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", sock)
	}}}}
}

// programs are n clients that keep their connections, as programs do. The function that it
// returns closes these.
func programs(h *lab.Host, n int) (all []*api, closeAll func()) {
	for range n {
		a := client(h)
		a.http.Transport.(*http.Transport).DisableKeepAlives = false
		all = append(all, a)
	}
	return all, func() {
		for _, a := range all {
			a.http.CloseIdleConnections()
		}
	}
}

// share lets all clients work through the numbers below n.
func share(clients []*api, n int, work func(a *api, i int) error) error {
	var next atomic.Int64
	var g errgroup.Group
	for _, a := range clients {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if err := work(a, i); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// call sends a request and returns the answer: its last line for a streamed one.
func (a *api) call(ctx context.Context, method, path string, body any) (json.RawMessage, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://heddle"+path, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json") // Docker insists
	resp, err := a.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var last json.RawMessage
	for d := json.NewDecoder(resp.Body); d.More(); {
		if err := d.Decode(&last); err != nil {
			return nil, err
		}
	}
	if resp.StatusCode >= 300 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, last)
	}
	return last, nil
}

// stream is call for an operation that answers line by line.
func (a *api) stream(ctx context.Context, path string, body, result any) error {
	last, err := a.call(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	var e struct {
		Result json.RawMessage `json:"result"`
		Error  *struct {
			Msg string `json:"error"`
		} `json:"error"`
	}
	if err := json.Unmarshal(last, &e); err != nil {
		return fmt.Errorf("%s: %w in %q", path, err, last)
	}
	if e.Error != nil {
		return errors.New(e.Error.Msg)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(e.Result, result)
}

// attach takes no notice of participants that have not acknowledged: its time shows them, since
// it waits 100 ms for them.
func (a *api) attach(ctx context.Context, name, network string) (cluster.Endpoint, error) {
	return a.attachAs(ctx, map[string]any{"name": name, "network": network})
}

func (a *api) attachAs(ctx context.Context, request map[string]any) (cluster.Endpoint, error) {
	var reply struct {
		Endpoint cluster.Endpoint `json:"endpoint"`
	}
	err := a.stream(ctx, "/v1/attach", request, &reply)
	return reply.Endpoint, err
}

func (a *api) detach(ctx context.Context, name string) error {
	return a.stream(ctx, "/v1/detach", map[string]string{"name": name}, nil)
}

// createNetwork makes a network of both families, with the subnets that are named.
func (a *api) createNetwork(ctx context.Context, name string, subnets ...string) error {
	spec := map[string]any{"name": name, "driver": "overlay", "ipv4": true, "ipv6": true}
	var named []map[string]string
	for _, s := range subnets {
		named = append(named, map[string]string{"prefix": s})
	}
	if named != nil {
		spec["subnets"] = named
	}
	_, err := a.call(ctx, http.MethodPost, "/v1/networks", spec)
	return err
}

func (a *api) removeNetwork(ctx context.Context, name string) error {
	_, err := a.call(ctx, http.MethodDelete, "/v1/networks/"+name, nil)
	return err
}

func (a *api) get(ctx context.Context, path string, v any) error {
	b, err := a.call(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
