//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

const (
	behind      = 10     // backends
	held        = 200    // connections that are open meanwhile
	spreadOver  = 20_000 // connections
	killedTimes = 10
)

// replace measures what clients see of it when all backends of a service are replaced, one after the
// other; how evenly new connections spread; and how soon a backend whose program has ended gets no more.
func (b *bench) replace(ctx context.Context) error {
	h := b.c.Host(1)
	if err := client(h).createNetwork(ctx, "shops", "10.212.0.0/16", "fd00:212::/64"); err != nil {
		return err
	}
	if _, err := client(h).attach(ctx, "shopper", "shops"); err != nil {
		return err
	}
	s := &shop{bench: b, ns: h.Path("/run/netns/shopper")}
	spec := map[string]any{"network": "shops", "name": "shop", "mode": "vip", "health": map[string]any{"kind": "tcp"}, "ports": []map[string]any{{"proto": "tcp", "port": 80, "target": 8080}}}
	vips, err := b.serviceAs(ctx, spec)
	if err != nil {
		return err
	}
	s.vip = vips[ipv4]
	if err := inForce(ctx, h, "shopper", s.vip); err != nil {
		return err
	}
	if s.rules, err = watchRules(s.ns); err != nil {
		return err
	}
	defer s.rules.close()
	for i := range behind {
		one, err := s.open(ctx, fmt.Sprint("old", i), b.c.Host(1+i%2))
		if err != nil {
			return err
		}
		s.backends = append(s.backends, one)
	}
	defer func() {
		for _, one := range s.backends {
			one.server.Close()
		}
	}()
	if err := s.rolling(ctx); err != nil {
		return err
	}
	if err := s.spread(ctx); err != nil {
		return err
	}
	return s.killed(ctx)
}

// shop is a service with what is behind it, and a workload that asks.
type shop struct {
	*bench
	ns       string // the workload's
	vip      netip.Addr
	rules    *ruleWatcher // in ns
	backends []*backend
}

type backend struct {
	name    string
	host    *lab.Host
	server  *http.Server
	leaving atomic.Bool // each answer ends its connection
}

// open attaches a backend that answers with its name, and waits until the workload may be led to it.
func (s *shop) open(ctx context.Context, name string, h *lab.Host) (*backend, error) {
	s.rules.forget()
	if _, err := client(h).attachAs(ctx, map[string]any{"name": name, "network": "shops", "service": "shop"}); err != nil {
		return nil, err
	}
	b := &backend{name: name, host: h}
	if err := b.serve(); err != nil {
		return nil, err
	}
	return b, s.rules.first().err
}

func (b *backend) serve() error {
	var l net.Listener
	err := lab.InNetNS(b.host.Path("/run/netns/"+b.name), func() (err error) {
		l, err = net.Listen("tcp", ":8080")
		return err
	})
	if err != nil {
		return err
	}
	b.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if b.leaving.Load() {
			w.Header().Set("Connection", "close")
		}
		_, _ = io.WriteString(w, b.name)
	})}
	go func() { _ = b.server.Serve(l) }() // until it is closed
	return nil
}

// customer is a client of its own, which keeps its connection or makes one for each request.
func (s *shop) customer(keeps bool) *http.Client {
	return &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: !keeps, DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = lab.InNetNS(s.ns, func() (err error) {
			var d net.Dialer
			c, err = d.DialContext(ctx, network, addr)
			return err
		})
		return c, err
	}}}
}

// ask answers who has answered.
func (s *shop) ask(c *http.Client) (by string, err error) {
	resp, err := c.Get("http://" + s.vip.String())
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// rolling replaces all backends while clients that keep their connections ask.
func (s *shop) rolling(ctx context.Context) error {
	var asked, failed atomic.Int64
	var first sync.Once
	var why error
	stop := make(chan struct{})
	var all sync.WaitGroup
	for range held {
		all.Go(func() {
			c := s.customer(true)
			defer c.CloseIdleConnections()
			for tick := time.NewTicker(100 * time.Millisecond); ; {
				asked.Add(1)
				if _, err := s.ask(c); err != nil {
					failed.Add(1)
					first.Do(func() { why = err })
				}
				select {
				case <-tick.C:
				case <-stop:
					tick.Stop()
					return
				}
			}
		})
	}
	err := s.replaceAll(ctx)
	close(stop)
	all.Wait()
	f := figure{Name: fmt.Sprintf("rolling replacement of %d backends, %d connections open: failed requests", behind, held), Unit: "requests", Want: []want{atMost(most, 0)}, Note: fmt.Sprintf("of %d", asked.Load())}
	if why != nil {
		f.Note += fmt.Sprintf("; the first: %v", why)
	}
	s.add(f, []float64{float64(failed.Load())})
	return err
}

// replaceAll takes each backend off when another has its place. When nothing new comes to it its program
// ends each connection with the next answer, which is what heddle waits for.
func (s *shop) replaceAll(ctx context.Context) error {
	for i, old := range s.backends {
		one, err := s.open(ctx, fmt.Sprint("new", i), old.host)
		if err != nil {
			return err
		}
		s.backends[i] = one
		s.rules.forget()
		var g errgroup.Group
		g.Go(func() error { return client(old.host).detach(ctx, old.name) })
		out := s.rules.first()
		old.leaving.Store(true)
		if err := errors.Join(out.err, g.Wait(), old.server.Close()); err != nil {
			return err
		}
	}
	return nil
}

// spread makes many connections, and compares what share each backend has.
func (s *shop) spread(context.Context) error {
	var mu sync.Mutex
	by := map[string]float64{}
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			c := s.customer(false)
			for range spreadOver / 8 {
				name, err := s.ask(c)
				if err != nil {
					return err
				}
				mu.Lock()
				by[name]++
				mu.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	shares := make([]float64, 0, behind)
	for _, b := range s.backends {
		shares = append(shares, by[b.name]/(spreadOver/behind))
	}
	f := figure{Name: fmt.Sprintf("share of each of %d backends, against an even one, of %d connections", behind, spreadOver), Unit: "ratio", Want: []want{atLeast(least, 0.9), atMost(most, 1.1)}}
	s.add(f, shares)
	return nil
}

// leadsTo waits until a backend answers.
func (s *shop) leadsTo(ctx context.Context, b *backend) error {
	c := s.customer(false)
	return cluster.Eventually(ctx, 10*time.Second, func(context.Context) error {
		by, err := s.ask(c)
		if err == nil && by != b.name {
			err = fmt.Errorf("%s answers, not %s", by, b.name)
		}
		return err
	})
}

// killed ends a backend's program, which nobody tells heddle of.
func (s *shop) killed(ctx context.Context) error {
	b := s.backends[0]
	var samples []float64
	for range killedTimes {
		s.rules.forget()
		begin := time.Now()
		if err := b.server.Close(); err != nil {
			return err
		}
		out := s.rules.first()
		if out.err != nil {
			return out.err
		}
		samples = append(samples, ms(out.at.Sub(begin)))
		if err := b.serve(); err != nil {
			return err
		}
		if err := s.leadsTo(ctx, b); err != nil {
			return err
		}
	}
	f := figure{Name: "a backend's program ends → out of rotation, with the default health check", Unit: "ms", Want: []want{atMost(most, 2000)}}
	s.add(f, samples)
	return nil
}
