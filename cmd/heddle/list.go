package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

// column is one column of a table. short is a row's text with long IDs cut.
type column[T any] struct {
	head string
	cell func(row T, id func(string) string) string
}

// matcher says whether a row passes a filter's value.
type matcher[T any] func(row T, value string) bool

// list is a verb that lists rows of one type, mostly `ls`.
type list[T any] struct {
	short   string // help
	id      func(T) string
	columns []column[T]
	filters map[string]matcher[T]
	before  map[string]func(context.Context, *local.Client) error // what the filter of this key needs; done when it is given
}

// command makes the verb. more may add flags.
func (l list[T]) command(c *cli, fetch func(context.Context, *local.Client) ([]T, error)) *cobra.Command {
	cmd := l.verb(c, func(ctx context.Context, cl *local.Client, _ []string) ([]T, error) { return fetch(ctx, cl) })
	cmd.Use, cmd.Aliases, cmd.Args = "ls", []string{"list"}, noArgs
	return cmd
}

// verb makes a verb that lists what its arguments name. It has no name yet.
func (l list[T]) verb(c *cli, fetch func(ctx context.Context, cl *local.Client, args []string) ([]T, error)) *cobra.Command {
	var f format
	var filters []pair[string]
	var quiet, whole bool
	cmd := &cobra.Command{Short: l.short}
	parsed(cmd.Flags(), &f, "format", "table|json|TEMPLATE", "print a table, a JSON array, or each row by a Go template", parseFormat)
	fs := cmd.Flags()
	repeatedP(fs, &filters, "filter", "f", "key=value", "rows to print, by "+strings.Join(l.keys(), ", ")+"; values of one key: any, several keys: all", l.parseFilter)
	fs.BoolVarP(&quiet, "quiet", "q", false, "print IDs alone")
	fs.BoolVar(&whole, "no-trunc", false, "print IDs whole")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		rows, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) ([]T, error) {
			if err := l.prepare(ctx, cl, filters); err != nil {
				return nil, err
			}
			return fetch(ctx, cl, args)
		})
		if err != nil {
			return err
		}
		rows = slices.DeleteFunc(rows, func(row T) bool { return !l.passes(row, filters) })
		id := shorten
		if whole {
			id = func(s string) string { return s }
		}
		switch {
		case quiet:
			for _, row := range rows {
				c.printf("%s\n", id(l.id(row)))
			}
			return nil
		case f.json || f.tmpl != nil:
			return printRows(cmd, f, rows)
		}
		return printTable(c.out, rows, l.columns, id)
	}
	return cmd
}

func shorten(id string) string { return id[:min(len(id), 12)] }

func (l list[T]) keys() []string { return slices.Sorted(maps.Keys(l.filters)) }

func (l list[T]) parseFilter(option, s string) (pair[string], error) {
	k, v, ok := strings.Cut(s, "=")
	if !ok {
		return pair[string]{}, overlay.Errorf(overlay.Invalid, "%s %q has no value; write it as id=VALUE", option, s)
	}
	if l.filters[k] == nil {
		return pair[string]{}, overlay.Errorf(overlay.Invalid, "%s %q is unknown here; use %s", option, k, strings.Join(l.keys(), ", "))
	}
	return pair[string]{k, v}, nil
}

func (l list[T]) prepare(ctx context.Context, cl *local.Client, filters []pair[string]) error {
	for key, before := range l.before {
		if slices.ContainsFunc(filters, func(f pair[string]) bool { return f.key == key }) {
			if err := before(ctx, cl); err != nil {
				return err
			}
		}
	}
	return nil
}

// passes: for each key that is given, one of its values must match.
func (l list[T]) passes(row T, filters []pair[string]) bool {
	hit := map[string]bool{}
	for _, f := range filters {
		hit[f.key] = hit[f.key] || l.filters[f.key](row, f.value)
	}
	for _, ok := range hit {
		if !ok {
			return false
		}
	}
	return true
}

func printTable[T any](w io.Writer, rows []T, columns []column[T], id func(string) string) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	line := func(cell func(column[T]) string) {
		var cells []string
		for _, col := range columns {
			cells = append(cells, cell(col))
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	line(func(col column[T]) string { return col.head })
	for _, row := range rows {
		line(func(col column[T]) string { return col.cell(row, id) })
	}
	return t.Flush()
}

// text is a column that needs no cutting.
func text[T any](head string, cell func(T) string) column[T] {
	return column[T]{head, func(row T, _ func(string) string) string { return cell(row) }}
}

// idColumn is a column of IDs.
func idColumn[T any](head string, cell func(T) string) column[T] {
	return column[T]{head, func(row T, id func(string) string) string { return id(cell(row)) }}
}

// prefix, part and exact make matchers of a row's text.
func prefix[T any](of func(T) string) matcher[T] {
	return func(row T, v string) bool { return v != "" && strings.HasPrefix(of(row), v) }
}

func part[T any](of func(T) string) matcher[T] {
	return func(row T, v string) bool { return strings.Contains(of(row), v) }
}

func exact[T any](of func(T) string) matcher[T] {
	return func(row T, v string) bool { return of(row) == v }
}

// named matches a thing's name, or the beginning of its ID.
func named[T any](of func(T) (id, name string)) matcher[T] {
	return func(row T, v string) bool {
		id, name := of(row)
		return name == v || v != "" && strings.HasPrefix(id, v)
	}
}

// labelled matches KEY or KEY=VALUE.
func labelled[T any](of func(T) map[string]string) matcher[T] {
	return func(row T, v string) bool {
		k, want, some := strings.Cut(v, "=")
		got, ok := of(row)[k]
		return ok && (!some || got == want)
	}
}
