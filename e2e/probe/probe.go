//go:build linux

// Package probe holds the small network programs that run inside lab hosts and workloads: the
// calling program is started again as one of them, so that a lab needs nothing installed.
package probe

import (
	"fmt"
	"os"
)

// Command is argv[1] of the calling program when it is started as a probe; the probe's name
// and its arguments follow.
const Command = "probe"

var programs = map[string]func(args []string) error{
	"serve":      serve,
	"fetch":      fetch,
	"ping":       ping,
	"count":      count,
	"forge":      forge,
	"spoof":      spoof,
	"as":         as,
	"hold":       hold,
	"capture":    capture,
	"canary":     canary,
	"whole":      whole,
	"ask":        ask,
	"load":       load,
	"nameserver": nameserver,
	"answer":     answer,
	"greet":      greet,
}

// Args is the command line of a probe: this program's path, Command, name and arguments. The
// path must be readable inside the host, so not below /run.
func Args(name string, args ...string) []string {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	return append([]string{self, Command, name}, args...)
}

// Main runs a probe when this program was started as one, and does not return then.
func Main() {
	if len(os.Args) < 3 || os.Args[1] != Command {
		return
	}
	run := programs[os.Args[2]]
	if run == nil {
		fmt.Fprintf(os.Stderr, "no probe is called %q\n", os.Args[2])
		os.Exit(2)
	}
	if err := run(os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
