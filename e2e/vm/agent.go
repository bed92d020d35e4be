//go:build linux

package vm

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	agentArg = "heddle-vm-agent" // argv[1] of the agent
	portName = "heddle.agent"    // of the serial port between host and agent
)

// A request asks the agent to start a command, or to send a signal to one. An answer is its
// end; the one with number 0 says that an agent has started. Both travel as lines of JSON.
type (
	request struct {
		ID     int
		Args   []string
		Signal unix.Signal // to the command's process group
	}
	answer struct {
		ID       int
		Out, Err []byte
		Code     int    // as a shell counts: 128 and the number for a signal
		Failed   string // why it could not be started
		Boot     string // with number 0: the kernel's boot_id
	}
)

// Main makes the calling program the agent of a host when it was started as one, and does not
// return then.
func Main() {
	if len(os.Args) < 2 || os.Args[1] != agentArg {
		return
	}
	fmt.Fprintln(os.Stderr, serve())
	os.Exit(1)
}

// serve returns why it can't go on.
func serve() error {
	port, err := openPort()
	if err != nil {
		return err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	a := &agent{port: port, running: map[int]int{}}
	fmt.Fprintln(port) // ends what a former agent may have begun to say
	a.tell(answer{Boot: strings.TrimSpace(string(boot))})
	lines := bufio.NewReader(port)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return err
		}
		var r request
		if json.Unmarshal(line, &r) == nil { // else the rest of a line to a former agent
			a.handle(r)
		}
	}
}

// openPort opens the serial port by its name, which the kernel knows before udev runs.
func openPort() (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, f := range names {
		if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == portName {
			return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(f)), os.O_RDWR, 0)
		}
	}
	return nil, errors.New("there is no serial port for the agent")
}

type agent struct {
	mu      sync.Mutex // guards what follows
	port    io.Writer
	running map[int]int // request → process
}

func (a *agent) tell(v answer) {
	b, err := json.Marshal(v)
	if err != nil {
		b = fmt.Appendf(nil, `{"ID":%d,"Failed":%q}`, v.ID, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_, _ = a.port.Write(append(b, '\n'))
}

func (a *agent) handle(r request) {
	if len(r.Args) == 0 {
		a.mu.Lock()
		defer a.mu.Unlock()
		if pid := a.running[r.ID]; pid != 0 {
			_ = unix.Kill(-pid, r.Signal)
		}
		return
	}
	var out, errs bytes.Buffer
	cmd := exec.Command(r.Args[0], r.Args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &errs, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		a.tell(answer{ID: r.ID, Failed: err.Error()})
		return
	}
	a.mu.Lock()
	a.running[r.ID] = cmd.Process.Pid
	a.mu.Unlock()
	go func() {
		err := cmd.Wait()
		a.mu.Lock()
		delete(a.running, r.ID)
		a.mu.Unlock()
		v := answer{ID: r.ID, Out: out.Bytes(), Err: errs.Bytes()}
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			st := e.Sys().(syscall.WaitStatus)
			if v.Code = st.ExitStatus(); st.Signaled() {
				v.Code = 128 + int(st.Signal())
			}
		} else if err != nil {
			v.Failed = err.Error()
		}
		a.tell(v)
	}()
}
