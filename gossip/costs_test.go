package gossip

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/heddle-net/heddle/gossip/table"
	"github.com/heddle-net/heddle/overlay"
)

// measure says what gossip's work costs on this machine, for virtual time to charge.
func measure(t testing.TB) (c costs, record time.Duration) {
	a, b := pair(t, true)
	push := pushes(t, 300)
	next := 0
	record = fastest(6, 50, func() {
		f, err := decode(push[next])
		if err != nil {
			t.Fatal(err)
		}
		b.takeParts(f.Networks)
		next++
	})
	if n := b.Counters()["records accepted"]; n != 300 {
		t.Fatalf("%d of 300 records were accepted", n)
	}
	c.takeByte = float64(record) / float64(len(push[0]))

	nowhere, err := net.ListenPacket("udp", "127.0.0.1:0") // receives, and is not read
	if err != nil {
		t.Fatal(err)
	}
	defer nowhere.Close()
	to := memberlist.Address{Addr: nowhere.LocalAddr().String(), Name: string(nodeC)}
	c.packet = fastest(6, 200, func() { _ = a.list.SendToAddress(to, push[0]) })

	c.handshake = fastest(6, 10, func() {
		s, err := a.wire.Dial(context.Background(), hostPort(b.Advertised()), nodeB)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	}) / 2

	near, far := tlsPair(t)
	defer near.Close()
	go func() { defer far.Close(); _, _ = io.Copy(io.Discard, far) }() // ends with near
	bulk := make([]byte, 1<<20)
	c.streamByte = float64(fastest(6, 4, func() { _, _ = near.Write(bulk) })) / float64(len(bulk))
	return c, record
}

// tlsPair is a stream between two nodes on loopback.
func tlsPair(t testing.TB) (near, far net.Conn) {
	server, client := tlsOf(t, nodeA)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := &transport{client: client}
	got := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			s := tls.Server(c, server(alpnSync))
			c, err = s, s.HandshakeContext(t.Context())
		}
		if err != nil {
			t.Error(err)
		}
		got <- c
	}()
	if near, err = w.Dial(t.Context(), l.Addr().String(), nodeA); err != nil {
		t.Fatal(err)
	}
	return near, <-got
}

// pushes are packets of nodeA's, each with one record.
func pushes(t testing.TB, n int) (out [][]byte) {
	tr, l := trust(t), lease(t, nodeA)
	for i := range n {
		c, err := tr.CheckRecord(endpoint(t, nodeA, uint64(i+1), "10.0.0.2", nil), l)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(frame{V: version, Kind: kindPush, From: nodeA, ID: uint64(i), Networks: []part{{
			Network: blue, Batches: []batch{pack(table.Batch{Owner: nodeA, Claims: []overlay.Claim{c}})},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// fastest is what one call takes, in the best of some rounds: the others were disturbed.
func fastest(rounds, calls int, f func()) time.Duration {
	best := time.Hour
	for range rounds {
		begin := time.Now()
		for range calls {
			f()
		}
		best = min(best, time.Since(begin)/time.Duration(calls))
	}
	return best
}

func BenchmarkTakeIn(b *testing.B) {
	n := node(b, nodeB, true)
	push := pushes(b, 1000)
	b.SetBytes(int64(len(push[0])))
	for i := 0; b.Loop(); i++ {
		if i%len(push) == 0 {
			n.mu.Lock()
			n.table.DropNetwork(blue)
			n.mu.Unlock()
		}
		f, err := decode(push[i%len(push)])
		if err != nil {
			b.Fatal(err)
		}
		n.takeParts(f.Networks)
	}
}
