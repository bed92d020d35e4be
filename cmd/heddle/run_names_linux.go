package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath/netns"
)

// askers are where programs of the host answer for the C library in place of /etc/resolv.conf
// (nss-resolve(8), nscd(8)); they know no workload's names.
var askers = []string{"/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket"}

// showNames gives the calling thread, and what it starts, mounts of its own in which the resolv.conf
// of a namespace stands in place of the host's, as `ip netns exec` does (ip-netns(8)). A namespace
// without one changes nothing.
func showNames(namespace string) error {
	file := filepath.Join("/etc/netns", filepath.Base(namespace), "resolv.conf")
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) || namespace != netns.Run.Path(filepath.Base(namespace)) {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep mounts from the host: %w", err)
	}
	if err := unix.Mount(file, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s on /etc/resolv.conf: %w", file, err)
	}
	for _, socket := range askers {
		if _, err := os.Stat(socket); err != nil {
			continue
		}
		if err := unix.Mount(os.DevNull, socket, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("hide %s: %w", socket, err)
		}
	}
	return nil
}
