//go:build linux

package daemon

import (
	"context"
	"errors"
	"os/exec"
	"testing"
)

func TestProcessEnds(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	started, err := processes{}.Started(pid)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- processes{}.Ended(ctx, pid, started) }()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("Ended of a living process after cancel: %v", err)
	}
	go func() { ended <- processes{}.Ended(t.Context(), pid, started) }()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := <-ended; err != nil {
		t.Fatalf("Ended after the process was killed: %v", err)
	}
	if err := (processes{}).Ended(t.Context(), pid, started); err != nil {
		t.Fatalf("Ended of a process that is gone: %v", err)
	}
}

// A process that has another's PID is not that other one.
func TestProcessOfAnotherTime(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	started, err := processes{}.Started(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := (processes{}).Ended(t.Context(), cmd.Process.Pid, started+1); err != nil {
		t.Fatalf("Ended: %v", err)
	}
}
