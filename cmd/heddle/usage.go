package main

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/heddle-net/heddle/overlay"
)

// usageError is a command line that can't be meant. Its exit code is 2.
type usageError struct {
	err error
	cmd string // whose help says more
}

func (e *usageError) Error() string {
	return strings.TrimSuffix(e.err.Error(), "\n") + "; see " + e.cmd + " --help"
}
func (e *usageError) Unwrap() error { return e.err }

// usage makes err, which may be nil, a usage error of the command.
func usage(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	return &usageError{err, cmd.CommandPath()}
}

func usagef(cmd *cobra.Command, format string, args ...any) error {
	return usage(cmd, fmt.Errorf(format, args...))
}

func unknownVerb(cmd *cobra.Command, verb string) error {
	return usagef(cmd, "%s has no verb %q", cmd.CommandPath(), verb)
}

// exitError ends the process with a code of its own, silently where err is nil.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }

// flagError says what is wrong with a flag in a user's words.
func flagError(cmd *cobra.Command, err error) error {
	if cmd.HasSubCommands() && cmd.Flags().NArg() > 0 { // the flag belongs to a verb that does not exist
		return unknownVerb(cmd, cmd.Flags().Arg(0))
	}
	if e, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return usagef(cmd, "--%s needs a value", e.GetFlag().Name)
	}
	e, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return usage(cmd, err)
	}
	if cause, ok := errors.AsType[*overlay.Error](err); ok {
		return usage(cmd, cause)
	}
	f := e.GetFlag()
	if n, ok := errors.AsType[*strconv.NumError](err); ok {
		switch {
		case f.Value.Type() == "bool":
			return usagef(cmd, "--%s %q is neither true nor false", f.Name, e.GetValue())
		case errors.Is(n, strconv.ErrRange):
			return usagef(cmd, "--%s %s is out of range", f.Name, e.GetValue())
		}
		return usagef(cmd, "--%s %q is not a number", f.Name, e.GetValue())
	}
	if f.Value.Type() == "duration" {
		return usagef(cmd, "--%s %q is not a duration; write it as 500ms, 90m or 24h", f.Name, e.GetValue())
	}
	return usagef(cmd, "--%s %q: %w", f.Name, e.GetValue(), errors.Unwrap(err))
}

// noArgs, oneArg and someArgs say how many arguments a command takes, and what they are.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef(cmd, "%s takes no argument, but there is %q", verb(cmd), args[0])
	}
	return nil
}

func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usagef(cmd, "%s takes one %s, but there is also %q", verb(cmd), what, args[1])
		}
		return someArgs(what)(cmd, args)
	}
}

func someArgs(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		for _, a := range args {
			if a == "" {
				return usagef(cmd, "%s: a %s is empty", verb(cmd), what)
			}
		}
		if len(args) == 0 {
			return usagef(cmd, "%s needs a %s", verb(cmd), what)
		}
		return nil
	}
}

func twoArgs(first, second string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 2 {
			return usagef(cmd, "%s needs a %s and a %s", verb(cmd), first, second)
		}
		return someArgs(first)(cmd, args)
	}
}

// verb is the command's name without the program's.
func verb(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}

func notLinux(verb string) error {
	return overlay.Errorf(overlay.Unsupported, "heddle %s works on Linux only, and this is %s; use it on a Linux host", verb, runtime.GOOS)
}
