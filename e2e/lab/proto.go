//go:build linux

package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The lab and the first process of a host speak over a SOCK_SEQPACKET pair: one JSON object
// a packet. The lab sends a setup, then requests; the first process sends events. When either
// end goes away so does the host.

type setup struct {
	Name  string `json:"name"`
	Data  string `json:"data"`  // directory that becomes /var/lib/heddle
	Hosts string `json:"hosts"` // content of /etc/hosts
	Path  string `json:"path"`  // PATH
}

// request asks to start a process (with its standard input, output and error attached) or to
// send a signal.
type request struct {
	ID         int           `json:"id"`
	Args       []string      `json:"args,omitempty"`
	Env        []string      `json:"env,omitempty"`
	Notify     bool          `json:"notify,omitempty"`
	Restart    time.Duration `json:"restart,omitempty"`
	Foreground bool          `json:"foreground,omitempty"`

	Signal unix.Signal `json:"signal,omitempty"`
	Group  bool        `json:"group,omitempty"` // signal its process group
	Final  bool        `json:"final,omitempty"` // no restart after this
}

// event tells what happened to the process with the ID; ID 0 is the host itself.
type event struct {
	ID     int         `json:"id"`
	What   what        `json:"what"`
	PID    int         `json:"pid,omitempty"` // as in the host
	Code   int         `json:"code,omitempty"`
	Signal unix.Signal `json:"signal,omitempty"`
	Err    string      `json:"err,omitempty"`
}

type what string

const (
	up      what = "up"      // the host is ready for requests
	started what = "started" // again after each restart
	ready   what = "ready"   // READY=1 came on NOTIFY_SOCKET
	exited  what = "exited"  // and will not be restarted
	failed  what = "failed"  // could not be started; for the host: could not be made
)

const maxPacket = 128 << 10

func send(c *net.UnixConn, v any, files ...*os.File) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxPacket {
		return fmt.Errorf("a message of %d bytes is too long for the host's control socket", len(b))
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(b, oob, nil)
	return err
}

// receive reads one message and the descriptors that came with it. buf is its scratch space.
func receive(c *net.UnixConn, buf []byte, v any) (fds []int, err error) {
	oob := make([]byte, unix.CmsgSpace(3*4))
	n, on, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	if msgs, err := unix.ParseSocketControlMessage(oob[:on]); err == nil {
		for i := range msgs {
			if f, err := unix.ParseUnixRights(&msgs[i]); err == nil {
				fds = append(fds, f...)
			}
		}
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds, json.Unmarshal(buf[:n], v)
}

// controlPair makes the two ends; the second is for the child.
func controlPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	mine, err := controlConn(os.NewFile(uintptr(fds[0]), "control"))
	return mine, os.NewFile(uintptr(fds[1]), "control"), err
}

func controlConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("control descriptor is no unix socket")
	}
	return u, nil
}
