//go:build linux

package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/heddle-net/heddle/e2e/probe"
)

const (
	nameRate = 20000 // questions a second
	nameTime = 2     // seconds of them in a row
)

// names has a workload ask for another's address at a rate, of a daemon that has one processor.
func (b *bench) names(ctx context.Context) error {
	undo, err := b.everywhere(ctx, "names")
	if err != nil {
		return err
	}
	h, far := b.c.Host(1), "names-"+b.c.Host(2).Name()
	e, err := endpoint(ctx, client(h), "names-"+h.Name())
	if err != nil {
		return err
	}
	pin := func(cores string) error {
		return h.Run(ctx, "taskset", "-a", "-p", "-c", cores, strconv.Itoa(h.Daemon().PID()))
	}
	if err := pin("0"); err != nil {
		return err
	}
	var answered, took []float64
	for range max(3, b.n/20) {
		line := probe.Args("load", "-rate", strconv.Itoa(nameRate), "-for", fmt.Sprintf("%ds", nameTime), e.IPv4.Masked().Addr().Next().String(), far)
		out, err := h.Output(ctx, append([]string{"ip", "netns", "exec", e.Name, "taskset", "-c", "1"}, line...)...)
		if err != nil {
			return err
		}
		n := 0
		for _, s := range strings.Fields(out) {
			us, err := strconv.ParseFloat(s, 64)
			if err != nil {
				return err
			}
			if us >= 0 {
				n++
				took = append(took, us/1000)
			}
		}
		answered = append(answered, float64(n)/nameTime)
	}
	note := fmt.Sprintf("one workload asks %d times a second for another's address, for %d s; the daemon has one processor, the asker the other", nameRate, nameTime)
	b.add(figure{Name: "questions for names, answered", Unit: "1/s", Want: []want{atLeast(median, 0.99*nameRate)}, Note: note}, answered)
	b.add(figure{Name: "an answer to a question for a name", Unit: "ms", Want: []want{atMost(p99, 2)}}, took)
	if err := pin("0-1"); err != nil {
		return err
	}
	return undo()
}
