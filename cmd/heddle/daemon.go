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
	var d daemonFlags
	cmd := &cobra.Command{
		Use: "daemon", Short: "Run heddle on this node", Args: noArgs,
		Long: "Run heddle on this node until it is stopped. Workloads keep their networks when it stops.\n" +
			"The configuration file has the flags' names as keys, and socket-group; flags go before it.",
	}
	def := daemon.DefaultConfig()
	fs := cmd.Flags()
	fs.StringVar(&d.file, "config", daemon.DefaultConfigFile, "configuration `file`; need not exist where it is not named")
	fs.StringVar(&d.DataDir, "data-dir", def.DataDir, "`directory` of the node's state")
	fs.StringVar(&d.LogLevel, "log-level", def.LogLevel, "`level`: debug, info, warn or error")
	fs.Uint16Var(&d.ControlPort, "control-port", def.ControlPort, "TCP `port` of the managers")
	fs.Uint16Var(&d.GossipPort, "gossip-port", def.GossipPort, "TCP and UDP `port` of gossip")
	fs.Uint16Var(&d.WireGuardPort, "wireguard-port", def.WireGuardPort, "UDP `port` of encrypted networks; the next but one is used too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := mayRun(); err != nil {
			return err
		}
		d.Socket = c.socket
		cfg, err := d.config(func(flag string) bool {
			return fs.Changed(flag) || flag == "socket" && c.env("HEDDLE_SOCKET") != ""
		})
		if err != nil {
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

// daemonFlags are the flags' values. They count where the flag is given.
type daemonFlags struct {
	file string
	daemon.Config
}

// config is the file's configuration with what the flags say instead.
func (d daemonFlags) config(given func(flag string) bool) (daemon.Config, error) {
	cfg, err := readConfig(d.file, given("config"))
	if err != nil {
		return cfg, err
	}
	override(given("socket"), &cfg.Socket, d.Socket)
	override(given("data-dir"), &cfg.DataDir, d.DataDir)
	override(given("log-level"), &cfg.LogLevel, d.LogLevel)
	override(given("control-port"), &cfg.ControlPort, d.ControlPort)
	override(given("gossip-port"), &cfg.GossipPort, d.GossipPort)
	override(given("wireguard-port"), &cfg.WireGuardPort, d.WireGuardPort)
	return cfg, cfg.Validate()
}

func override[T any](given bool, to *T, value T) {
	if given {
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
		return cfg, overlay.Errorf(overlay.Invalid, "configuration %s has an unknown key %q; use data-dir, socket, socket-group, log-level, control-port, gossip-port and wireguard-port", file, extra[0].String())
	}
	return cfg, nil
}
