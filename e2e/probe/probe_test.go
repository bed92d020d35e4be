//go:build linux

package probe_test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/e2e/probe"
)

func TestMain(m *testing.M) {
	probe.Main()
	os.Exit(m.Run())
}

func TestPingOfTheOwnHost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: raw sockets")
	}
	for _, addr := range []string{"127.0.0.1", "::1"} {
		args := probe.Args("ping", "-c", "5", "-i", "1ms", addr)
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), "sent 5, answered 5") {
			t.Errorf("%s: %q, %v", addr, out, err)
		}
	}
}

func TestAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: changes the user")
	}
	args := probe.Args("as", "65534", "sh", "-c", "id -u; id -G; cat /etc/shadow")
	out, err := exec.Command(args[0], args[1:]...).Output()
	if e, ok := errors.AsType[*exec.ExitError](err); !ok || string(out) != "65534\n65534\n" {
		t.Errorf("%q, %v", out, e)
	}
}
