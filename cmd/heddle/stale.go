package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
)

const staleFlag = "stale"

// staleable gives verbs that read from the managers the flag to read the node's own copy.
func staleable(cmds ...*cobra.Command) {
	for _, cmd := range cmds {
		cmd.Flags().Bool(staleFlag, false, "read this node's own copy, which may be old and lacks networks it has no part in; needs no manager")
	}
}

// noteStale says how old the copy is, before it is printed.
func (c *cli) noteStale(held overlay.Copy) {
	age := "a manager was heard of " + held.Age.Round(time.Second).String() + " ago"
	if held.Age < 0 {
		age = "no manager was heard of since the daemon's start"
	}
	c.note("this node's copy of revision %d; %s", held.Revision, age)
}
