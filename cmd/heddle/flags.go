package main

import (
	"net/netip"
	"strings"

	"github.com/spf13/pflag"

	"github.com/heddle-net/heddle/overlay"
)

// flagValue is a flag whose text a function understands. It implements pflag.Value.
type flagValue struct {
	set  func(text string) error
	kind string // shown in the help as the value's place
	text string
}

func (f *flagValue) String() string { return f.text }
func (f *flagValue) Type() string   { return f.kind }

func (f *flagValue) Set(s string) error {
	err := f.set(s)
	if err == nil {
		f.text = s
	}
	return err
}

// parsed adds a flag with one value. parse is given the flag's name for its message.
func parsed[T any](fs *pflag.FlagSet, to *T, name, kind, help string, parse func(option, s string) (T, error)) {
	fs.Var(&flagValue{kind: kind, set: func(s string) (err error) {
		*to, err = parse("--"+name, s)
		return err
	}}, name, help)
}

// repeated adds a flag that may stand several times.
func repeated[T any](fs *pflag.FlagSet, to *[]T, name, kind, help string, parse func(option, s string) (T, error)) {
	repeatedP(fs, to, name, "", kind, help, parse)
}

// repeatedP is repeated with a letter for short.
func repeatedP[T any](fs *pflag.FlagSet, to *[]T, name, letter, kind, help string, parse func(option, s string) (T, error)) {
	fs.VarP(&flagValue{kind: kind, set: func(s string) error {
		v, err := parse("--"+name, s)
		*to = append(*to, v)
		return err
	}}, name, letter, help+" (may be repeated)")
}

// pair is a k=v.
type pair[T any] struct {
	key   string
	value T
}

func parseLabel(_, s string) (pair[string], error) {
	k, v, _ := strings.Cut(s, "=")
	return pair[string]{k, v}, nil
}

func parseOption(option, s string) (pair[string], error) {
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" {
		return pair[string]{}, overlay.Errorf(overlay.Invalid, "%s %q is no option; write it as mtu=1400", option, s)
	}
	return pair[string]{k, v}, nil
}

func parseAux(option, s string) (pair[netip.Addr], error) {
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" {
		return pair[netip.Addr]{}, overlay.Errorf(overlay.Invalid, "%s %q has no name; write it as router=10.20.0.9", option, s)
	}
	a, err := overlay.ParseAddr(option, v)
	return pair[netip.Addr]{k, a}, err
}

func toMap[T any](pairs []pair[T]) map[string]T {
	if len(pairs) == 0 {
		return nil
	}
	m := map[string]T{}
	for _, p := range pairs {
		m[p.key] = p.value
	}
	return m
}

func parseMAC(option, s string) (overlay.MAC, error) {
	m, err := overlay.ParseMAC(s)
	if err != nil {
		err = overlay.Errorf(overlay.Invalid, "%s %w", option, err)
	}
	return m, err
}

func parseName(what string) func(option, s string) (string, error) {
	return func(_, s string) (string, error) { return s, overlay.ValidateName(what, s) }
}

func parseAvailability(option, s string) (overlay.Availability, error) {
	switch a := overlay.Availability(s); a {
	case overlay.Active, overlay.Pause, overlay.Drain:
		return a, nil
	}
	return "", overlay.Errorf(overlay.Invalid, "%s %q is unknown; use active, pause or drain", option, s)
}

// nonEmpty takes any text but none: an empty one is mostly a shell variable not set.
func nonEmpty(option, s string) (string, error) {
	if s == "" {
		return "", overlay.Errorf(overlay.Invalid, "%s is empty; give it a value or leave it out", option)
	}
	return s, nil
}
