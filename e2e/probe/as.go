//go:build linux

package probe

import (
	"errors"
	"os"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"
)

// as UID PROGRAM [ARG...]: becomes the program, run as another user.
func as(args []string) error {
	if len(args) < 2 {
		return errors.New("as: needs a user ID and a program")
	}
	uid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	path, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	if err := unix.Setgroups(nil); err != nil {
		return err
	}
	if err := unix.Setresgid(uid, uid, uid); err != nil {
		return err
	}
	if err := unix.Setresuid(uid, uid, uid); err != nil {
		return err
	}
	return unix.Exec(path, args[1:], os.Environ())
}
