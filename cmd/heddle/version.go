package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set when a release is linked: -ldflags '-X main.version=…'.
var version string

// versionRow is what `heddle version` prints.
type versionRow struct {
	Version   string
	GoVersion string
	OS        string
	Arch      string
}

func thisVersion() versionRow {
	v := version
	if info, ok := debug.ReadBuildInfo(); ok && v == "" {
		v = info.Main.Version
	}
	if v == "" {
		v = "(devel)"
	}
	return versionRow{v, runtime.Version(), runtime.GOOS, runtime.GOARCH}
}

func (c *cli) versionCmd() *cobra.Command {
	var f format
	cmd := &cobra.Command{Use: "version", Short: "Print the version of this program", Args: noArgs}
	parsed(cmd.Flags(), &f, "format", "json|TEMPLATE", "print JSON, or by a Go template", parseFormat)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		v := thisVersion()
		switch {
		case f.json:
			return printJSON(c.out, v)
		case f.tmpl != nil:
			return printRows(cmd, f, []versionRow{v})
		}
		c.printf("heddle %s, %s, %s/%s\n", v.Version, v.GoVersion, v.OS, v.Arch)
		return nil
	}
	return cmd
}
