package main

import (
	"context"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

func (c *cli) initCmd() *cobra.Command {
	var r overlay.InitRequest
	var quiet, autolock bool
	cmd := &cobra.Command{
		Use: "init", Short: "Make a cluster of this node", Args: noArgs,
		Long: "Make a cluster of this node, which becomes its first manager. The daemon must run.\n" +
			"The last line of the output is the command that brings in another host.",
	}
	fs := cmd.Flags()
	addressFlags(fs, &r.AdvertiseAddr, &r.ListenAddr, &r.DataPathAddr)
	fs.Uint16Var(&r.DataPathPort, "data-path-port", 4789, "UDP `port` of VXLAN on all nodes")
	repeated(fs, &r.Pools, "default-addr-pool", "cidr", "pool of the subnets that networks get; default 10.64.0.0/11 and a random ULA /48", overlay.ParsePrefix)
	fs.IntVar(&r.PoolMaskLength, "default-addr-pool-mask-length", 24, "prefix `length` of the IPv4 subnets from the pool")
	fs.BoolVar(&autolock, "autolock", false, "encrypt the managers' keys on disk (not in this version)")
	fs.BoolVarP(&quiet, "quiet", "q", false, "print the join command alone")
	_ = fs.MarkHidden("autolock")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if autolock {
			return usagef(cmd, "--autolock is not in this version; leave it out")
		}
		reply, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (overlay.MemberReply, error) { return cl.Init(ctx, r) })
		if err != nil {
			return err
		}
		if !quiet {
			c.printf("This node (%s) is the first manager of its cluster. To add a worker, run on its host:\n\n", reply.Node.Short())
		}
		c.printf("%s\n", reply.Join)
		return nil
	}
	return cmd
}

// addressFlags are those that init and join share.
func addressFlags(fs *pflag.FlagSet, advertise, listen, dataPath *string) {
	parsed(fs, advertise, "advertise-addr", "ip|interface", "address by which other nodes reach this one", nonEmpty)
	parsed(fs, listen, "listen-addr", "ip", "address that the control and gossip ports listen on; default all", nonEmpty)
	parsed(fs, dataPath, "data-path-addr", "ip|interface", "address of VXLAN; default as advertised", nonEmpty)
}
