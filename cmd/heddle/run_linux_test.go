package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// namespace is the path of a network namespace that lives as long as the test.
func namespace(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	holder := exec.Command("sleep", "600")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET} // no Pdeathsig: this thread may end first
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	return fmt.Sprintf("/proc/%d/ns/net", holder.Process.Pid)
}

// process runs heddle as a process of its own against the fake.
func (d *fakeDaemon) process(t *testing.T, args ...string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), asHeddle+"=1", "HEDDLE_SOCKET="+d.socket)
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	return cmd, stdout, stderr
}

func TestRun(t *testing.T) {
	d := startFake(t)
	d.namespace = namespace(t)
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("\x00garbage"), 0o755); err != nil {
		t.Fatal(err)
	}
	inside, err := os.Readlink(d.namespace)
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name   string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"in the namespace", []string{"readlink", "/proc/self/ns/net"}, 0, inside + "\n", ""},
		{"stdin and stdout", []string{"cat"}, 0, "typed\n", ""},
		{"exit code", []string{"sh", "-c", "echo bad >&2; exit 7"}, 7, "", "bad\n"},
		{"flags of the command", []string{"echo", "--network", "-q"}, 0, "--network -q\n", ""},
		{"ended by a signal", []string{"sh", "-c", "kill -SEGV $$"}, 128 + 11, "", ""},
		{"not a program", []string{garbage}, 126, "", "heddle: can't run " + garbage + ": exec format error\n"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			d.asked()
			code, stdout, stderr := d.exec(t.Context(), "typed\n", nil, append([]string{"run", "--name", "job", "--network", "blue", "--"}, tc.args...)...)
			if code != tc.code || stdout != tc.stdout || stderr != tc.stderr {
				t.Errorf("exit %d, stdout %q, stderr %q; want %d, %q, %q", code, stdout, stderr, tc.code, tc.stdout, tc.stderr)
			}
			attach := fmt.Sprintf(`POST /v1/attach {"name":"job","network":"blue","session":%d}`, os.Getpid())
			detach := fmt.Sprintf(`POST /v1/detach {"name":"job","network":"%s"}`, sampleEndpoints()[0].NetworkID)
			if got := d.asked(); len(got) != 2 || got[0] != attach || got[1] != detach {
				t.Errorf("asked %q, want %q and %q", got, attach, detach)
			}
		})
	}
}

func TestRunNamespaceGone(t *testing.T) {
	d := startFake(t)
	d.namespace = "/run/netns/nosuchnamespace"
	code, _, stderr := d.exec(t.Context(), "", nil, "run", "--network", "blue", "--", "true")
	if code != exitFailed || !strings.Contains(stderr, "/run/netns/nosuchnamespace does not exist") {
		t.Errorf("exit %d, stderr %q", code, stderr)
	}
	select {
	case <-d.detached:
	default:
		t.Error("the workload was not detached")
	}
}

// started returns once CMD has written a line.
func started(t *testing.T, r io.Reader) string {
	t.Helper()
	line := make(chan string, 1)
	go func() {
		var b []byte
		one := make([]byte, 1)
		for {
			if _, err := r.Read(one); err != nil || one[0] == '\n' {
				line <- strings.TrimSpace(string(b))
				return
			}
			b = append(b, one[0])
		}
	}()
	select {
	case s := <-line:
		return s
	case <-time.After(20 * time.Second):
		t.Fatal("the command does not start")
		return ""
	}
}

// pipeOut gives the process a pipe as stdout and returns its other end.
func pipeOut(t *testing.T, cmd *exec.Cmd) io.Reader {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); r.Close() })
	return r
}

func TestRunPassesSignals(t *testing.T) {
	ns := namespace(t)
	for _, s := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1} {
		t.Run(unix.SignalName(s), func(t *testing.T) {
			d := startFake(t)
			d.namespace = ns
			name := strings.TrimPrefix(unix.SignalName(s), "SIG")
			cmd, _, stderr := d.process(t, "run", "--network", "blue", "--", "sh", "-c",
				"trap 'exit 9' "+name+"; echo up; while :; do sleep 0.02; done")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal
			started(t, pipeOut(t, cmd))
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 9 {
				t.Errorf("exit %d, want 9; stderr %q", code, stderr)
			}
			select {
			case <-d.detached:
			default:
				t.Error("the workload was not detached")
			}
		})
	}
}

// When heddle is killed, the command dies too.
func TestRunKilled(t *testing.T) {
	d := startFake(t)
	d.namespace = namespace(t)
	cmd, _, _ := d.process(t, "run", "--network", "blue", "--", "sh", "-c", "echo $$; exec sleep 600")
	pid := 0
	if _, err := fmt.Sscan(started(t, pipeOut(t, cmd)), &pid); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 20_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 {
			t.Fatalf("the command outlives heddle: %v", err)
		}
		return
	}
}

// Ctrl-C on a terminal reaches the command once: from the terminal, not from heddle too.
func TestRunOnTerminal(t *testing.T) {
	d := startFake(t)
	d.namespace = namespace(t)
	master, slave := openPTY(t)
	cmd, _, _ := d.process(t, "run", "--network", "blue", "--", "sh", "-c",
		`n=0; trap 'n=$((n+1))' INT; echo up; while [ $n = 0 ]; do sleep 0.02; done; sleep 0.2; exit $((20+n))`)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if s := started(t, master); s != "up" {
		t.Fatalf("the command says %q", s)
	}
	if _, err := master.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 21 {
		t.Errorf("exit %d, want 21: one SIGINT", code)
	}
}

func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no pseudo-terminals here: ", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// The daemon says in one line that it needs root.
func TestDaemonNeedsRoot(t *testing.T) {
	d := startFake(t)
	cmd, _, stderr := d.process(t, "daemon", "--data-dir", t.TempDir())
	if os.Geteuid() == 0 {
		cmd.Path = "/proc/self/exe" // another user can't reach the test's directory
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != exitFailed || strings.Count(stderr.String(), "\n") != 1 || !strings.Contains(stderr.String(), "root") {
		t.Errorf("exit %d, stderr %q", code, stderr)
	}
}

// A socket that this user may not open is told apart from one where nobody answers.
func TestSocketDenied(t *testing.T) {
	d := startFake(t)
	cmd, _, stderr := d.process(t, "status")
	if os.Geteuid() != 0 {
		t.Skip("needs root: becomes another user")
	}
	cmd.Path = "/proc/self/exe"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(stderr.String(), "no permission on the daemon's socket") {
		t.Errorf("exit %d, stderr %q", code, stderr)
	}
}
