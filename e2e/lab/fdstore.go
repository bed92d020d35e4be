//go:build linux

package lab

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// fdStore holds descriptors for a host's daemon while that is away, as systemd does (sd_notify(3),
// FDSTORE=1): whatever daemon starts next gets them.
type fdStore struct{ held []heldFD }

type heldFD struct {
	name string
	fd   int
}

// note takes a message of the daemon's, with the descriptors that came with it. It says whether the
// daemon is ready.
func (s *fdStore) note(text string, oob []byte) (ready bool) {
	var fds []int
	if msgs, err := unix.ParseSocketControlMessage(oob); err == nil {
		for i := range msgs {
			if f, err := unix.ParseUnixRights(&msgs[i]); err == nil {
				fds = append(fds, f...)
			}
		}
	}
	said := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		said[key] = value
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		if said["FDSTORE"] != "1" {
			unix.Close(fd)
			continue
		}
		s.held = append(s.held, heldFD{said["FDNAME"], fd})
	}
	if said["FDSTOREREMOVE"] == "1" {
		s.held = slices.DeleteFunc(s.held, func(h heldFD) bool {
			if h.name == said["FDNAME"] {
				unix.Close(h.fd)
			}
			return h.name == said["FDNAME"]
		})
	}
	return said["READY"] == "1"
}

// all are the descriptors that are held, and their names.
func (s *fdStore) all() (fds []uintptr, names []string) {
	for _, h := range s.held {
		fds, names = append(fds, uintptr(h.fd)), append(names, h.name)
	}
	return fds, names
}
