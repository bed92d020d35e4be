// Package cmd_test checks the import rules of the module: which rooms know which, where the
// large libraries may appear, and that the pure packages are pure.
package cmd_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "github.com/heddle-net/heddle/"

// never lists, for each room, the rooms that it must not import.
var never = map[string][]string{
	"overlay":  {"cluster", "gossip", "cmd", "e2e"},
	"cluster":  {"gossip", "datapath", "cmd", "e2e"},
	"gossip":   {"cluster", "datapath", "cmd", "e2e"},
	"datapath": {"overlay", "cluster", "gossip", "cmd", "e2e"},
	"cmd":      {"e2e"},
	"e2e":      {"overlay", "cluster", "gossip", "datapath", "cmd"},
}

// homes lists where a library may be imported. A prefix stands for all packages below it.
var homes = map[string][]string{
	"github.com/hashicorp/raft":         {"cluster/raftnode"},
	"github.com/hashicorp/raft-boltdb":  {"cluster/raftnode"},
	"github.com/hashicorp/memberlist":   {"gossip"},
	"github.com/vishvananda/netlink":    {"datapath/kernel", "datapath/netns"},
	"github.com/vishvananda/netns":      {"datapath/kernel", "datapath/netns"},
	"github.com/mdlayher/netlink":       {"datapath/kernel", "datapath/netns"},
	"github.com/google/nftables":        {"datapath/kernel", "datapath/netns"},
	"golang.zx2c4.com/wireguard/wgctrl": {"datapath/kernel", "datapath/netns"},
	"golang.zx2c4.com/wireguard/device": {"datapath/wireguard"},
	"golang.zx2c4.com/wireguard/conn":   {"datapath/wireguard"},
	"golang.zx2c4.com/wireguard/ipc":    {"datapath/wireguard"},
	"golang.zx2c4.com/wireguard/tun":    {"datapath/wireguard"},
	"github.com/spf13/cobra":            {"cmd"},
}

// pure packages hold no goroutine, clock, randomness or I/O.
var pure = []string{"overlay", "overlay/health", "overlay/ipam", "overlay/names", "overlay/plan", "overlay/services", "overlay/tunnel", "cluster/state", "gossip/table", "datapath", "cmd/heddle/daemon/doctor"}

var impure = []string{
	"os", "io/fs", "io/ioutil", "syscall", "log", "log/slog", "math/rand", "math/rand/v2", "crypto/rand",
	"net/http", "net/rpc", "golang.org/x/sys", "go.etcd.io/bbolt", "unsafe", "plugin",
}

// allowed lists what a pure package may use of packages that also reach the outside.
var allowed = map[string][]string{
	"net": {"HardwareAddr", "ParseMAC"},
	"time": {
		"Time", "Duration", "Month", "Weekday", "Location", "UTC", "Date", "Unix", "UnixMilli", "UnixMicro", "Parse", "ParseDuration",
		"Nanosecond", "Microsecond", "Millisecond", "Second", "Minute", "Hour", "RFC3339", "RFC3339Nano",
	},
}

func TestImportRules(t *testing.T) {
	bad, files, err := check(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	if files < 20 {
		t.Fatalf("only %d files were seen", files)
	}
	for _, b := range bad {
		t.Error(b)
	}
}

// check reads every Go file below root that is no test and returns the violations.
func check(root fs.FS) (bad []string, files int, err error) {
	err = fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch base := path.Base(name); {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(base, ".") || base == "testdata" || name == "tools" || name == "bin"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(base, ".go") || strings.HasSuffix(base, "_test.go"):
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, name, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files++
		bad = append(bad, checkFile(set, path.Dir(name), f)...)
		return nil
	})
	return bad, files, err
}

func checkFile(set *token.FileSet, pkg string, f *ast.File) (bad []string) {
	report := func(n ast.Node, format string, args ...any) {
		bad = append(bad, fmt.Sprintf("%s: %s", set.Position(n.Pos()), fmt.Sprintf(format, args...)))
	}
	room, _, _ := strings.Cut(pkg, "/")
	isPure := slices.Contains(pure, pkg)
	partly := map[string]string{} // name in this file of a package of which a part is allowed
	for _, i := range f.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			report(i, "%v", err)
			continue
		}
		if ours, ok := strings.CutPrefix(p, module); ok {
			to, _, _ := strings.Cut(ours, "/")
			if slices.Contains(never[room], to) {
				report(i, "%s must not import %s", pkg, ours)
			}
		}
		for lib, where := range homes {
			if within(p, lib) && !slices.ContainsFunc(where, func(h string) bool { return within(pkg, h) }) {
				report(i, "%s belongs in %s, not in %s", p, strings.Join(where, " and "), pkg)
			}
		}
		if !isPure {
			continue
		}
		if slices.ContainsFunc(impure, func(x string) bool { return within(p, x) }) {
			report(i, "%s is pure and must not import %s", pkg, p)
		}
		if allowed[p] != nil {
			name := path.Base(p)
			if i.Name != nil {
				name = i.Name.Name
			}
			if name == "." {
				report(i, "%s is pure and must not import all of %s", pkg, p)
			}
			partly[name] = p
		}
	}
	if !isPure {
		return bad
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			report(n, "%s is pure and must not start a goroutine", pkg)
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok {
				if p := partly[x.Name]; p != "" && !slices.Contains(allowed[p], n.Sel.Name) {
					report(n, "%s is pure and must not use %s.%s", pkg, p, n.Sel.Name)
				}
			}
		}
		return true
	})
	return bad
}

// within says whether p is the package or one below it, also in a later major version.
func within(p, parent string) bool { return p == parent || strings.HasPrefix(p, parent+"/") }

func TestEveryRuleFailsWhenBroken(t *testing.T) {
	src := func(imports, body string) string { return "package p\nimport (\n" + imports + "\n)\n" + body + "\n" }
	for _, c := range []struct{ name, file, text, want string }{
		{"overlay knows cluster", "overlay/agent/a.go", src(`"`+module+`cluster/api"`, ""), "overlay/agent must not import cluster/api"},
		{"overlay knows gossip", "overlay/a.go", src(`"`+module+`gossip"`, ""), "overlay must not import gossip"},
		{"cluster knows gossip", "cluster/a.go", src(`"`+module+`gossip/table"`, ""), "cluster must not import gossip/table"},
		{"gossip knows cluster", "gossip/a.go", src(`"`+module+`cluster"`, ""), "gossip must not import cluster"},
		{"cluster knows datapath", "cluster/a.go", src(`"`+module+`datapath"`, ""), "cluster must not import datapath"},
		{"datapath knows overlay", "datapath/kernel/a.go", src(`"`+module+`overlay"`, ""), "datapath/kernel must not import overlay"},
		{"overlay knows cmd", "overlay/local/a.go", src(`"`+module+`cmd/heddle/daemon"`, ""), "overlay/local must not import cmd"},
		{"e2e knows overlay", "e2e/lab/a.go", src(`"`+module+`overlay"`, ""), "e2e/lab must not import overlay"},
		{"raft outside", "cluster/a.go", src(`"github.com/hashicorp/raft"`, ""), "belongs in cluster/raftnode"},
		{"raft-boltdb outside", "cluster/state/a.go", src(`"github.com/hashicorp/raft-boltdb/v2"`, ""), "belongs in cluster/raftnode"},
		{"memberlist outside", "overlay/agent/a.go", src(`"github.com/hashicorp/memberlist"`, ""), "belongs in gossip"},
		{"netlink outside", "cmd/heddle/daemon/a.go", src(`n "github.com/vishvananda/netlink"`, ""), "belongs in datapath/kernel"},
		{"nftables outside", "datapath/a.go", src(`"github.com/google/nftables/expr"`, ""), "belongs in datapath/kernel"},
		{"wgctrl outside", "datapath/wireguard/a.go", src(`"golang.zx2c4.com/wireguard/wgctrl/wgtypes"`, ""), "belongs in datapath/kernel"},
		{"wireguard-go outside", "datapath/kernel/a.go", src(`"golang.zx2c4.com/wireguard/device"`, ""), "belongs in datapath/wireguard"},
		{"goroutine", "overlay/plan/a.go", src("", "func f() { go f() }"), "must not start a goroutine"},
		{"clock", "gossip/table/a.go", src(`"time"`, "var f = time.Now"), "must not use time.Now"},
		{"renamed clock", "gossip/table/a.go", src(`clock "time"`, "func f() { clock.Sleep(1) }"), "must not use time.Sleep"},
		{"dotted clock", "gossip/table/a.go", src(`. "time"`, ""), "must not import all of time"},
		{"randomness", "overlay/ipam/a.go", src(`"math/rand/v2"`, ""), "must not import math/rand/v2"},
		{"strong randomness", "cluster/state/a.go", src(`"crypto/rand"`, ""), "must not import crypto/rand"},
		{"files", "datapath/a.go", src(`"os"`, ""), "must not import os"},
		{"sockets", "overlay/a.go", src(`"net"`, "var f = net.Dial"), "must not use net.Dial"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad, _, err := check(fstest.MapFS{c.file: {Data: []byte(c.text)}})
			if err != nil {
				t.Fatal(err)
			}
			if len(bad) == 0 || !strings.Contains(bad[0], c.want) {
				t.Errorf("got %q, want %q", bad, c.want)
			}
		})
	}
	good := fstest.MapFS{
		"overlay/a.go":            {Data: []byte(src(`"net"; "net/netip"; "time"`, "var _ net.HardwareAddr; var _ netip.Addr; const x = time.Second"))},
		"overlay/plan/a.go":       {Data: []byte(src(`"`+module+`overlay"; "`+module+`datapath"`, ""))},
		"cluster/raftnode/a.go":   {Data: []byte(src(`"github.com/hashicorp/raft"; "time"`, "var f = time.Now"))},
		"cmd/heddle/a.go":         {Data: []byte(src(`"`+module+`overlay"; "`+module+`cluster"; "`+module+`gossip"`, ""))},
		"overlay/a_test.go":       {Data: []byte("not even Go")},
		"overlay/testdata/x.go":   {Data: []byte("nor this")},
		"datapath/kernel/link.go": {Data: []byte(src(`"github.com/vishvananda/netlink"`, ""))},
	}
	if bad, files, err := check(good); err != nil || len(bad) > 0 || files != 5 {
		t.Errorf("what is allowed: %q, %d files, %v", bad, files, err)
	}
}
