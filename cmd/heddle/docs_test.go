package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const docFile = "../../docs/cli.md"

// docs/cli.md is written from the command tree: go test ./cmd/heddle -update.
func TestDocs(t *testing.T) {
	var b strings.Builder
	b.WriteString("# heddle on the command line\n\n" +
		"Written from the program by `go test ./cmd/heddle -update`; change the text there.\n\n" +
		"Flags stand before or after arguments. A network, node, endpoint or service is named by name, ID or the beginning of its ID.\n" +
		"Exit codes: 0 done, 1 failed, 2 a command line that can't be meant; `run` ends with its command's. Every error is one line on stderr.\n")
	root := (&cli{env: func(string) string { return "" }}).root()
	flags(&b, "Flags of every command:", root.PersistentFlags())
	document(&b, root)
	got := b.String()
	want, err := os.ReadFile(docFile)
	if err != nil && !*update {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	if *update {
		if err := os.WriteFile(docFile, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("%s differs (go test ./cmd/heddle -update writes it anew):\n%s", docFile, firstDifference(got, string(want)))
}

func document(b *strings.Builder, cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		if sub.HasSubCommands() {
			fmt.Fprintf(b, "\n## %s\n\n%s.\n", sub.CommandPath(), sub.Short)
			document(b, sub)
			continue
		}
		fmt.Fprintf(b, "\n%s %s\n\n", strings.Repeat("#", 1+strings.Count(sub.CommandPath(), " ")), sub.CommandPath())
		text := sub.Long
		if text == "" {
			text = sub.Short + "."
		}
		fmt.Fprintf(b, "%s\n\n```\n%s\n```\n", text, sub.UseLine())
		if sub.Example != "" {
			fmt.Fprintf(b, "\nExamples:\n\n```\n%s\n```\n", strings.ReplaceAll(strings.TrimSpace(sub.Example), "\n  ", "\n"))
		}
		flags(b, "Flags:", sub.LocalNonPersistentFlags())
	}
}

func flags(b *strings.Builder, title string, fs *pflag.FlagSet) {
	if fs.HasAvailableFlags() {
		fmt.Fprintf(b, "\n%s\n\n```\n%s```\n", title, fs.FlagUsages())
	}
}

// Every command says what it does, and is one of the contract's.
func TestCommands(t *testing.T) {
	var got []string
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			if sub.Short == "" || strings.HasSuffix(sub.Short, ".") {
				t.Errorf("%s: short help %q", sub.CommandPath(), sub.Short)
			}
			if !sub.HasSubCommands() {
				got = append(got, verb(sub))
			}
			walk(sub)
		}
	}
	walk((&cli{env: func(string) string { return "" }}).root())
	want := strings.Split("attach,daemon,detach,doctor,endpoint inspect,endpoint ls,init,join,key rotate,leave,"+
		"network connect,network create,network disconnect,network inspect,network ls,network prune,network rm,network update,"+
		"node demote,node inspect,node ls,node promote,node rm,node update,"+
		"resolve,run,service create,service inspect,service ls,service ps,service rm,service update,status,token create,token ls,token revoke,token rotate,update,version,wireguard", ",")
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
