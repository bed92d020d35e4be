package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/local"
)

const publishHelp = "as 8080:80[/tcp|udp] or published=8080,target=80,protocol=tcp,mode=ingress|local,host_ip=IP; without a published port a free one is taken; ranges as 8080-8082:80-82"

func (c *cli) serviceCreate() *cobra.Command {
	var r overlay.ServiceRequest
	var publish [][]overlay.Publish
	var selector, labels []pair[string]
	var health healthFlags
	var quiet bool
	cmd := &cobra.Command{
		Use: "create NAME --network NETWORK", Short: "Make a service and print its ID", Args: oneArg("NAME"),
		Long: "Make a service in a network and print its ID. Behind it is what was attached with --service\n" +
			"NAME, and what has all labels of --selector. Its name, and with --endpoint-mode vip its\n" +
			"addresses, lead to those of them that are healthy. A port published as ingress is on every\n" +
			"node; local (or host, Docker's word) is on nodes where a backend runs, which then sees the\n" +
			"client's address.",
		Example: "  heddle service create shop --network blue --port 80:8080 --health http:/ready\n" +
			"  heddle service create dns --network blue --port 53/udp --port 53/tcp --publish 53:53/udp",
	}
	fs := cmd.Flags()
	fs.StringVar(&r.Network, "network", "", "`network` of the service, by name or ID (required)")
	repeated(fs, &r.Ports, "port", "port", "port of the service's addresses as [name:]80[:8080][/tcp|udp]; the second is where the workloads listen", parseServicePort)
	repeated(fs, &r.VIPs, "vip", "ip", "address of the service, one of each family; default free ones", overlay.ParseAddr)
	r.Mode = overlay.ModeVIP
	parsed(fs, &r.Mode, "endpoint-mode", "vip|dnsrr", "what the name stands for: an address of the service's own, or those of its workloads; default vip", parseEndpointMode)
	repeated(fs, &selector, "selector", "key=value", "label of the workloads that belong to it; of several all", parseLabel)
	health.add(fs, "tcp|http:/path", "probe what is behind it: it takes a connection, or answers GET with 200 to 399", parseHealth)
	repeated(fs, &publish, "publish", "port", "port of hosts that leads to it, "+publishHelp, parseServicePublish)
	repeated(fs, &labels, "label", "key=value", "label of the service", parseLabel)
	fs.BoolVarP(&quiet, "quiet", "q", false, "print the ID alone, without notes on stderr")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		r.Name, r.Publish, r.Selector, r.Labels = args[0], slices.Concat(publish...), toMap(selector), toMap(labels)
		if r.Network == "" {
			return usagef(cmd, "service create needs a network; add --network, `heddle network ls` lists them")
		}
		if r.Health, err = health.health(cmd); err != nil {
			return err
		}
		if err := r.Validate(); err != nil {
			return usage(cmd, err)
		}
		row, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (overlay.ServiceRow, error) {
			return cl.CreateService(ctx, r)
		})
		if err != nil {
			return err
		}
		c.printf("%s\n", row.ID)
		if !quiet {
			c.noteService(row)
		}
		return nil
	}
	return cmd
}

func parseEndpointMode(option, s string) (overlay.EndpointMode, error) {
	switch m := overlay.EndpointMode(s); m {
	case overlay.ModeVIP, overlay.ModeDNSRR:
		return m, nil
	}
	return "", overlay.Errorf(overlay.Invalid, "%s %q is unknown; use vip or dnsrr", option, s)
}

// noteService says where a service is, which the managers have chosen in part.
func (c *cli) noteService(s overlay.ServiceRow) {
	if len(s.VIPs) > 0 {
		c.note("note: %s has the address %s", s.Name, listed(s.VIPs))
	}
	if len(s.Publish) > 0 {
		c.note("note: %s is published at %s", s.Name, listed(publishRows(s.Publish)))
	}
}

func (c *cli) serviceUpdate() *cobra.Command {
	var u overlay.ServiceUpdate
	var publish [][]overlay.Publish
	var dropPorts, dropPublish [][]overlay.ProtoPort
	var selector, labels []pair[string]
	var health healthFlags
	var selectNone bool
	cmd := &cobra.Command{
		Use: "update SERVICE", Short: "Change a service's ports, probes, selector and labels", Args: serviceRefs(oneArg("SERVICE")),
		Long: "Change a service's ports, probes, selector and labels. Its name, network, mode and addresses\n" +
			"stay. What is taken away goes before the rest comes: both together replace. --health is given\n" +
			"whole, with what else there is to say of the probes.",
		Example: "  heddle service update shop --port-rm 80 --port-add 80:8081\n  heddle service update blue/shop --publish-add 8080:80 --health none",
	}
	fs := cmd.Flags()
	repeated(fs, &u.Ports, "port-add", "port", "port to add, as [name:]80[:8080][/tcp|udp]", parseServicePort)
	repeated(fs, &dropPorts, "port-rm", "port", "port to take away, as 80[/tcp|udp]", parseProtoPorts)
	repeated(fs, &publish, "publish-add", "port", "port of hosts to add, "+publishHelp, parseServicePublish)
	repeated(fs, &dropPublish, "publish-rm", "port", "port of hosts to take away, as 8080[/tcp|udp]", parseProtoPorts)
	repeated(fs, &selector, "selector", "key=value", "label of the workloads that belong to it, instead of all there were", parseLabel)
	fs.BoolVar(&selectNone, "no-selector", false, "only what was attached with --service belongs to it")
	health.add(fs, "tcp|http:/path|none", "probe what is behind it, instead of as before; none probes no longer", parseNewHealth)
	repeated(fs, &labels, "label", "key=value", "label to set", parseLabel)
	repeated(fs, &u.DropLabels, "label-rm", "key", "label to take away", nonEmpty)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		u.Publish, u.DropPorts, u.DropPublish = slices.Concat(publish...), slices.Concat(dropPorts...), slices.Concat(dropPublish...)
		u.Selector, u.Labels = toMap(selector), toMap(labels)
		if selectNone {
			if len(selector) > 0 {
				return usagef(cmd, "--selector and --no-selector contradict each other; use one of them")
			}
			u.Selector = map[string]string{}
		}
		h, err := health.health(cmd)
		if err != nil {
			return err
		}
		if fs.Changed("health") {
			u.Health = &h
		}
		if err := u.Validate(); err != nil {
			return usage(cmd, err)
		}
		row, err := ask(c, cmd, func(ctx context.Context, cl *local.Client) (overlay.ServiceRow, error) {
			return cl.UpdateService(ctx, args[0], u)
		})
		if err != nil {
			return err
		}
		c.printf("%s\n", row.Name)
		if len(u.Publish) > 0 {
			c.noteService(overlay.ServiceRow{Name: row.Name, Publish: row.Publish})
		}
		return nil
	}
	return cmd
}
