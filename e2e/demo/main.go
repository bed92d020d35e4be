//go:build linux

// Command demo shows heddle at work on one machine: five hosts in namespaces, a cluster of
// them, a network, a web server reached from another host, and the loss of the leader. It
// needs root, iproute2 and the built program beside it, and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

func main() {
	lab.Main()
	probe.Main()
	shell := flag.Bool("shell", false, "leave the hosts running, with a shell on one, until it ends")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, *shell)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, shell bool) (err error) {
	if err := preflight(ctx); err != nil {
		return err
	}
	begin := time.Now()
	d := &demo{}
	d.say("Five hosts come up, each with network, processes, /run and /var/lib/heddle of its own, on one switch.\n" +
		"Three become managers, which agree on networks, addresses and members; two become workers.")
	d.c, err = cluster.NewHosts(ctx, "demo", cluster.Config{Managers: 3, Workers: 2, Show: d.show})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.c.Close()) }()
	if err := d.c.Form(ctx); err != nil {
		return err
	}
	d.say(fmt.Sprintf("That took %s.", time.Since(begin).Round(10*time.Millisecond)))
	for _, step := range []func(context.Context) error{d.network, d.fetch, d.look, d.loseLeader} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	d.say(fmt.Sprintf("Done in %s. What was promised happened: a network over five hosts with one command each, reached over IPv4\n"+
		"and IPv6 from the first packet, and untouched by the loss of a manager.", time.Since(begin).Round(100*time.Millisecond)))
	if shell {
		return d.shell(ctx)
	}
	return nil
}

// demo is the story's state. A failed step ends it with an error.
type demo struct {
	c   *cluster.Cluster
	web cluster.Endpoint // of the web server, on the first worker
}

func (d *demo) server() *lab.Host { return d.c.Host(4) }
func (d *demo) client() *lab.Host { return d.c.Host(5) }

// say explains what comes.
func (d *demo) say(s string) { fmt.Printf("\n== %s\n", strings.ReplaceAll(s, "\n", "\n   ")) }

// show prints a command as typed on a host, and its output.
func (d *demo) show(h *lab.Host, command, output string) {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s# %s\n", h.Name(), command)
	if output != "" {
		fmt.Fprintln(&b, output)
	}
	fmt.Print(b.String())
}

// do runs a command on a host and shows it.
func (d *demo) do(ctx context.Context, h *lab.Host, args ...string) error {
	out, err := h.Output(ctx, args...)
	if err != nil {
		return err
	}
	line := strings.Join(args, " ")
	if self, err := os.Executable(); err == nil {
		line = strings.ReplaceAll(line, self+" "+probe.Command, "probe")
	}
	d.show(h, line, strings.TrimSpace(out))
	return nil
}

func (d *demo) heddle(ctx context.Context, h *lab.Host, args ...string) error {
	_, err := d.c.Do(ctx, h, args...)
	return err
}

// network makes the network and a web server in it.
func (d *demo) network(ctx context.Context) error {
	d.say("One command makes a network for all hosts, with IPv4 and IPv6. `attach` gives a workload a place in it:\n" +
		"here a namespace of its own on " + d.server().Name() + ", in which a web server starts.")
	if err := d.heddle(ctx, d.c.Host(1), "network", "create", "demo", "--ipv6"); err != nil {
		return err
	}
	if err := d.heddle(ctx, d.server(), "attach", "web", "--network", "demo"); err != nil {
		return err
	}
	args := append([]string{"ip", "netns", "exec", "web"}, probe.Args("serve", "-text", "hello from "+d.server().Name())...)
	if err := d.serve(ctx, args); err != nil {
		return err
	}
	var rows []cluster.Endpoint
	if err := d.c.JSON(ctx, d.server(), &rows, "endpoint", "ls", "--local", "--format", "json"); err != nil {
		return err
	}
	if len(rows) != 1 {
		return fmt.Errorf("%s lists %d endpoints of its own, not one", d.server().Name(), len(rows))
	}
	d.web = rows[0]
	return nil
}

// serve starts the web server and waits until it listens.
func (d *demo) serve(ctx context.Context, args []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = d.server().Start(lab.Command{Args: args, Stdout: w, Stderr: os.Stderr})
	w.Close()
	if err != nil {
		return err
	}
	line := make([]byte, 80)
	if n, err := r.Read(line); err != nil || n == 0 {
		return fmt.Errorf("the web server did not start: %w", err)
	}
	return ctx.Err()
}

// fetch asks the web server from the other worker, over both families.
func (d *demo) fetch(ctx context.Context) error {
	d.say(fmt.Sprintf("`heddle run` on %s starts a command in a namespace of its own that is attached while it runs.\n"+
		"It fetches from %s: the first packet already finds its way, since the address was known before attach answered.",
		d.client().Name(), d.server().Name()))
	for _, url := range d.urls() {
		if err := d.do(ctx, d.client(), append([]string{"heddle", "run", "--network", "demo", "--"}, probe.Args("fetch", url)...)...); err != nil {
			return fmt.Errorf("fetch %s: %w", url, err)
		}
	}
	return nil
}

func (d *demo) urls() []string {
	return []string{fmt.Sprintf("http://%s/", d.web.IPv4.Addr()), fmt.Sprintf("http://[%s]/", d.web.IPv6.Addr())}
}

// look shows what operator and kernel see.
func (d *demo) look(ctx context.Context) error {
	d.say("A workload stays attached on " + d.client().Name() + ". This is what the node says, without asking anybody:")
	for _, args := range [][]string{{"attach", "client", "--network", "demo"}, {"status"}, {"network", "inspect", "demo"}} {
		if err := d.heddle(ctx, d.client(), args...); err != nil {
			return err
		}
	}
	var nets []cluster.Network
	if err := d.c.JSON(ctx, d.client(), &nets, "network", "inspect", "demo"); err != nil {
		return err
	}
	if len(nets) != 1 {
		return fmt.Errorf("network inspect lists %d networks, not one", len(nets))
	}
	n := nets[0]
	d.say(fmt.Sprintf("And this is the kernel of %s. The network has a namespace of its own with a bridge and a VXLAN device. The\n"+
		"server's MAC %s stands there with the address of %s (%s), and so do its addresses as neighbours: written by\n"+
		"heddle, permanent, so that nothing has to be learned or flooded.", d.client().Name(), d.web.MAC, d.server().Name(), d.server().Addr()))
	if err := d.do(ctx, d.client(), "ip", "netns", "exec", n.Namespace, "bridge", "fdb", "show", "dev", n.Device); err != nil {
		return err
	}
	return d.do(ctx, d.client(), "ip", "-n", n.Namespace, "neigh", "show", "nud", "permanent")
}

// loseLeader kills the leading manager and shows that nothing depends on it.
func (d *demo) loseLeader(ctx context.Context) error {
	leader, err := d.c.Leader(ctx, d.client())
	if err != nil {
		return err
	}
	d.say(fmt.Sprintf("Now the daemon of %s, which leads the managers, is killed with SIGKILL. Traffic does not notice, and the\n"+
		"other managers choose a leader who takes writes.", leader.Name()))
	if err := leader.KillDaemon(); err != nil {
		return err
	}
	killed := time.Now()
	d.show(leader, "kill -9 $(pidof heddle)", "")
	for _, url := range d.urls() {
		if err := d.do(ctx, d.client(), append([]string{"ip", "netns", "exec", "client"}, probe.Args("fetch", url)...)...); err != nil {
			return fmt.Errorf("fetch %s without the leader: %w", url, err)
		}
	}
	err = cluster.Eventually(ctx, 20*time.Second, func(ctx context.Context) error {
		return d.heddle(ctx, d.client(), "network", "create", "second")
	})
	if err != nil {
		return fmt.Errorf("create a network without the old leader: %w", err)
	}
	d.say(fmt.Sprintf("The next write went through %s after the kill. The killed daemon starts again and follows:", time.Since(killed).Round(10*time.Millisecond)))
	if err := leader.StartDaemon(); err != nil {
		return err
	}
	return d.heddle(ctx, d.client(), "node", "ls")
}

// shell gives the terminal to a shell on the first host until it ends.
func (d *demo) shell(ctx context.Context) error {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return errors.New("demo-shell needs a terminal; run make demo without one")
	}
	defer tty.Close()
	d.say("You are on n1; its neighbours n2 to n5 are 192.168.77.2 to .5. Try: heddle status, heddle run --network demo -- sh.\n" +
		"Leave with exit; then all of it goes away. For a shell on another host type in another terminal of this machine:")
	for _, h := range d.c.Hosts()[1:] {
		fmt.Printf("   nsenter -a -t %s sh    # %s\n", strings.Split(h.Path(""), "/")[2], h.Name())
	}
	p, err := d.c.Host(1).Start(lab.Command{Args: []string{"sh", "-i"}, Env: []string{"PS1=n1# "}, Stdin: tty, Stdout: tty, Stderr: tty, Foreground: true})
	if err != nil {
		return err
	}
	err = p.Wait(ctx)
	signal.Ignore(unix.SIGTTOU) // else taking the terminal back stops this process
	if pg := unix.IoctlSetPointerInt(int(tty.Fd()), unix.TIOCSPGRP, unix.Getpgrp()); pg != nil {
		return fmt.Errorf("take the terminal back: %w", pg)
	}
	if _, ok := errors.AsType[*lab.ExitError](err); ok {
		return nil // the code of the last command typed
	}
	return err
}
