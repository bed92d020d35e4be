// Package daemon joins all parts of heddle into the process that runs on every node.
package daemon

import (
	"log/slog"
	"math"
	"path"
	"slices"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

// DefaultConfigFile is read when it exists and no other file is named.
const DefaultConfigFile = "/etc/heddle/heddle.toml"

// Config is what a daemon needs to know before it is in a cluster. The keys of the file are
// the names of the flags. What holds for a whole cluster is an argument of init.
type Config struct {
	DataDir       string `toml:"data-dir"`       // absolute path; made with mode 0700
	Socket        string `toml:"socket"`         // absolute path of the node's API
	SocketGroup   string `toml:"socket-group"`   // group that may use the socket; "" is root alone
	LogLevel      string `toml:"log-level"`      // debug, info, warn or error
	ControlPort   uint16 `toml:"control-port"`   // TCP: the managers' API and Raft
	GossipPort    uint16 `toml:"gossip-port"`    // TCP and UDP
	WireGuardPort uint16 `toml:"wireguard-port"` // UDP, for encrypted networks, and the next but one
}

// DefaultConfig is the configuration of a daemon that is told nothing.
func DefaultConfig() Config {
	return Config{DataDir: "/var/lib/heddle", Socket: local.DefaultSocket, LogLevel: "info", ControlPort: 5377, GossipPort: 5378, WireGuardPort: 5379}
}

// maxSocketPath is what fits into sockaddr_un with its final NUL (unix(7)).
const maxSocketPath = 107

// Validate checks what can be checked without touching the system.
func (c Config) Validate() error {
	switch {
	case !path.IsAbs(c.DataDir):
		return overlay.Errorf(overlay.Invalid, "data-dir %q is not an absolute path; write it as /var/lib/heddle", c.DataDir)
	case !path.IsAbs(c.Socket):
		return overlay.Errorf(overlay.Invalid, "socket %q is not an absolute path; write it as %s", c.Socket, local.DefaultSocket)
	case len(c.Socket) > maxSocketPath:
		return overlay.Errorf(overlay.Invalid, "socket %q is too long for the kernel; use at most %d bytes", c.Socket, maxSocketPath)
	case c.ControlPort == 0:
		return overlay.Errorf(overlay.Invalid, "control-port 0 is no port; use 1 to 65535, 5377 if nothing else has it")
	case c.GossipPort == 0:
		return overlay.Errorf(overlay.Invalid, "gossip-port 0 is no port; use 1 to 65535, 5378 if nothing else has it")
	case c.WireGuardPort == 0 || c.WireGuardPort > math.MaxUint16-wireGuardStep:
		return overlay.Errorf(overlay.Invalid, "wireguard-port %d does not do, since the next but one is used too; use 1 to 65533, 5379 if nothing else has it", c.WireGuardPort)
	case slices.Contains(c.WireGuardPorts(), c.GossipPort):
		return overlay.Errorf(overlay.Invalid, "wireguard-port %d takes %d too, which is the gossip-port; give them different ports", c.WireGuardPort, c.WireGuardPort+wireGuardStep)
	case c.ControlPort == c.GossipPort:
		return overlay.Errorf(overlay.Invalid, "control-port and gossip-port are both %d; give them different ports", c.ControlPort)
	}
	_, err := c.Level()
	return err
}

// wireGuardStep is from the port of the first WireGuard device to that of the second.
const wireGuardStep = 2

// WireGuardPorts are the UDP ports of the two WireGuard devices.
func (c Config) WireGuardPorts() []uint16 {
	return []uint16{c.WireGuardPort, c.WireGuardPort + wireGuardStep}
}

// Level is LogLevel as slog knows it.
func (c Config) Level() (slog.Level, error) {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	l, ok := levels[c.LogLevel]
	if !ok {
		return 0, overlay.Errorf(overlay.Invalid, "log-level %q is unknown; use debug, info, warn or error", c.LogLevel)
	}
	return l, nil
}
