package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath/netns"
)

// runIn runs a program inside the namespace at path and returns its exit code. The program
// stays in this process's group, so that the terminal's signals and job control treat both
// as one; signals that come from elsewhere are passed on. When this process is killed, the
// program is too.
func (c *cli) runIn(ctx context.Context, path, program string, args []string) (int, error) {
	ns, err := netns.Open(path, 0)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	if ctx.Err() != nil {
		return exitBySignal + int(unix.SIGINT), nil
	}
	cmd := &exec.Cmd{
		Path: program, Args: args, Stdin: c.in, Stdout: c.out, Stderr: c.err,
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL},
	}
	// The thread lives until the program ends: Pdeathsig means the thread that started it.
	err = netns.Do(ns, func() error {
		if err := showNames(path); err != nil {
			c.note("warning: %s does not find other workloads by name: %s", args[0], err)
		}
		if err := cmd.Start(); err != nil {
			return startError(args[0], err)
		}
		ended, passed := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(passed)
			passOn(signals, cmd.Process, ended)
		}()
		err := cmd.Wait()
		close(ended)
		<-passed
		return err
	})
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if w := exit.Sys().(syscall.WaitStatus); w.Signaled() {
			return exitBySignal + int(w.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// passOn sends the process the signals that it has not had from the terminal itself.
func passOn(signals <-chan os.Signal, p *os.Process, ended <-chan struct{}) {
	for {
		select {
		case s := <-signals:
			if !fromTerminal(s) {
				_ = p.Signal(s) // fails only when it has just ended
			}
		case <-ended:
			return
		}
	}
}

// fromTerminal says whether a signal is one that the terminal sends to its whole foreground
// group, which the program is in with this process.
func fromTerminal(s os.Signal) bool {
	if s != unix.SIGINT && s != unix.SIGQUIT && s != unix.SIGHUP {
		return false
	}
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false // there is no controlling terminal
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}
