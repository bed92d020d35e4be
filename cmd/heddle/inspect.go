package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

// inspectCmd makes a verb `inspect`: find answers with the rows that a reference names. What
// is found is printed although another reference names nothing.
func inspectCmd[T any](c *cli, what, short string, find func(ctx context.Context, cl *local.Client, ref string) ([]T, error)) *cobra.Command {
	var f format
	cmd := &cobra.Command{Use: "inspect " + what + "...", Short: short, Args: someArgs(what)}
	parsed(cmd.Flags(), &f, "format", "json|TEMPLATE", "print a JSON array, or each row by a Go template", func(option, s string) (format, error) {
		if s == "table" {
			return format{}, overlay.Errorf(overlay.Invalid, "%s table is for lists; use json or a Go template", option)
		}
		return parseFormat(option, s)
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var rows []T
		failed := c.askAll(cmd, args, func(ctx context.Context, cl *local.Client, ref string) error {
			found, err := find(ctx, cl, ref)
			rows = append(rows, found...)
			return err
		})
		if err := printRows(cmd, f, rows); err != nil {
			return err
		}
		return failed
	}
	return cmd
}

// one makes a slice of a single row, or none.
func one[T any](row T, err error) ([]T, error) {
	if err != nil {
		return nil, err
	}
	return []T{row}, nil
}
