//go:build linux

package daemon

import (
	"fmt"
	"os"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// fdStore keeps descriptors while the daemon restarts: its supervisor holds copies of them, as
// sd_notify(3) has it (FDSTORE=1), and hands them to the next daemon. Without a supervisor it keeps
// nothing.
type fdStore struct {
	socket string              // where the supervisor listens; "" where there is none
	had    map[string]*os.File // what an earlier daemon has left and nobody has taken yet
}

// openFDStore takes what an earlier daemon has left. It is called once, by the process.
func openFDStore() *fdStore {
	s := &fdStore{socket: os.Getenv("NOTIFY_SOCKET"), had: map[string]*os.File{}}
	for _, f := range activation.Files(true) {
		if old := s.had[f.Name()]; old != nil {
			old.Close()
		}
		s.had[f.Name()] = f
	}
	return s
}

// take is the descriptor of a name that an earlier daemon has left, or nil. It is the caller's then.
func (s *fdStore) take(name string) *os.File {
	f := s.had[name]
	delete(s.had, name)
	return f
}

// put has the supervisor hold a descriptor under a name.
func (s *fdStore) put(name string, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = s.notify("FDSTORE=1\nFDNAME="+name, int(fd)) })
	if err == nil {
		err = failed
	}
	return err
}

// remove has the supervisor let go of a name.
func (s *fdStore) remove(name string) error {
	return s.notify("FDSTOREREMOVE=1\nFDNAME=" + name)
}

// rest lets go of what nobody has taken.
func (s *fdStore) rest() (err error) {
	for name, f := range s.had {
		f.Close()
		if e := s.remove(name); e != nil {
			err = e
		}
	}
	clear(s.had)
	return err
}

func (s *fdStore) notify(state string, fds ...int) error {
	if s.socket == "" {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("tell the supervisor: %w", err)
	}
	defer unix.Close(fd)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(fd, []byte(state), rights, &unix.SockaddrUnix{Name: s.socket}, 0); err != nil {
		return fmt.Errorf("tell the supervisor: %w", err)
	}
	return nil
}
