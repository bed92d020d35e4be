package main

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

// createFlags are the flags of `network create` that need putting together.
type createFlags struct {
	subnets  []netip.Prefix
	gateways []netip.Addr
	ranges   []netip.Prefix
	aux      []pair[netip.Addr]
	labels   []pair[string]
	options  []pair[string]
	scope    string
}

func (c *cli) networkCreate() *cobra.Command {
	s := overlay.NetworkSpec{}
	var f createFlags
	var quiet, attachable bool
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a network and print its ID", Args: oneArg("NAME"),
		Long: "Make a network and print its ID. Subnets that are not named come from the cluster's pools, those\n" +
			"of a bridge network, which is of this node alone and needs no cluster, from the node's own.\n" +
			"A --gateway, --ip-range or --aux-address belongs to the --subnet that contains it.",
		Example: "  heddle network create blue --ipv6\n  heddle network create green --subnet 10.20.0.0/16 --gateway 10.20.0.1\n  heddle network create here -d bridge",
	}
	fs := cmd.Flags()
	fs.StringVarP(&s.Driver, "driver", "d", overlay.DriverOverlay, "driver `name`: overlay, of a cluster; bridge, host or none, of a node in no cluster")
	fs.StringVar(&f.scope, "scope", "", "`scope` of the driver: cluster for overlay, node for the others")
	f.addressFlags(fs)
	fs.BoolVar(&s.Internal, "internal", false, "give workloads no route out of the network")
	fs.BoolVar(&s.IPv4, "ipv4", true, "give it an IPv4 subnet")
	fs.BoolVar(&s.IPv6, "ipv6", false, "give it an IPv6 subnet; an IPv6 --subnet implies it")
	repeated(fs, &f.labels, "label", "key=value", "label", parseLabel)
	repeatedP(fs, &f.options, "opt", "o", "key=value", "driver option: mtu, and of a bridge network icc=false, which keeps its workloads apart; Docker's names of them will do", parseOption)
	fs.BoolVar(&attachable, "attachable", true, "accepted for Docker's sake; every network is attachable")
	fs.BoolVar(&s.Encrypted, "encrypted", false, "encrypt what travels between nodes, by WireGuard")
	fs.BoolVarP(&quiet, "quiet", "q", false, "print the ID alone, without notes on stderr")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s.Name = args[0]
		if err := f.fill(&s); err != nil {
			return usage(cmd, err)
		}
		row, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (overlay.NetworkRow, error) {
			return cl.CreateNetwork(ctx, s)
		})
		if err != nil {
			return err
		}
		c.printf("%s\n", row.ID)
		for _, n := range row.Notes {
			if !quiet {
				c.note("note: %s", n)
			}
		}
		return nil
	}
	return cmd
}

// addressFlags are those that say what a network's subnets are.
func (f *createFlags) addressFlags(fs *pflag.FlagSet) {
	repeated(fs, &f.subnets, "subnet", "cidr", "subnet, IPv4 or IPv6", overlay.ParsePrefix)
	repeated(fs, &f.gateways, "gateway", "ip", "gateway address of a subnet; default its first address", overlay.ParseAddr)
	repeated(fs, &f.ranges, "ip-range", "cidr", "part of a subnet that workloads get addresses from", overlay.ParsePrefix)
	repeated(fs, &f.aux, "aux-address", "name=ip", "address of a subnet that no workload gets", parseAux)
}

// fill completes the spec from the flags.
func (f *createFlags) fill(s *overlay.NetworkSpec) error {
	switch {
	case f.scope != "" && f.scope != s.Scope():
		return fmt.Errorf("--scope %q is not in this version for driver %s; use %s", f.scope, s.Driver, s.Scope())
	}
	s.IPv4 = s.IPv4 && !s.Bare()
	s.Labels, s.Options = toMap(f.labels), overlay.Plain(toMap(f.options))
	if err := f.place(s); err != nil {
		return err
	}
	return s.Validate()
}

// place puts the subnets together.
func (f *createFlags) place(s *overlay.NetworkSpec) error {
	for _, p := range f.subnets {
		s.Subnets = append(s.Subnets, overlay.Subnet{Prefix: p})
		s.IPv6 = s.IPv6 || p.Addr().Is6()
	}
	for _, a := range f.gateways {
		n, err := f.subnetOf(s, "--gateway", a, a)
		if err != nil {
			return err
		}
		if n.Gateway.IsValid() {
			return fmt.Errorf("--gateway %s and %s are both for subnet %s; a subnet has one", n.Gateway, a, n.Prefix)
		}
		n.Gateway = a
	}
	for _, r := range f.ranges {
		n, err := f.subnetOf(s, "--ip-range", r, r.Addr())
		if err != nil {
			return err
		}
		if n.Range.IsValid() {
			return fmt.Errorf("--ip-range %s and %s are both for subnet %s; a subnet has one", n.Range, r, n.Prefix)
		}
		n.Range = r
	}
	for _, a := range f.aux {
		n, err := f.subnetOf(s, "--aux-address", a.value, a.value)
		if err != nil {
			return err
		}
		if n.Aux == nil {
			n.Aux = map[string]netip.Addr{}
		}
		n.Aux[a.key] = a.value
	}
	return nil
}

// subnetOf is the subnet that an address given with a flag belongs to.
func (f *createFlags) subnetOf(s *overlay.NetworkSpec, flag string, what fmt.Stringer, a netip.Addr) (*overlay.Subnet, error) {
	for i := range s.Subnets {
		if s.Subnets[i].Prefix.Contains(a) {
			return &s.Subnets[i], nil
		}
	}
	return nil, fmt.Errorf("%s %s is in none of the subnets given; add a --subnet that contains it", flag, what)
}
