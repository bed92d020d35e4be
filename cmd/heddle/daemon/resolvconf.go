//go:build linux

package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/heddle-net/heddle/overlay/names"
)

// netnsEtc has the files that `ip netns exec NAME` shows in place of those in /etc (ip-netns(8)).
const netnsEtc = "/etc/netns"

// resolvMark begins the files that heddle writes. Others' are left alone.
const resolvMark = "# by heddle for workload "

// resolvFiles are the resolv.conf(5) of the namespaces that heddle has made.
type resolvFiles struct {
	dir     string
	written map[string]string // nil before the first look
}

// write makes the files those of a table. One that a program has open changes under its eyes.
func (r *resolvFiles) write(t *names.Table) (err error) {
	if r.written == nil {
		r.written = r.find()
	}
	want := map[string]string{}
	for _, a := range t.Askers() {
		if a.Make != "" {
			want[a.Make] = resolvText(a)
		}
	}
	for name := range r.written {
		if want[name] == "" {
			err = errors.Join(err, r.remove(name))
		}
	}
	for name, text := range want {
		if r.written[name] != text {
			err = errors.Join(err, r.put(name, text))
		}
	}
	return err
}

// resolvText sends a workload to the gateways of the network that its default route goes through.
func resolvText(a *names.Asker) string {
	text := fmt.Sprintf("%s%s; it changes with its networks\nsearch %s\n", resolvMark, a.Make, names.Domain)
	for _, four := range []bool{true, false} {
		for _, at := range gateways(a) {
			if at.Is4() == four {
				text += fmt.Sprintf("nameserver %s\n", at)
				break
			}
		}
	}
	return text
}

func gateways(a *names.Asker) (all []netip.Addr) {
	for _, s := range a.Zones()[0].Subnets {
		all = append(all, s.Gateway)
	}
	return all
}

func (r *resolvFiles) path(name string) string { return filepath.Join(r.dir, name, "resolv.conf") }

// find reads what an earlier daemon has written.
func (r *resolvFiles) find() map[string]string {
	all := map[string]string{}
	paths, _ := filepath.Glob(r.path("*"))
	for _, path := range paths {
		if b, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(b), resolvMark) {
			all[filepath.Base(filepath.Dir(path))] = string(b)
		}
	}
	return all
}

func (r *resolvFiles) put(name, text string) error {
	if b, err := os.ReadFile(r.path(name)); err == nil && !strings.HasPrefix(string(b), resolvMark) {
		r.written[name] = text // somebody else's
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(r.path(name)), 0o755); err != nil {
		return fmt.Errorf("write a workload's resolv.conf: %w", err)
	}
	if err := os.WriteFile(r.path(name), []byte(text), 0o644); err != nil {
		return fmt.Errorf("write a workload's resolv.conf: %w", err)
	}
	r.written[name] = text
	return nil
}

func (r *resolvFiles) remove(name string) error {
	if b, err := os.ReadFile(r.path(name)); err == nil && strings.HasPrefix(string(b), resolvMark) {
		if err := os.Remove(r.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a workload's resolv.conf: %w", err)
		}
		for _, dir := range []string{filepath.Dir(r.path(name)), r.dir} {
			_ = os.Remove(dir) // it stays where something is in it
		}
	}
	delete(r.written, name)
	return nil
}
