package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
)

// Exit codes of `run` where CMD did not run, as shells have them.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
	exitBySignal      = 128 // and the signal's number
)

const detachTime = 10 * time.Second // for taking the workload off after CMD's end

func (c *cli) runCmd() *cobra.Command {
	var f attachFlags
	var name string
	cmd := &cobra.Command{
		Use: "run --network NETWORK [flags] -- CMD [ARG...]", Short: "Run a command as a workload of a network",
		Long: "Run a command in a network namespace of its own, attached while it runs. The exit code is\n" +
			"the command's, 128 and the signal's number where a signal ended it, 127 where it was not\n" +
			"found and 126 where it could not be started. Its processes find other workloads by name, since\n" +
			"they see a resolv.conf of their own, and share all else with the host.",
		Example:               "  heddle run --network blue -- curl http://10.64.0.2/",
		DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 0 || len(args) == 0 || args[0] == "" {
				return usagef(cmd, "run needs a command behind --, as in heddle run --network blue -- ping 10.64.0.2")
			}
			return nil
		},
	}
	f.add(cmd)
	parsed(cmd.Flags(), &name, "name", "name", "name of the workload; default the command's and a number", parseName("workload"))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if runtime.GOOS != "linux" {
			return notLinux("run")
		}
		if name == "" {
			name = workloadName(args[0], os.Getpid())
		}
		r, err := f.request(cmd, name)
		if err != nil {
			return err
		}
		r.Session = os.Getpid() // when this process is gone, the daemon detaches
		program, err := exec.LookPath(args[0])
		if err != nil {
			return startError(args[0], err)
		}
		e, err := c.attach(cmd, r)
		if err != nil {
			return err
		}
		code, err := c.runIn(cmd.Context(), e.Namespace, program, args)
		c.detachAfter(cmd, e)
		if err != nil {
			return err
		}
		if code != 0 {
			return &exitError{code: code}
		}
		return nil
	}
	return cmd
}

// detachAfter takes the workload off. A failure is told, but CMD's exit code stands: the
// daemon detaches anyway when this process is gone.
func (c *cli) detachAfter(cmd *cobra.Command, e overlay.Endpoint) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), detachTime)
	defer cancel()
	cmd.SetContext(ctx)
	err := c.detach(cmd, overlay.DetachRequest{Name: e.Name, Network: string(e.NetworkID)})
	if err != nil && overlay.KindOf(err) != overlay.NotFound {
		c.note("warning: %s is not detached yet, the daemon does it later: %s", e.Name, err)
	}
}

// startError is why CMD did not run, with the exit code that shells use for it.
func startError(command string, err error) error {
	code := exitNotExecutable
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		code = exitNotFound
	}
	// The cause alone: the rest repeats the name.
	if e, ok := errors.AsType[*exec.Error](err); ok {
		err = e.Err
	}
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	return &exitError{code, overlay.Errorf(overlay.Invalid, "can't run %s: %w", command, err)}
}

var notInName = regexp.MustCompile(`[^a-zA-Z0-9_.-]`)

// workloadName is a valid name for a command's workload.
func workloadName(command string, pid int) string {
	const longest = 63
	suffix := "-" + strconv.Itoa(pid)
	base := strings.TrimLeft(notInName.ReplaceAllString(filepath.Base(command), "-"), "_.-")
	if base == "" {
		base = "run"
	}
	return base[:min(len(base), longest-len(suffix))] + suffix
}
