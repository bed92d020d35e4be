package netns

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

func newDir(t *testing.T) Dir {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	d := Dir(t.TempDir())
	t.Cleanup(func() {
		names, _ := d.List()
		for _, n := range names {
			d.Remove(n)
		}
		unix.Unmount(string(d), unix.MNT_DETACH)
	})
	return d
}

func nothing() error { return nil }

func current(t *testing.T) uint64 {
	t.Helper()
	i, err := Inode("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestNamespace(t *testing.T) {
	d := newDir(t)
	here := current(t)
	var inside uint64
	if err := d.Make("a", func() error { inside = current(t); return nil }); err != nil {
		t.Fatal(err)
	}
	inode, err := Inode(d.Path("a"))
	if err != nil || inode != inside || inode == here {
		t.Fatalf("inode %d, %v; made %d, here %d", inode, err, inside, here)
	}
	if err := d.Make("a", nothing); !errors.Is(err, os.ErrExist) {
		t.Errorf("made twice: %v", err)
	}
	f, err := Open(d.Path("a"), inode)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 100 {
		if err := Visit(f, func() error { inside = current(t); return nil }); err != nil || inside != inode || current(t) != here {
			t.Fatalf("visited %d, then at %d: %v", inside, current(t), err)
		}
	}
	boom := errors.New("boom")
	err = Do(f, func() error {
		if i := current(t); i != inode {
			t.Errorf("Do runs in %d, not %d", i, inode)
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Errorf("Do returns %v", err)
	}
	if i := current(t); i != here {
		t.Errorf("this goroutine is in %d after Do, was in %d", i, here)
	}
	if names, err := d.List(); err != nil || !slices.Equal(names, []string{"a"}) {
		t.Errorf("list: %v, %v", names, err)
	}
	for range 2 {
		if err := d.Remove("a"); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if names, _ := d.List(); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
}

func TestFaults(t *testing.T) {
	d := newDir(t)
	if err := d.Make("a", nothing); err != nil {
		t.Fatal(err)
	}
	inode, _ := Inode(d.Path("a"))
	plain := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, path string
		inode      uint64
		want       datapath.Fault
	}{
		{"any", d.Path("a"), 0, ""},
		{"the one", d.Path("a"), inode, ""},
		{"another one", d.Path("a"), inode + 1, datapath.Replaced},
		{"none", d.Path("b"), 0, datapath.NoNamespace},
		{"a plain file", plain, 0, datapath.NoNamespace},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Open(tt.path, tt.inode)
			if err == nil {
				f.Close()
			}
			if (err == nil) != (tt.want == "") || datapath.FaultOf(err) != tt.want {
				t.Errorf("%v, want fault %q", err, tt.want)
			}
		})
	}
}

func TestMakeAfterACrash(t *testing.T) {
	d := newDir(t)
	if err := d.Make("half", func() error { return errors.New("no") }); err == nil {
		t.Fatal("prepare failed, Make did not")
	}
	if _, err := os.Stat(d.Path("half")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed Make leaves %v", err)
	}
	if err := os.WriteFile(d.Path("stale"), nil, 0o444); err != nil { // between file and mount
		t.Fatal(err)
	}
	if names, _ := d.List(); len(names) > 0 {
		t.Errorf("list: %v", names)
	}
	if err := d.Make("stale", nothing); err != nil {
		t.Errorf("over a stale file: %v", err)
	}
}

func TestTemporary(t *testing.T) {
	newDir(t)
	here := current(t)
	if err := Temporary(func() error {
		if current(t) == here {
			t.Error("not in a namespace of its own")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// A crash between the file and its namespace leaves a file that the next listing removes. An
// empty one, as ip netns makes, is somebody else's.
func TestListClearsWhatACrashLeft(t *testing.T) {
	d := Dir(t.TempDir())
	for name, content := range map[string]string{"ours": mountPoint, "theirs": ""} {
		if err := os.WriteFile(d.Path(name), []byte(content), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := d.List(); err != nil || len(names) > 0 {
		t.Fatalf("List: %v, %v", names, err)
	}
	if _, err := os.Stat(d.Path("ours")); !os.IsNotExist(err) {
		t.Errorf("our leftover stays: %v", err)
	}
	if _, err := os.Stat(d.Path("theirs")); err != nil {
		t.Errorf("a file of somebody else is gone: %v", err)
	}
}
