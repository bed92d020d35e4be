//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

// vip measures what a service's address costs, against the way without one in a network that has no
// service, and how soon all of a node's workloads know of a change among few and many services.
func (b *bench) vip(ctx context.Context) error {
	if err := client(b.c.Host(1)).createNetwork(ctx, "direct"); err != nil {
		return err
	}
	direct, err := b.between(ctx, "direct", "plain", "")
	if err != nil {
		return err
	}
	if err := client(b.c.Host(1)).createNetwork(ctx, "vips", "10.211.0.0/16", "fd00:211::/64"); err != nil {
		return err
	}
	by, err := b.between(ctx, "vips", "flow", "flow")
	if err != nil {
		return err
	}
	if by.via, err = b.service(ctx, "vips", "flow", nil); err != nil {
		return err
	}
	if err := inForce(ctx, b.c.Host(1), "flow", by.via[ipv4]); err != nil {
		return err
	}
	for _, k := range []struct {
		name, unit string
		open       func(way, family) (flow, error)
		want       want
		time       bool // the ratio is of times
	}{
		{tcp, "Gbit/s", way.stream, atLeast(median, 0.95), false},
		{"connections, with a byte each", "1,000/s", way.connections, atLeast(median, 0.85), false},
		{"request and response by TCP", "us", way.requests, atMost(median, 1.12), true},
	} {
		for _, f := range []family{ipv4, ipv6} {
			r, err := inTurns(ctx, pairs, func() (flow, error) { return k.open(by, f) }, func() (flow, error) { return k.open(direct, f) })
			if err != nil {
				return fmt.Errorf("%s over %s: %w", k.name, f, err)
			}
			ours, ratios := r.ours, r.ratios()
			if k.time {
				for i := range ratios {
					ratios[i], ours[i] = 1/ratios[i], 1000/ours[i]
				}
			}
			low, high := medianInterval(ratios)
			name := fmt.Sprintf("%s over %s by a service's address", k.name, f)
			b.add(figure{
				Name: name + ", against the way without", Unit: "ratio", Want: []want{k.want},
				Note: fmt.Sprintf("pairs in turns; the median's 95 %% interval is %.3f to %.3f", low, high),
			}, ratios)
			b.add(figure{Name: name, Unit: k.unit}, ours)
		}
	}
	return nil
}

// between attaches a workload on each of the first two hosts, that on the second behind a service.
func (b *bench) between(ctx context.Context, network, name, service string) (w way, err error) {
	w.addr = map[family]netip.Addr{}
	for i, end := range []*string{&w.from, &w.to} {
		h := b.c.Host(1 + i)
		request := map[string]any{"name": name, "network": network}
		if i == 1 && service != "" {
			request["service"] = service
		}
		e, err := client(h).attachAs(ctx, request)
		if err != nil {
			return w, err
		}
		*end = h.Path("/run/netns/" + name)
		w.addr[ipv4], w.addr[ipv6] = e.IPv4.Addr(), e.IPv6.Addr()
	}
	return w, nil
}

// service makes a service, and answers its addresses.
func (b *bench) service(ctx context.Context, network, name string, selector map[string]string) (map[family]netip.Addr, error) {
	spec := map[string]any{"network": network, "name": name, "mode": "vip", "selector": selector, "ports": []map[string]any{{"proto": "tcp", "port": flowPort, "target": flowPort}}}
	return b.serviceAs(ctx, spec)
}

func (b *bench) serviceAs(ctx context.Context, spec map[string]any) (map[family]netip.Addr, error) {
	raw, err := client(b.c.Host(1)).call(ctx, http.MethodPost, "/v1/services", spec)
	if err != nil {
		return nil, err
	}
	var row struct{ VIPs []netip.Addr }
	if err := json.Unmarshal(raw, &row); err != nil || len(row.VIPs) != 2 {
		return nil, fmt.Errorf("service %s is %s: %w", spec["name"], raw, err)
	}
	return map[family]netip.Addr{ipv4: row.VIPs[0], ipv6: row.VIPs[1]}, nil
}

// inForce waits until IPv4 addresses are services' for a workload.
func inForce(ctx context.Context, h *lab.Host, workload string, vips ...netip.Addr) error {
	for some := range slices.Chunk(vips, 100) { // what fits into a message
		elements := strings.Trim(fmt.Sprint(some), "[]")
		err := cluster.Eventually(ctx, 30*time.Second, func(ctx context.Context) error {
			return h.Run(ctx, "ip", "netns", "exec", workload, "nft", "get", "element", "inet", "heddle-services", "vips4", "{ "+strings.ReplaceAll(elements, " ", ", ")+" }")
		})
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	asked     = 300 // requests in a run
	connected = 100 // connections in a run
)

// requests opens a TCP connection, by which each byte is answered by one.
func (w way) requests(f family) (flow, error) {
	return w.open(f, unix.SOCK_STREAM, func(out, in int) (rate float64, err error) {
		err = <-pinned(cores()[0], func() error {
			b, begin := make([]byte, 1), time.Now()
			for range asked {
				for _, ends := range [][2]int{{out, in}, {in, out}} {
					if err := again(func() error { _, err := unix.Write(ends[0], b); return err }); err != nil {
						return fmt.Errorf("ask: %w", err)
					}
					if err := again(func() error { _, err := unix.Read(ends[1], b); return err }); err != nil {
						return fmt.Errorf("answer: %w", err)
					}
				}
			}
			rate = asked / time.Since(begin).Seconds() / 1000
			return nil
		})
		return rate, err
	})
}

// connections opens a listener, to which each run makes connections and sends a byte by each.
func (w way) connections(f family) (flow, error) {
	to := w.to
	listener, at, err := listenIn(to, w.addr[f])
	if err != nil {
		return flow{}, err
	}
	if via := w.via[f]; via.IsValid() {
		at = sockaddr(via)
	}
	out, err := unix.Dup(listener) // for close
	return flow{out, listener, func(_, in int) (float64, error) { return connectAll(w.from, in, at) }}, err
}

func listenIn(ns string, addr netip.Addr) (fd int, at unix.Sockaddr, err error) {
	at = sockaddr(addr)
	if fd, err = socketIn(ns, domainOf(addr), unix.SOCK_STREAM); err != nil {
		return 0, nil, err
	}
	return fd, at, errors.Join(unix.Bind(fd, at), unix.Listen(fd, 16))
}

func connectAll(from string, listener int, at unix.Sockaddr) (rate float64, err error) {
	domain := unix.AF_INET
	if _, six := at.(*unix.SockaddrInet6); six {
		domain = unix.AF_INET6
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for range connected {
		fd, err := socketIn(from, domain, unix.SOCK_STREAM)
		if err != nil {
			return 0, err
		}
		fds = append(fds, fd)
	}
	err = <-pinned(cores()[0], func() error {
		b, begin := make([]byte, 1), time.Now()
		for _, out := range fds {
			in := 0
			err := again(func() error { return unix.Connect(out, at) })
			if err != nil && err != unix.EALREADY && err != unix.EISCONN { // it goes on by itself after a signal
				return fmt.Errorf("connect: %w", err)
			}
			if err := again(func() (err error) { in, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC); return err }); err != nil {
				return fmt.Errorf("accept: %w", err)
			}
			err = again(func() error { _, err := unix.Write(out, b); return err })
			if err == nil {
				err = again(func() error { _, err := unix.Read(in, b); return err })
			}
			unix.Close(in)
			if err != nil {
				return err
			}
		}
		rate = connected / time.Since(begin).Seconds() / 1000
		return nil
	})
	return rate, err
}

// again does a call again that a signal has interrupted.
func again(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// clients are workloads of the first host in which changes are looked for.
const clients = 10

// changes measures how soon all workloads of the first host know that one comes behind a service or
// goes, with 10 services and with 1,000, of 10 backends each.
func (b *bench) changes(ctx context.Context) error {
	here, there := client(b.c.Host(1)), client(b.c.Host(2))
	if err := here.createNetwork(ctx, "changes", "10.213.0.0/16", "fd00:213::/64"); err != nil {
		return err
	}
	if _, err := b.service(ctx, "changes", "changing", nil); err != nil {
		return err
	}
	var watchers []*ruleWatcher
	for i := range clients {
		name := fmt.Sprint("client", i)
		if _, err := here.attach(ctx, name, "changes"); err != nil {
			return err
		}
		w, err := watchRules(b.c.Host(1).Path("/run/netns/" + name))
		if err != nil {
			return err
		}
		defer w.close()
		watchers = append(watchers, w)
	}
	for i := range 10 {
		if _, err := there.attachAs(ctx, map[string]any{"name": fmt.Sprint("behind", i), "network": "changes", "labels": map[string]string{"tier": "all"}}); err != nil {
			return err
		}
	}
	medians := map[bool][]float64{}
	var made []netip.Addr
	for _, services := range []int{10, 1000} {
		for len(made) < services {
			vips, err := b.service(ctx, "changes", fmt.Sprint("many", len(made)), map[string]string{"tier": "all"})
			if err != nil {
				return err
			}
			made = append(made, vips[ipv4])
		}
		for i := range clients {
			if err := inForce(ctx, b.c.Host(1), fmt.Sprint("client", i), made...); err != nil {
				return err
			}
		}
		var came, went []float64
		for range max(10, b.n/2) {
			one := func(step func() error) (float64, error) {
				for _, w := range watchers {
					w.forget()
				}
				begin, all := time.Now(), make(chan heard, len(watchers))
				for _, w := range watchers {
					go func() { all <- w.first() }() // a socket does not say when it got what it has
				}
				if err := step(); err != nil {
					return 0, err
				}
				last := begin
				for range watchers {
					h := <-all
					if h.err != nil {
						return 0, h.err
					}
					if h.at.After(last) {
						last = h.at
					}
				}
				return ms(last.Sub(begin)), nil
			}
			in, err := one(func() error {
				_, err := there.attachAs(ctx, map[string]any{"name": "one", "network": "changes", "service": "changing"})
				return err
			})
			if err != nil {
				return err
			}
			if err := inForce(ctx, b.c.Host(2), "one", made...); err != nil { // its own load is over
				return err
			}
			out, err := one(func() error { return there.detach(ctx, "one") })
			if err != nil {
				return err
			}
			came, went = append(came, in), append(went, out)
		}
		for name, s := range map[string][]float64{"attached": came, "detached": went} {
			f := figure{Name: fmt.Sprintf("a backend is %s → in force in %d workloads of another node, %d services", name, clients, services), Unit: "ms"}
			f.measure(s)
			medians[name == "attached"] = append(medians[name == "attached"], f.Median)
			f.Want = []want{atMost(median, 50)}
			if name == "detached" {
				f.Want = append(f.Want, atMost(most, 100))
			}
			b.add(f, s)
		}
	}
	for came, m := range medians {
		name := "detached"
		if came {
			name = "attached"
		}
		b.add(figure{Name: "of a backend that is " + name + ": with 1,000 services against 10", Unit: "ratio", Want: []want{atMost(median, 1.3)}}, []float64{m[1] / m[0]})
	}
	return nil
}

// ruleWatcher hears of transactions of nf_tables in a namespace.
type ruleWatcher struct{ fd int }

func watchRules(path string) (*ruleWatcher, error) {
	w := &ruleWatcher{}
	err := lab.InNetNS(path, func() (err error) {
		w.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		_ = unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
		_ = unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: stalled})
		return unix.Bind(w.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	})
	return w, err
}

func (w *ruleWatcher) close() { unix.Close(w.fd) }

// forget leaves out what was heard so far.
func (w *ruleWatcher) forget() {
	for buf := make([]byte, 64<<10); ; {
		if _, _, err := unix.Recvfrom(w.fd, buf, unix.MSG_DONTWAIT); err != nil {
			return
		}
	}
}

// heard is when the first transaction was told.
type heard struct {
	at  time.Time
	err error
}

// first waits for the first transaction.
func (w *ruleWatcher) first() heard {
	if _, _, err := unix.Recvfrom(w.fd, make([]byte, 64<<10), 0); err != nil {
		return heard{err: fmt.Errorf("no change of rules: %w", err)}
	}
	return heard{at: time.Now()}
}
