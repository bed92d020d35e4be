// Command heddle-crowd is a part of the benchmark: it lets a node state endpoints that are
// nowhere, by their thousands, without a link or a namespace. It leases their addresses and signs
// their records as the node's daemon does, and leaves them in the node's store, while the daemon is
// stopped; when that starts it tells the others what it finds there. It prints a MAC for each.
package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/heddle-net/heddle/cluster/api"
	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/agent"
	"github.com/heddle-net/heddle/overlay/store"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "heddle-crowd:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: heddle-crowd DATA-DIR NETWORK COUNT, where the node takes part in the network")
	}
	count, err := strconv.Atoi(args[2])
	if err != nil {
		return fmt.Errorf("COUNT: %w", err)
	}
	id, err := pki.LoadIdentity(filepath.Join(args[0], "identity.json"))
	if err != nil {
		return err
	}
	disk, err := store.Open(filepath.Join(args[0], "node.db"))
	if err != nil {
		return err
	}
	defer disk.Close()
	n, err := enter(disk, id, args[1], count)
	if err != nil {
		return err
	}
	c, err := n.crowd(count)
	if err != nil {
		return err
	}
	return disk.Save(c)
}

// network is what the node has of one.
type network struct {
	id      pki.Identity
	counter agent.Counter
	grant   agent.Grant
	digest  string          // of the lease
	free    [2][]netip.Addr // of both families, in the lease and used by nobody
}

const (
	grantMost = 1024 // addresses of each family that the managers give at a time
	spare     = 512  // the first ones of the lease, which the daemon takes for endpoints that are attached
)

// enter takes addresses for as many endpoints.
func enter(disk *store.Store, id pki.Identity, name string, count int) (*network, error) {
	facts, err := disk.LoadFacts()
	if err != nil {
		return nil, err
	}
	saved, err := disk.Load()
	if err != nil {
		return nil, err
	}
	cred, err := pki.NewCredentials(id, func(pki.Subject) bool { return false }, time.Now)
	if err != nil {
		return nil, err
	}
	client := api.NewClient(id.Node, cred, api.Managers(facts))
	defer client.Close()
	used := map[netip.Addr]bool{}
	for _, e := range saved.Endpoints {
		for _, ip := range e.IPs {
			used[ip] = true
		}
	}
	n := &network{id: id}
	for missing := spare + count; missing > 0; missing = spare + count - min(len(n.free[0]), len(n.free[1])) {
		g, err := client.Grant(context.Background(), api.GrantRequest{Network: name, Want: min(missing, grantMost)})
		if err != nil {
			return nil, err
		}
		n.grant, n.counter = agent.Grant(g), saved.Counters[g.Network.ID]
		if err := n.see(used); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// see takes over what the lease has.
func (n *network) see(used map[netip.Addr]bool) error {
	signed := n.grant.Leases[n.id.Node]
	var lease overlay.Lease
	if err := signed.Decode(overlay.DomainLease, &lease); err != nil {
		return err
	}
	n.digest, n.free = signed.Digest(), [2][]netip.Addr{}
	for _, g := range lease.Grants {
		family := 0
		if g.First.Is6() {
			family = 1
		}
		for ip := g.First; g.Has(ip); ip = ip.Next() {
			if !used[ip] {
				n.free[family] = append(n.free[family], ip)
			}
		}
	}
	return nil
}

// crowd is the change that states the endpoints.
func (n *network) crowd(count int) (agent.Change, error) {
	c := agent.Change{Network: n.grant.Network.ID, Grant: &n.grant}
	for i := range count {
		n.counter.Number++
		r := overlay.Record{
			V: 1, Place: n.id.Place, Network: c.Network, Owner: n.id.Node, Lease: n.digest,
			Incarnation: n.counter.Incarnation, Number: n.counter.Number,
			Endpoint: overlay.NewID[overlay.EndpointID]([16]byte{0: 0xc0, 12: byte(i >> 16), 13: byte(i >> 8), 14: byte(i)}),
			Workload: fmt.Sprintf("crowd-%d", i), Names: []string{fmt.Sprintf("crowd-%d", i)},
			MAC: overlay.MAC{2, 0xc0, 0, byte(i >> 16), byte(i >> 8), byte(i)}, IPs: []netip.Addr{n.free[0][spare+i], n.free[1][spare+i]},
		}
		s, err := overlay.Sign(overlay.DomainRecord, n.id.Key, r)
		if err != nil {
			return c, err
		}
		c.Records = append(c.Records, agent.OwnRecord{Network: c.Network, Endpoint: r.Endpoint, Signed: s})
		fmt.Println(r.MAC)
	}
	c.Counter = n.counter
	return c, nil
}
