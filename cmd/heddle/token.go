package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

func (c *cli) tokenCmd() *cobra.Command {
	revoke := &cobra.Command{Use: "revoke ID...", Aliases: []string{"rm"}, Short: "Make join tokens invalid", Args: someArgs("token ID")}
	revoke.RunE = func(cmd *cobra.Command, args []string) error {
		return c.askAll(cmd, args, func(ctx context.Context, cl *local.Client, id string) error {
			all, err := cl.Tokens(ctx)
			if err != nil {
				return err
			}
			row, err := overlay.Find("token", id, all, func(r overlay.TokenRow) (id, name string) { return r.ID, "" })
			if err != nil {
				return err
			}
			if err := cl.RevokeToken(ctx, row.ID); err != nil {
				return err
			}
			c.printf("%s\n", row.ID)
			return nil
		})
	}
	ls := list[overlay.TokenRow]{
		short: "List the join tokens, without their secrets",
		id:    func(r overlay.TokenRow) string { return r.ID },
		columns: []column[overlay.TokenRow]{
			idColumn("ID", func(r overlay.TokenRow) string { return r.ID }),
			text("ROLE", func(r overlay.TokenRow) string { return string(r.Role) }),
			text("USES", func(r overlay.TokenRow) string { return uses(r.Uses) }),
			text("CREATED", func(r overlay.TokenRow) string { return c.since(r.Created) }),
			text("EXPIRES", c.expires),
		},
		filters: map[string]matcher[overlay.TokenRow]{"id": prefix(func(r overlay.TokenRow) string { return r.ID })},
	}
	return c.group("token", "Manage the tokens that let hosts join",
		c.tokenMaker("create", "Make a join token and print the command to join with it", (*local.Client).CreateToken),
		ls.command(c, func(ctx context.Context, cl *local.Client) ([]overlay.TokenRow, error) { return cl.Tokens(ctx) }),
		revoke,
		c.tokenMaker("rotate", "Revoke all tokens of a role and make a new one", (*local.Client).RotateTokens))
}

// tokenMaker is a verb that makes a token and shows it, for the only time.
func (c *cli) tokenMaker(name, short string, call func(*local.Client, context.Context, overlay.TokenRequest) (overlay.TokenReply, error)) *cobra.Command {
	var ttl time.Duration
	var uses int
	var quiet bool
	cmd := &cobra.Command{
		Use: name + " worker|manager", Short: short, ValidArgs: []string{string(overlay.Worker), string(overlay.Manager)},
		Args: func(cmd *cobra.Command, args []string) error {
			if err := oneArg("role, worker or manager")(cmd, args); err != nil {
				return err
			}
			if r := overlay.Role(args[0]); r != overlay.Worker && r != overlay.Manager {
				return usagef(cmd, "%q is no role; use worker or manager", args[0])
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.DurationVar(&ttl, "ttl", 0, "time until it expires, 0 for never; default 24h for workers, 1h for managers")
	fs.IntVar(&uses, "uses", 0, "`number` of hosts that may join with it, 0 for any number; default any for workers, 1 for managers")
	fs.BoolVarP(&quiet, "quiet", "q", false, "print the token alone")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r := overlay.TokenRequest{Role: overlay.Role(args[0])}
		switch {
		case ttl < 0:
			return usagef(cmd, "--ttl %s is negative; use 0 for a token that never expires", ttl)
		case uses < 0:
			return usagef(cmd, "--uses %d is negative; use 0 for any number", uses)
		}
		if fs.Changed("ttl") {
			r.TTL = &ttl
		}
		if fs.Changed("uses") {
			r.Uses = &uses
		}
		reply, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (overlay.TokenReply, error) { return call(cl, ctx, r) })
		if err != nil {
			return err
		}
		if quiet {
			c.printf("%s\n", reply.Token)
			return nil
		}
		c.printf("%s\n", reply.Join)
		return nil
	}
	return cmd
}

func uses(n int) string {
	if n < 0 {
		return "any"
	}
	return strconv.Itoa(n)
}

func (c *cli) expires(r overlay.TokenRow) string {
	if r.Expires.IsZero() {
		return "never"
	}
	left := r.Expires.Sub(c.now())
	if left <= 0 {
		return "expired"
	}
	return "in " + rough(left)
}

// since is how long ago a time was.
func (c *cli) since(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return rough(max(c.now().Sub(t), 0)) + " ago"
}

// rough is a duration in its largest unit.
func rough(d time.Duration) string {
	for _, u := range []struct {
		length time.Duration
		name   string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}} {
		if d >= u.length {
			return fmt.Sprintf("%d%s", d/u.length, u.name)
		}
	}
	return fmt.Sprintf("%dms", d.Milliseconds())
}
