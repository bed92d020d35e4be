package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
)

// format is how rows are printed: as JSON, by a Go template, or (neither) the verb's own way.
type format struct {
	json bool
	tmpl *template.Template
}

var templateFuncs = template.FuncMap{
	"json": func(v any) (string, error) {
		b, err := marshal(v, "")
		return string(bytes.TrimSpace(b)), err
	},
	"join": strings.Join, "lower": strings.ToLower, "upper": strings.ToUpper,
}

// escapes are read in templates as Docker reads them, so that '{{.ID}}\t{{.Name}}' does what it says.
var escapes = strings.NewReplacer(`\t`, "\t", `\n`, "\n")

func parseFormat(option, s string) (f format, err error) {
	switch s {
	case "table", "":
		return f, nil
	case "json":
		return format{json: true}, nil
	}
	f.tmpl, err = template.New("template").Funcs(templateFuncs).Parse(escapes.Replace(s))
	if err != nil {
		return f, overlay.Errorf(overlay.Invalid, "%s: %s", option, strings.TrimPrefix(err.Error(), "template: "))
	}
	if !strings.Contains(s, "{{") {
		return f, overlay.Errorf(overlay.Invalid, "%s %q is neither table nor json nor a Go template like '{{.ID}}'", option, s)
	}
	return f, nil
}

// marshal is JSON without the escapes that HTML needs.
func marshal(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	err := e.Encode(v)
	return b.Bytes(), err
}

// printJSON prints a value as people read it.
func printJSON(w io.Writer, v any) error {
	b, err := marshal(v, "    ")
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

// printRows prints rows as a JSON array or each by the template, or nothing when one fails.
func printRows[T any](cmd *cobra.Command, f format, rows []T) error {
	if f.tmpl == nil {
		if rows == nil {
			rows = []T{}
		}
		return printJSON(cmd.OutOrStdout(), rows)
	}
	var b bytes.Buffer
	for _, row := range rows {
		if err := f.tmpl.Execute(&b, row); err != nil {
			return templateError[T](cmd, err)
		}
		b.WriteByte('\n')
	}
	_, err := b.WriteTo(cmd.OutOrStdout())
	return err
}

// templateError says which fields there are, since that is what is mostly wrong.
func templateError[T any](cmd *cobra.Command, err error) error {
	if e, ok := errors.AsType[template.ExecError](err); ok {
		err = e.Err
	}
	_, msg, ok := strings.Cut(err.Error(), ">: ")
	if !ok {
		msg = err.Error()
	}
	var names []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[T]()) {
		names = append(names, f.Name)
	}
	return usagef(cmd, "--format: %s; a row has %s", msg, strings.Join(names, ", "))
}
