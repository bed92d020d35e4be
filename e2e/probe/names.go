//go:build linux

package probe

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// ask [-server A] [-type A] [-tcp] NAME: asks a name server, by default the one that resolv.conf(5)
// names, and prints the code and what it answers, sorted, on one line.
//
// ask -every 5ms [-wait 5s] NAME: asks by UDP over and over, whether or not answers come, until SIGINT,
// and fails unless each question has the same answer, at most -wait after it. It prints how many
// were asked, and the longest time for one.
func ask(args []string) error {
	f := flag.NewFlagSet("ask", flag.ExitOnError)
	server := f.String("server", "", "address of the server")
	kind := f.String("type", "A", "type of the record")
	tcp := f.Bool("tcp", false, "by TCP")
	every := f.Duration("every", 0, "ask over and over")
	wait := f.Duration("wait", 5*time.Second, "for an answer")
	_ = f.Parse(args)
	if *server == "" {
		c, err := dns.ClientConfigFromFile("/etc/resolv.conf")
		if err != nil {
			return err
		}
		*server = c.Servers[0]
	}
	at, q := net.JoinHostPort(*server, "53"), new(dns.Msg).SetQuestion(dns.Fqdn(f.Arg(0)), dns.StringToType[*kind])
	if *every > 0 {
		return askOn(at, q, *every, *wait)
	}
	c := dns.Client{Timeout: *wait}
	if *tcp {
		c.Net = "tcp"
	}
	r, _, err := c.Exchange(q, at)
	if err == nil {
		fmt.Println(answered(r))
	}
	return err
}

// answered is the code of a reply and what it answers, sorted.
func answered(r *dns.Msg) string {
	var all []string
	for _, rr := range r.Answer {
		all = append(all, strings.Join(strings.Fields(rr.String())[4:], " "))
	}
	slices.Sort(all)
	return strings.Join(append([]string{dns.RcodeToString[r.Rcode]}, all...), " ")
}

func askOn(at string, q *dns.Msg, every, wait time.Duration) error {
	stop, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer cancel()
	c, err := net.Dial("udp", at)
	if err != nil {
		return err
	}
	defer c.Close()
	var mu sync.Mutex
	sent, answers := map[uint16]time.Time{}, map[string]int{}
	var longest time.Duration
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := c.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			var r dns.Msg
			if err != nil || r.Unpack(buf[:n]) != nil {
				continue // a refused port is a question without an answer
			}
			mu.Lock()
			if at, ok := sent[r.Id]; ok {
				delete(sent, r.Id)
				answers[answered(&r)]++
				longest = max(longest, time.Since(at))
			}
			mu.Unlock()
		}
	}()
	asked, tick := 0, time.NewTicker(every)
	defer tick.Stop()
	for ; stop.Err() == nil; <-tick.C {
		q.Id = uint16(asked)
		raw, err := q.Pack()
		if err != nil {
			return err
		}
		asked++
		mu.Lock()
		sent[q.Id] = time.Now()
		mu.Unlock()
		_, _ = c.Write(raw)
	}
	open := func() int { mu.Lock(); defer mu.Unlock(); return len(sent) }
	for end := time.Now().Add(wait); open() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	mu.Lock()
	defer mu.Unlock()
	said := fmt.Sprintf("%d questions, %d without an answer, longest %s: %v", asked, len(sent), longest.Round(time.Millisecond), answers)
	if len(sent) > 0 || len(answers) != 1 || longest > wait {
		return errors.New(said)
	}
	fmt.Println(said)
	return nil
}

// nameserver [-at 127.0.0.53] [-ip 192.0.2.53]: answers each question for A with one address, until it
// is killed, and prints the names that it is asked for.
func nameserver(args []string) error {
	f := flag.NewFlagSet("nameserver", flag.ExitOnError)
	at := f.String("at", "127.0.0.53", "where to listen")
	ip := f.String("ip", "192.0.2.53", "what to answer")
	_ = f.Parse(args)
	s := dns.Server{Addr: net.JoinHostPort(*at, "53"), Net: "udp", NotifyStartedFunc: func() { fmt.Println("listening") }}
	s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		fmt.Println(q.Question[0].Name)
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: net.ParseIP(*ip)}}
		}
		_ = w.WriteMsg(m)
	})
	return s.ListenAndServe()
}

// load [-rate 20000] [-for 2s] SERVER NAME: asks for A by UDP at a rate, and prints how long each answer took, in
// microseconds; -1 for each question without one.
func load(args []string) error {
	f := flag.NewFlagSet("load", flag.ExitOnError)
	rate := f.Int("rate", 20000, "questions a second")
	length := f.Duration("for", 2*time.Second, "how long")
	_ = f.Parse(args)
	c, err := net.Dial("udp", net.JoinHostPort(f.Arg(0), "53"))
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := new(dns.Msg).SetQuestion(dns.Fqdn(f.Arg(1)), dns.TypeA).Pack()
	if err != nil {
		return err
	}
	const ids = 1 << 16
	var sent [ids]atomic.Int64 // when, since the start; 0 is no question
	took := make(chan []int64)
	start := time.Now()
	go func() {
		var all []int64
		buf := make([]byte, 512)
		for {
			n, err := c.Read(buf)
			if err != nil {
				took <- all
				return
			}
			if at := sent[binary.BigEndian.Uint16(buf)].Swap(0); at != 0 && n > len(raw) && buf[3]&0xf == 0 {
				all = append(all, (time.Since(start) - time.Duration(at)).Microseconds())
			}
		}
	}()
	asked := 0
	for time.Since(start) < *length {
		for due := int(time.Since(start).Seconds() * float64(*rate)); asked < due; asked++ {
			binary.BigEndian.PutUint16(raw, uint16(asked))
			sent[asked%ids].Store(int64(time.Since(start)))
			if _, err := c.Write(raw); err != nil {
				return err
			}
		}
		time.Sleep(100 * time.Microsecond)
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	all := <-took
	for range asked - len(all) {
		all = append(all, -1)
	}
	w := bufio.NewWriter(os.Stdout)
	for _, us := range all {
		fmt.Fprintln(w, us)
	}
	return w.Flush()
}
