package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/cmd/heddle/daemon"
	"github.com/heddle-net/heddle/overlay"
)

func (c *cli) daemonCmd() *cobra.Command {
	var file string
	var given daemon.Config
	cmd := &cobra.Command{Use: "daemon", Short: "Run heddle on this node", Args: noArgs,
		Long: "Run heddle on this node until it is stopped. Workloads keep their networks when it stops.\n" +
			"The configuration file has the flags' names as keys, and socket-group; flags go before it."}
	def := daemon.DefaultConfig()
	fs := cmd.Flags()
	fs.StringVar(&file, "config", daemon.DefaultConfigFile, "configuration file; need not exist where it is not named")
	fs.StringVar(&given.DataDir, "data-dir", def.DataDir, "directory of the node's state")
	fs.StringVar(&given.LogLevel, "log-level", def.LogLevel, "debug, info, warn or error")
	fs.Uint16Var(&given.ControlPort, "control-port", def.ControlPort, "TCP port of the managers")
	fs.Uint16Var(&given.GossipPort, "gossip-port", def.GossipPort, "TCP and UDP port of gossip")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := readConfig(file, fs.Changed("config"))
		if err != nil {
			return err
		}
		if fs.Changed("socket") || c.env("HEDDLE_SOCKET") != "" {
			cfg.Socket = c.socket
		}
		override(fs.Changed, "data-dir", &cfg.DataDir, given.DataDir)
		override(fs.Changed, "log-level", &cfg.LogLevel, given.LogLevel)
		override(fs.Changed, "control-port", &cfg.ControlPort, given.ControlPort)
		override(fs.Changed, "gossip-port", &cfg.GossipPort, given.GossipPort)
		if err := cfg.Validate(); err != nil {
			return usage(cmd, err)
		}
		level, err := cfg.Level()
		if err != nil {
			return usage(cmd, err)
		}
		log := slog.New(slog.NewTextHandler(c.err, &slog.HandlerOptions{Level: level}))
		return runDaemon(cmd.Context(), cfg, log)
	}
	return cmd
}

func override[T any](changed func(string) bool, name string, to *T, value T) {
	if changed(name) {
		*to = value
	}
}

// readConfig reads the file over the defaults. One that was not asked for may be missing.
func readConfig(file string, named bool) (daemon.Config, error) {
	cfg := daemon.DefaultConfig()
	meta, err := toml.DecodeFile(file, &cfg)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !named:
		return cfg, nil
	case err != nil:
		return cfg, overlay.Errorf(overlay.Invalid, "read the configuration %s: %s", file, strings.TrimPrefix(err.Error(), "toml: "))
	}
	if extra := meta.Undecoded(); len(extra) > 0 {
		return cfg, overlay.Errorf(overlay.Invalid, "configuration %s has an unknown key %q; use data-dir, socket, socket-group, log-level, control-port and gossip-port", file, extra[0].String())
	}
	return cfg, nil
}
