package main

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

func (c *cli) attachCmd() *cobra.Command {
	var f attachFlags
	var quiet bool
	cmd := &cobra.Command{
		Use: "attach NAME --network NETWORK", Short: "Give a workload a place in a network", Args: oneArg("NAME"),
		Long: "Give the workload NAME a place in a network: an interface with addresses in its network\n" +
			"namespace. A workload that is attached already gets a further interface where it is; else,\n" +
			"without --netns, --pid or --host, heddle makes the namespace /run/netns/NAME and removes it\n" +
			"at detach. When attach has returned, the other nodes of the network know the workload.",
		Example: "  heddle attach web --network blue\n  heddle attach db --network blue --pid 4711 --ip 10.64.0.7",
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&f.r.Host, "host", false, "the host itself is the workload: it gets the interface")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the endpoint's ID alone")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := f.request(cmd, args[0])
		if err != nil {
			return err
		}
		e, err := c.attach(cmd, r)
		if err != nil {
			return err
		}
		if quiet {
			c.printf("%s\n", e.ID)
			return nil
		}
		c.printf("%s\n", endpointLine(e))
		return nil
	}
	return cmd
}

// attachFlags are the flags that attach and run share.
type attachFlags struct {
	r       overlay.AttachRequest
	labels  []pair[string]
	publish [][]overlay.Publish
	health  healthFlags
	command string // of the health
}

func (f *attachFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.r.Network, "network", "", "`network` to attach to, by name or ID (required)")
	f.addPlace(cmd)
	parsed(fs, &f.r.Netns, "netns", "path|name", "namespace of the workload; a name is of one in /run/netns", parseNetns)
	fs.IntVar(&f.r.PID, "pid", 0, "process `id` whose namespace is the workload's")
}

// addPlace adds the flags that say what a workload's place in a network is like.
func (f *attachFlags) addPlace(cmd *cobra.Command) {
	fs := cmd.Flags()
	parsed(fs, &f.r.IP, "ip", "ip", "IPv4 address; default a free one", overlay.ParseAddr)
	parsed(fs, &f.r.IP6, "ip6", "ip", "IPv6 address; default a free one", overlay.ParseAddr)
	parsed(fs, &f.r.MAC, "mac", "mac", "MAC address; default a random one", parseMAC)
	repeated(fs, &f.r.Aliases, "alias", "name", "further name of the workload in the network", parseName("alias"))
	parsed(fs, &f.r.Service, "service", "name", "service that the workload belongs to", parseName("service"))
	repeated(fs, &f.labels, "label", "key=value", "label", parseLabel)
	repeatedP(fs, &f.publish, "publish", "p", "port", "port of this host that leads to the workload, as [IP:]8080:80[/tcp|udp]; 80 alone takes a free one of the host's; ranges as 8080-8082:80-82", parseWorkloadPublish)
	f.health.add(fs, "tcp|http:/path", "probe the workload itself, instead of as its service asks: it takes a connection, or answers GET with 200 to 399", parseHealth)
	parsed(fs, &f.command, "health-cmd", "command", "probe by a shell's command line that ends with 0, in the workload's namespace as root; only root may ask for it", nonEmpty)
	parsed(fs, &f.r.IfName, "ifname", "name", "name of the interface; default the first free of eth0, eth1, …", nonEmpty)
	fs.IntVar(&f.r.GwPriority, "gw-priority", 0, "of several networks the default route goes through the one with the highest `number`, then through the first by name")
}

// request is what the flags ask for.
func (f *attachFlags) request(cmd *cobra.Command, name string) (overlay.AttachRequest, error) {
	f.r.Name, f.r.Labels, f.r.Publish = name, toMap(f.labels), slices.Concat(f.publish...)
	if f.r.Network == "" {
		return f.r, usagef(cmd, "%s needs a network; add --network, `heddle network ls` lists them", verb(cmd))
	}
	if cmd.Flags().Changed("pid") && f.r.PID <= 0 {
		return f.r, usagef(cmd, "--pid %d is no process", f.r.PID)
	}
	if f.command != "" {
		if f.health.h.Kind != "" {
			return f.r, usagef(cmd, "--health and --health-cmd are two ways to probe; use one of them")
		}
		f.health.h.Kind, f.health.h.Command = overlay.HealthCmd, f.command
	}
	var err error
	if f.r.Health, err = f.health.health(cmd); err != nil {
		return f.r, err
	}
	return f.r, usage(cmd, f.r.Validate())
}

func parseNetns(option, s string) (string, error) {
	s, err := nonEmpty(option, s)
	if err != nil {
		return "", err
	}
	if !strings.Contains(s, "/") {
		return "/run/netns/" + s, nil
	}
	// The daemon has another working directory.
	return filepath.Abs(s)
}

// attach makes the endpoint, and tells what may keep it from others.
func (c *cli) attach(cmd *cobra.Command, r overlay.AttachRequest) (overlay.Endpoint, error) {
	reply, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (overlay.AttachReply, error) { return cl.Attach(ctx, r) })
	for _, node := range reply.Silent {
		c.note("warning: node %s has not acknowledged %s yet; until it does, it may not reach it", node, r.Name)
	}
	for _, w := range reply.Warnings {
		c.note("warning: %s", w)
	}
	return reply.Endpoint, err
}

// endpointLine is what attach prints: name, addresses, interface and published ports.
func endpointLine(e overlay.Endpoint) string {
	s := e.Name
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if p.IsValid() {
			s += "  " + p.String()
		}
	}
	if e.Interface != "" {
		s += "  " + e.Interface
	}
	if e.Namespace == "" {
		s += " on this host"
	} else {
		s += " in " + e.Namespace
	}
	if len(e.Publish) > 0 {
		s += "  " + listed(publishRows(e.Publish))
	}
	return s
}
