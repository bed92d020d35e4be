//go:build linux

package probe

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"time"
)

// answer [-port 8080] -name N: answers each byte that comes by TCP, and each UDP packet, with its name
// and the client's address, until it is killed. It prints a line when it listens.
func answer(args []string) error {
	f := flag.NewFlagSet("answer", flag.ExitOnError)
	port := f.Int("port", 8080, "TCP and UDP port")
	name := f.String("name", "", "what to answer")
	_ = f.Parse(args)
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", *port))
	if err != nil {
		return err
	}
	u, err := net.ListenPacket("udp", fmt.Sprintf(":%d", *port))
	if err != nil {
		return err
	}
	text := func(a net.Addr) []byte {
		host, _, _ := net.SplitHostPort(a.String())
		return fmt.Appendf(nil, "%s %s\n", *name, host)
	}
	fmt.Println("listening on port", *port)
	go func() {
		for b := make([]byte, 1500); ; {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(text(from), from)
		}
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			for b := make([]byte, 1); ; {
				if _, err := c.Read(b); err != nil {
					return
				}
				if _, err := c.Write(text(c.RemoteAddr())); err != nil {
					return
				}
			}
		}()
	}
}

// Greeted is what greet prints: who has answered how often, and whom the answerers have seen; what has
// failed; and the longest time that an answer took.
type Greeted struct {
	By, From map[string]int
	Errors   []string
	Longest  time.Duration
}

// greet [-proto tcp] [-n 100] [-every 0] [-timeout 2s] [-keep] [-until WHO] ADDR:PORT: asks so often, with
// 0 until SIGINT, or until somebody has answered; each time by a connection or UDP flow of its own, or
// all by one. It prints a Greeted as JSON.
func greet(args []string) error {
	f := flag.NewFlagSet("greet", flag.ExitOnError)
	proto := f.String("proto", "tcp", "tcp or udp")
	count := f.Int("n", 100, "how often")
	every := f.Duration("every", 0, "between two")
	keep := f.Bool("keep", false, "by one flow")
	timeout := f.Duration("timeout", 2*time.Second, "for an answer")
	until := f.String("until", "", "whose answer is the last")
	_ = f.Parse(args)
	stop, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	out := Greeted{By: map[string]int{}, From: map[string]int{}}
	var c net.Conn
	for i := 0; (*count == 0 || i < *count) && stop.Err() == nil && out.By[*until] == 0; i++ {
		begin := time.Now()
		err := func() (err error) {
			if c == nil {
				if c, err = net.DialTimeout(*proto, f.Arg(0), *timeout); err != nil {
					return err
				}
			}
			if !*keep {
				defer func() { c.Close(); c = nil }()
			}
			by, from, err := once(c, *timeout)
			if err == nil {
				out.By[by]++
				out.From[from]++
			}
			return err
		}()
		if err != nil && len(out.Errors) < 100 {
			out.Errors = append(out.Errors, err.Error())
		}
		out.Longest = max(out.Longest, time.Since(begin))
		select {
		case <-stop.Done():
		case <-time.After(*every):
		}
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

// once asks by a flow, and answers who says what.
func once(c net.Conn, timeout time.Duration) (by, from string, err error) {
	_ = c.SetDeadline(time.Now().Add(timeout))
	if _, err := c.Write([]byte("?")); err != nil {
		return "", "", err
	}
	b := make([]byte, 200)
	n, err := c.Read(b)
	if err != nil {
		return "", "", err
	}
	by, from, _ = strings.Cut(strings.TrimSpace(string(b[:n])), " ")
	return by, from, nil
}
