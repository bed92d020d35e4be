package daemon

import (
	"strings"
	"testing"
)

func TestConfigValidate(t *testing.T) {
	cases := []struct {
		name   string
		change func(*Config)
		says   []string // nil: it is valid
	}{
		{"default", func(*Config) {}, nil},
		{"relative data directory", func(c *Config) { c.DataDir = "state" }, []string{"data-dir", `"state"`, "/var/lib/heddle"}},
		{"no data directory", func(c *Config) { c.DataDir = "" }, []string{"data-dir"}},
		{"relative socket", func(c *Config) { c.Socket = "heddle.sock" }, []string{"socket", "absolute"}},
		{"longest socket", func(c *Config) { c.Socket = "/" + strings.Repeat("s", 106) }, nil},
		{"socket too long", func(c *Config) { c.Socket = "/" + strings.Repeat("s", 107) }, []string{"socket", "107"}},
		{"no control port", func(c *Config) { c.ControlPort = 0 }, []string{"control-port"}},
		{"no gossip port", func(c *Config) { c.GossipPort = 0 }, []string{"gossip-port"}},
		{"one port for both", func(c *Config) { c.GossipPort = c.ControlPort }, []string{"control-port", "gossip-port", "5377"}},
		{"log level", func(c *Config) { c.LogLevel = "loud" }, []string{"log-level", `"loud"`, "debug, info, warn or error"}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c := DefaultConfig()
			tc.change(&c)
			err := c.Validate()
			if tc.says == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			for _, s := range tc.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("error %q lacks %q", err, s)
				}
			}
		})
	}
}
