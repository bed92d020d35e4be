package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/heddle-net/heddle/overlay"
)

// healthFlags say how it is found out whether a workload, or what is behind a service, works.
type healthFlags struct{ h overlay.Health }

func (f *healthFlags) add(fs *pflag.FlagSet, kinds, help string, parse func(option, s string) (overlay.Health, error)) {
	fs.Var(&flagValue{kind: kinds, set: func(s string) error {
		h, err := parse("--health", s)
		f.h.Kind, f.h.Path = h.Kind, h.Path
		return err
	}}, "health", help)
	parsed(fs, &f.h.Port, "health-port", "port", "port to probe; default the target of the service's first tcp port", func(option, s string) (uint16, error) {
		return spec{option, s, "80"}.port(s)
	})
	fs.DurationVar(&f.h.Interval, "health-interval", 0, "`time` between probes, 100ms to 1h; default 500ms")
	fs.DurationVar(&f.h.Timeout, "health-timeout", 0, "`time` after which a probe has failed, 10ms to 1m; default 500ms")
	fs.IntVar(&f.h.Rise, "health-rise", 0, "`number` of probes in a row that succeed until it is healthy; default 1")
	fs.IntVar(&f.h.Fall, "health-fall", 0, "`number` of probes in a row that fail until it is not; default 2")
}

// health is what the flags ask for, or nothing.
func (f *healthFlags) health(cmd *cobra.Command) (overlay.Health, error) {
	for _, name := range []string{"health-port", "health-interval", "health-timeout", "health-rise", "health-fall"} {
		if f.h.Kind == "" && cmd.Flags().Changed(name) {
			return f.h, usagef(cmd, "--%s says how to probe, but nothing says to; add --health tcp or --health http:/path", name)
		}
	}
	return f.h, nil
}

func parseHealth(option, s string) (h overlay.Health, err error) {
	kind, path, _ := strings.Cut(s, ":")
	switch {
	case s == "tcp":
		return overlay.Health{Kind: overlay.HealthTCP}, nil
	case kind == "http" && strings.HasPrefix(path, "//"):
		return h, overlay.Errorf(overlay.Invalid, "%s %q names a host, but the workload itself is asked; write it as http:/path", option, s)
	case kind == "http" && strings.HasPrefix(path, "/"):
		return overlay.Health{Kind: overlay.HealthHTTP, Path: path}, nil
	}
	return h, overlay.Errorf(overlay.Invalid, "%s %q is unknown; use tcp or http:/path", option, s)
}

// parseNewHealth knows none besides, which ends the probes.
func parseNewHealth(option, s string) (overlay.Health, error) {
	if s == "none" {
		return overlay.Health{}, nil
	}
	return parseHealth(option, s)
}
