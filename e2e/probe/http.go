//go:build linux

package probe

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// bulk is the length of what /bulk answers.
const bulk = 4 << 20

// serve [-port 80] [-text T]: answers every HTTP request with the text and the client's
// address, /bulk with 4 MiB, until it is killed. It prints a line when it listens.
func serve(args []string) error {
	f := flag.NewFlagSet("serve", flag.ExitOnError)
	port := f.Int("port", 80, "TCP port")
	text := f.String("text", "hello", "what to answer")
	_ = f.Parse(args)
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", *port))
	if err != nil {
		return err
	}
	fmt.Println("listening on port", *port)
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bulk" {
			_, _ = w.Write(make([]byte, bulk))
			return
		}
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s, asked by %s\n", *text, host)
	}))
}

// fetch [-timeout 5s] URL: prints what the server answers.
func fetch(args []string) error {
	f := flag.NewFlagSet("fetch", flag.ExitOnError)
	timeout := f.Duration("timeout", 5*time.Second, "for all of it")
	_ = f.Parse(args)
	c := http.Client{Timeout: *timeout}
	resp, err := c.Get(f.Arg(0))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", f.Arg(0), resp.Status)
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}
