package main

import (
	"bufio"
	"context"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

func (c *cli) joinCmd() *cobra.Command {
	var r overlay.JoinRequest
	var token, tokenFile string
	cmd := &cobra.Command{
		Use: "join HOST[:PORT]...", Short: "Bring this node into a cluster",
		Long: "Bring this node into the cluster of the manager at HOST; several are tried in turn.\n" +
			"The token decides the role. Other users of this host can read a --token while the command\n" +
			"runs; --token-file FILE, --token-file - (stdin) and the variable HEDDLE_TOKEN hide it.",
		Args: func(cmd *cobra.Command, args []string) error {
			for _, a := range args {
				if strings.HasPrefix(a, "HDL1-") {
					return usagef(cmd, "a token stands where a HOST belongs; put it behind --token")
				}
			}
			return someArgs("HOST")(cmd, args)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&token, "token", "", "join `token`, or - for stdin (HEDDLE_TOKEN)")
	fs.StringVar(&tokenFile, "token-file", "", "`file` that has the join token, or - for stdin")
	addressFlags(fs, &r.AdvertiseAddr, &r.ListenAddr, &r.DataPathAddr)
	parsed(fs, &r.Availability, "availability", "active|pause|drain", "what the node is given at first; default active", parseAvailability)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		r.Managers = args
		if r.Token, err = c.readToken(cmd, token, tokenFile); err != nil {
			return err
		}
		reply, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (overlay.MemberReply, error) { return cl.Join(ctx, r) })
		if err != nil {
			return err
		}
		for _, w := range reply.Warnings {
			c.note("warning: %s", w)
		}
		c.printf("This node (%s) is a %s of the cluster.\n", reply.Node.Short(), reply.Role)
		return nil
	}
	return cmd
}

// readToken takes the token from where the user put it. No message repeats it.
func (c *cli) readToken(cmd *cobra.Command, token, file string) (string, error) {
	switch {
	case token != "" && file != "":
		return "", usagef(cmd, "--token and --token-file both give a token; use one of them")
	case file == "-" || token == "-":
		return c.tokenFrom(cmd, "stdin", c.in)
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return "", overlay.Errorf(overlay.Invalid, "--token-file: %w", err)
		}
		defer f.Close()
		return c.tokenFrom(cmd, file, f)
	case token == "":
		token = c.env("HEDDLE_TOKEN")
	}
	if token == "" {
		return "", usagef(cmd, "join needs --token or --token-file; a manager makes a token with `heddle token create worker`")
	}
	return strings.TrimSpace(token), nil
}

func (c *cli) tokenFrom(cmd *cobra.Command, name string, r io.Reader) (string, error) {
	const longest = 4096 // bytes of a line; a token is much shorter
	line, err := bufio.NewReader(io.LimitReader(r, longest)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", overlay.Errorf(overlay.Invalid, "read the token from %s: %w", name, err)
	}
	if line = strings.TrimSpace(line); line == "" {
		return "", usagef(cmd, "there is no token in %s", name)
	}
	return line, nil
}
