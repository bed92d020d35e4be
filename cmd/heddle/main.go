// Command heddle is the whole of heddle in one binary: the daemon that runs on every node,
// and the verbs that ask it. Each verb has a file of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	c := &cli{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv, now: time.Now}
	code := c.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// cli is the process as the verbs see it.
type cli struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) string
	now      func() time.Time
	socket   string // of the daemon to ask
}

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

// run executes one command line and returns the exit code.
func (c *cli) run(ctx context.Context, args []string) int {
	root := c.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code := exitFailed
	switch e := err.(type) {
	case *usageError:
		code = exitUsage
	case *exitError:
		code = e.code
		if e.err == nil {
			return code
		}
	default:
		if ctx.Err() != nil {
			err = errors.New("interrupted; what the daemon had begun, it ends or takes back")
		}
	}
	c.report(err)
	return code
}

// report prints an error, or each of several, on a line of its own.
func (c *cli) report(err error) {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			c.report(e)
		}
		return
	}
	c.note("%s", err)
}

// note prints one line on stderr.
func (c *cli) note(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	fmt.Fprintf(c.err, "heddle: %s\n", strings.ReplaceAll(strings.TrimSpace(s), "\n", "; "))
}

// printf writes to stdout. A reader that went away ends the process by SIGPIPE.
func (c *cli) printf(format string, args ...any) {
	fmt.Fprintf(c.out, format, args...)
}

func (c *cli) root() *cobra.Command {
	root := c.group("heddle", "Overlay networks for the workloads of any Linux hosts",
		c.daemonCmd(), c.versionCmd(), c.initCmd(), c.joinCmd(), c.leaveCmd(), c.statusCmd(), c.doctorCmd(), c.tokenCmd(), c.nodeCmd(),
		c.networkCmd(), c.serviceCmd(), c.updateCmd(), c.attachCmd(), c.detachCmd(), c.endpointCmd(), c.resolveCmd(), c.runCmd(), c.keyCmd(), c.wireguardCmd())
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	root.SetFlagErrorFunc(flagError)
	def := c.env("HEDDLE_SOCKET")
	if def == "" {
		def = local.DefaultSocket
	}
	f := root.PersistentFlags()
	f.StringVar(&c.socket, "socket", def, "`path` of the daemon's socket (HEDDLE_SOCKET)")
	f.Lookup("socket").DefValue = local.DefaultSocket
	return root
}

// group is a command that only has others below it. Alone it prints its help.
func (c *cli) group(name, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: name, Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(cmd, args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	cmd.AddCommand(subs...)
	return cmd
}

// ask makes one call to the daemon. What takes longer than a second is said on stderr.
func ask[T any](c *cli, cmd *cobra.Command, call func(context.Context, *local.Client) (T, error)) (T, error) {
	client := local.NewClient(c.socket)
	if stale, _ := cmd.Flags().GetBool(staleFlag); stale {
		told := false
		client.Stale = func(held overlay.Copy) {
			if !told { // once for all that is read
				c.noteStale(held)
			}
			told = true
		}
	}
	w := c.startWaiter()
	defer w.stop()
	client.Waiting = w.say
	return call(cmd.Context(), client)
}

// none is for calls that answer nothing.
type none struct{}

// askAll makes a call for each of the arguments, and goes on after one that failed.
func (c *cli) askAll(cmd *cobra.Command, args []string, call func(ctx context.Context, cl *local.Client, arg string) error) error {
	var failed []error
	for _, arg := range args {
		_, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (none, error) { return none{}, call(ctx, cl, arg) })
		if err != nil && cmd.Context().Err() != nil {
			return err
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}
