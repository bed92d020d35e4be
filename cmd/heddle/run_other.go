//go:build !linux

package main

import "context"

func (c *cli) runIn(context.Context, string, string, []string) (int, error) {
	return 0, notLinux("run")
}
