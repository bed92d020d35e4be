package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/cmd/heddle/daemon"
)

// asHeddle makes the test's binary the program itself, for tests that need a process.
const asHeddle = "HEDDLE_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asHeddle) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

func TestInterrupted(t *testing.T) {
	d := startFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code, stdout, stderr := d.exec(ctx, "", nil, "network", "rm", "blue", "red")
	if code != exitFailed || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "interrupted") {
		t.Fatalf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

func TestVersion(t *testing.T) {
	d := startFake(t)
	_, stdout, _ := d.exec(t.Context(), "", nil, "version")
	if !strings.HasPrefix(stdout, "heddle ") || !strings.Contains(stdout, ", go1.") {
		t.Errorf("version prints %q", stdout)
	}
	_, stdout, _ = d.exec(t.Context(), "", nil, "version", "--format", "{{.GoVersion}} {{.OS}}/{{.Arch}}")
	if !strings.HasPrefix(stdout, "go1.") || !strings.Contains(stdout, "/") {
		t.Errorf("version by template prints %q", stdout)
	}
	_, stdout, _ = d.exec(t.Context(), "", nil, "version", "--format", "json")
	for _, field := range []string{`"Version": "`, `"GoVersion": "go1.`, `"OS": "`, `"Arch": "`} {
		if !strings.Contains(stdout, field) {
			t.Errorf("version as JSON lacks %s:\n%s", field, stdout)
		}
	}
	if len(d.asked()) != 0 {
		t.Error("version asks the daemon")
	}
}

func TestHelpOnStdout(t *testing.T) {
	d := startFake(t)
	for _, line := range []string{"", "--help", "help network", "network", "network create --help", "run -h"} {
		code, stdout, stderr := d.exec(t.Context(), "", nil, strings.Fields(line)...)
		if code != 0 || !strings.Contains(stdout, "Usage:") || stderr != "" {
			t.Errorf("heddle %s: exit %d, stdout %q, stderr %q", line, code, stdout, stderr)
		}
	}
}

// What takes longer than a second is said once, and each later change; what is quick is not.
func TestWaiting(t *testing.T) {
	cases := []struct {
		name     string
		terminal bool
		steps    []string // what is waited for, each for 600 ms
		want     string
	}{
		{"quick", false, []string{"a"}, ""},
		{"slow", false, []string{"a", "b"}, "waiting for b …\n"},
		{"changes", false, []string{"a", "b", "c", "c"}, "waiting for b …\nwaiting for c …\n"},
		{"terminal", true, []string{"a", "b", "c"}, "\r\x1b[Kwaiting for b …\r\x1b[Kwaiting for c …\r\x1b[K"},
		{"quick on a terminal", true, []string{"a"}, ""},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var b bytes.Buffer
				w := (&cli{err: &b}).startWaiter()
				w.terminal = tc.terminal
				for _, s := range tc.steps {
					w.say(s)
					time.Sleep(600 * time.Millisecond)
				}
				w.stop()
				w.say("nothing")
				time.Sleep(2 * time.Second)
				if b.String() != tc.want {
					t.Errorf("got %q, want %q", b.String(), tc.want)
				}
			})
		})
	}
}

// Flags go before the file, the file before the defaults.
func TestDaemonConfig(t *testing.T) {
	file := daemon.Config{DataDir: "/srv/heddle", Socket: "/run/heddle/other.sock", SocketGroup: "heddle", LogLevel: "warn", ControlPort: 6377, GossipPort: 6378, WireGuardPort: 5379}
	flags := daemonFlags{"testdata/good.toml", daemon.Config{DataDir: "/data", Socket: "/s", LogLevel: "debug", ControlPort: 1, GossipPort: 2, WireGuardPort: 3}}
	cases := []struct {
		name  string
		file  string
		given string
		want  daemon.Config
	}{
		{"defaults", "testdata/nosuch.toml", "", daemon.DefaultConfig()},
		{"file", "testdata/good.toml", "", file},
		{
			"all flags", "testdata/good.toml", "config socket data-dir log-level control-port gossip-port wireguard-port",
			daemon.Config{DataDir: "/data", Socket: "/s", SocketGroup: "heddle", LogLevel: "debug", ControlPort: 1, GossipPort: 2, WireGuardPort: 3},
		},
		{
			"one flag", "testdata/good.toml", "data-dir",
			daemon.Config{DataDir: "/data", Socket: file.Socket, SocketGroup: "heddle", LogLevel: "warn", ControlPort: 6377, GossipPort: 6378, WireGuardPort: 5379},
		},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			flags.file = tc.file
			got, err := flags.config(func(flag string) bool { return strings.Contains(" "+tc.given+" ", " "+flag+" ") })
			if err != nil || got != tc.want {
				t.Errorf("got %+v, %v\nwant %+v", got, err, tc.want)
			}
		})
	}
}
