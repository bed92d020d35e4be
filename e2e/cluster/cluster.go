//go:build linux

// Package cluster runs heddle on the hosts of a lab, through its command line alone, as an
// operator would.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/heddle-net/heddle/e2e/lab"
)

// Config says what cluster to make.
type Config struct {
	Managers int        // at least 1: the first hosts
	Workers  int        // the hosts after them
	Spare    int        // hosts after those, with a daemon, in no cluster
	Lab      lab.Config // Hosts is set here, and Bin where it is empty

	// Show is told each command of the cluster's making and what it printed. It may be nil.
	Show func(h *lab.Host, command, output string)
}

// Cluster is a lab whose hosts run heddle.
type Cluster struct {
	*lab.Lab
	cfg Config
}

// Bin is the directory of the built program: of $HEDDLE, or bin/ of the repository that the
// working directory is in, or of this program.
func Bin() (string, error) {
	if p := os.Getenv("HEDDLE"); p != "" {
		return filepath.Dir(p), nil
	}
	var try []string
	if self, err := os.Executable(); err == nil {
		try = append(try, filepath.Dir(self))
	}
	if dir, err := os.Getwd(); err == nil {
		for ; dir != "/"; dir = filepath.Dir(dir) {
			try = append(try, filepath.Join(dir, "bin"))
		}
	}
	for _, dir := range try {
		if _, err := os.Stat(filepath.Join(dir, "heddle")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("the program heddle is not built; type: make build")
}

// NewHosts makes the lab and starts a daemon on each host, in no cluster yet.
func NewHosts(ctx context.Context, name string, cfg Config) (*Cluster, error) {
	cfg.Lab.Hosts = cfg.Managers + cfg.Workers + cfg.Spare
	if cfg.Lab.Bin == "" {
		var err error
		if cfg.Lab.Bin, err = Bin(); err != nil {
			return nil, err
		}
	}
	l, err := lab.New(ctx, name, cfg.Lab)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Lab: l, cfg: cfg}
	if err := each(l.Hosts(), func(h *lab.Host) error { return h.StartDaemon() }); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return c, nil
}

// New makes hosts and a cluster of them.
func New(ctx context.Context, name string, cfg Config) (*Cluster, error) {
	c, err := NewHosts(ctx, name, cfg)
	if err != nil {
		return nil, err
	}
	if err := c.Form(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Form makes the cluster: init on the first host, joins on the others.
func (c *Cluster) Form(ctx context.Context) error {
	first := c.Host(1)
	if _, err := c.Do(ctx, first, "init", "--advertise-addr", first.Addr().String()); err != nil {
		return err
	}
	if n := c.cfg.Managers - 1; n > 0 {
		token, err := c.Do(ctx, first, "token", "create", "manager", "-q", "--uses", fmt.Sprint(n))
		if err != nil {
			return err
		}
		for _, h := range c.Managers()[1:] {
			if err := c.Join(ctx, h, token); err != nil {
				return err
			}
		}
	}
	if c.cfg.Workers == 0 {
		return nil
	}
	token, err := c.Do(ctx, first, "token", "create", "worker", "-q")
	if err != nil {
		return err
	}
	return each(c.Workers(), func(h *lab.Host) error { return c.Join(ctx, h, token) })
}

// Join brings a host in through the first host.
func (c *Cluster) Join(ctx context.Context, h *lab.Host, token string) error {
	_, err := c.Do(ctx, h, "join", c.Host(1).Addr().String(), "--token", token)
	return err
}

// Do runs heddle on a host and returns what it printed, without the last newline.
func (c *Cluster) Do(ctx context.Context, h *lab.Host, args ...string) (string, error) {
	out, err := h.Output(ctx, append([]string{"heddle"}, args...)...)
	out = strings.TrimSpace(out)
	if c.cfg.Show != nil && err == nil {
		c.cfg.Show(h, "heddle "+strings.Join(args, " "), out)
	}
	return out, err
}

// JSON runs heddle on a host and decodes what it prints.
func (c *Cluster) JSON(ctx context.Context, h *lab.Host, v any, args ...string) error {
	out, err := h.Output(ctx, append([]string{"heddle"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("%s: heddle %s: %w in %.200q", h.Name(), strings.Join(args, " "), err, out)
	}
	return nil
}

// Managers are the hosts that were made managers.
func (c *Cluster) Managers() []*lab.Host { return c.Hosts()[:c.cfg.Managers] }

// Workers are the hosts that were made workers.
func (c *Cluster) Workers() []*lab.Host {
	return c.Hosts()[c.cfg.Managers : c.cfg.Managers+c.cfg.Workers]
}

// Spare are the hosts that are in no cluster.
func (c *Cluster) Spare() []*lab.Host { return c.Hosts()[c.cfg.Managers+c.cfg.Workers:] }

// Leader asks a host which manager leads.
func (c *Cluster) Leader(ctx context.Context, ask *lab.Host) (*lab.Host, error) {
	var rows []Node
	if err := c.JSON(ctx, ask, &rows, "node", "ls", "--format", "json"); err != nil {
		return nil, err
	}
	for _, r := range rows {
		for _, h := range c.Hosts() {
			if r.ManagerStatus == "Leader" && r.Name == h.Name() {
				return h, nil
			}
		}
	}
	return nil, fmt.Errorf("%s knows no leader", ask.Name())
}

// Eventually repeats a step until it succeeds, for at most d, and returns its last error.
func Eventually(ctx context.Context, d time.Duration, step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var last error
	for {
		err := step(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", d, last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// each runs a step for all hosts at once.
func each(hosts []*lab.Host, step func(*lab.Host) error) error {
	errs := make([]error, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() { errs[i] = step(h) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
