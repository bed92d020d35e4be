// Package netns makes, opens and enters network namespaces. It is the only place that
// locks operating-system threads.
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// Run is where `ip netns` keeps named namespaces.
const Run Dir = "/run/netns"

// Dir is a directory of named network namespaces: each a file onto which the namespace is
// mounted.
type Dir string

// Path is where the namespace of that name stands.
func (d Dir) Path(name string) string { return filepath.Join(string(d), name) }

// Open opens the namespace at path. With an inode, it must be the one that is meant.
func Open(path string, inode uint64) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, datapath.Errorf(datapath.NoNamespace, "namespace %s does not exist; start the workload, or detach it", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", path, err)
	}
	ino, err := InodeOf(f)
	if err == nil && inode != 0 && ino != inode {
		err = datapath.Errorf(datapath.Replaced, "another namespace stands at %s than the one that was attached; detach the workload and attach it again", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Inode is the inode of the namespace at path, which tells it from every other that exists.
func Inode(path string) (uint64, error) {
	f, err := Open(path, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return InodeOf(f)
}

// InodeOf is the inode of an open namespace.
func InodeOf(f *os.File) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", f.Name(), err)
	}
	if st.Type != unix.NSFS_MAGIC {
		return 0, datapath.Errorf(datapath.NoNamespace, "%s is no network namespace; name one under /run/netns or /proc/PID/ns/net", f.Name())
	}
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil {
		return 0, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return s.Ino, nil
}

// Do runs fn on a thread of its own inside the namespace, and ends the thread. Goroutines
// that fn starts run elsewhere; sockets that it opens stay in the namespace.
func Do(ns *os.File, fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return datapath.Errorf(faultOf(err), "enter namespace %s: %w; heddle needs root", ns.Name(), err)
		}
		return fn()
	})
}

// Visit is Do for what takes no time, such as to open a socket: its thread comes back, which costs a
// fifteenth of a new one. fn must not wait for anything.
func Visit(ns *os.File, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		back, err := visit(ns, fn)
		if back {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine
		done <- err
	}()
	return <-done
}

// visit runs fn inside a namespace, and says whether the calling thread is back where it was.
func visit(ns *os.File, fn func() error) (back bool, err error) {
	// The process's own is that of its first thread, which may have been left elsewhere.
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return true, fmt.Errorf("open the own namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return true, datapath.Errorf(faultOf(err), "enter namespace %s: %w; heddle needs root", ns.Name(), err)
	}
	err = fn()
	return unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil, err
}

func faultOf(err error) datapath.Fault {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return datapath.Denied
	case errors.Is(err, unix.EINVAL):
		return datapath.NoNamespace
	}
	return ""
}

// onThread never unlocks: the runtime ends a thread whose locked goroutine returns, so that
// no other goroutine meets a thread that stayed in a foreign namespace.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- fn()
	}()
	return <-done
}

// Temporary runs fn inside a namespace that is gone afterwards.
func Temporary(fn func() error) error {
	return onThread(func() error {
		if err := unshare(); err != nil {
			return err
		}
		return fn()
	})
}

func unshare() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return datapath.Errorf(faultOf(err), "make a network namespace: %w; heddle needs root and a kernel with CONFIG_NET_NS", err)
	}
	return nil
}

// mountPoint is what a file holds that heddle made to mount a namespace on: one that a crash
// has left without a namespace is known by it, and removed.
const mountPoint = "heddle\n"

// Make makes a namespace and, after prepare has run inside it, gives it the name. A name
// is never seen on a namespace that is not prepared. An existing one is an error that
// wraps os.ErrExist.
func (d Dir) Make(name string, prepare func() error) error {
	if err := d.share(); err != nil {
		return err
	}
	path := d.Path(name)
	if ok, err := mounted(path); err != nil {
		return err
	} else if ok {
		return fmt.Errorf("make namespace %s: %w", path, os.ErrExist)
	}
	err := onThread(func() error {
		if err := unshare(); err != nil {
			return err
		}
		if err := prepare(); err != nil {
			return err
		}
		// A file that is there has no namespace: a crash or an unmount has left it.
		if err := os.WriteFile(path, []byte(mountPoint), 0o444); err != nil {
			return fmt.Errorf("make namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount namespace %s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		os.Remove(path)
	}
	return err
}

// share makes the directory a shared mount, as `ip netns add` does, so that the names in
// it reach mount namespaces made before them.
func (d Dir) share() error {
	if err := os.MkdirAll(string(d), 0o755); err != nil {
		return fmt.Errorf("make %s: %w", d, err)
	}
	share := func() error { return unix.Mount("", string(d), "none", unix.MS_SHARED|unix.MS_REC, "") }
	err := share()
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err = unix.Mount(string(d), string(d), "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = share()
		}
	}
	if err != nil {
		return datapath.Errorf(faultOf(err), "share mount %s: %w; heddle needs root", d, err)
	}
	return nil
}

// mounted says whether a namespace stands at path.
func mounted(path string) (bool, error) {
	var st unix.Statfs_t
	switch err := unix.Statfs(path, &st); {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("statfs %s: %w", path, err)
	}
	return st.Type == unix.NSFS_MAGIC, nil
}

// Remove takes the name away; the namespace ends when nobody else holds it. A name that
// does not exist is no error.
func (d Dir) Remove(name string) error {
	path := d.Path(name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove namespace: %w", err)
	}
	return nil
}

// List names the namespaces of the directory, and clears away what a crash of Make has left.
// It is not for use beside Make.
func (d Dir) List() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		switch ok, err := mounted(d.Path(e.Name())); {
		case err != nil:
		case ok:
			names = append(names, e.Name())
		default:
			if b, err := os.ReadFile(d.Path(e.Name())); err == nil && string(b) == mountPoint {
				os.Remove(d.Path(e.Name()))
			}
		}
	}
	return names, nil
}
