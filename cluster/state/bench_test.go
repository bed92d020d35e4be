package state

import (
	"fmt"
	"testing"

	"github.com/heddle-net/heddle/overlay"
)

// large is 1,000 networks with 10 participants each.
func large(b *testing.B) *world {
	w := newWorld(b)
	w.do(initCmd(), CreateToken{token("wt", "worker")})
	for i := range 10 {
		w.do(join(fmt.Sprint("w", i), "wt"))
	}
	for i := range 1000 {
		name := fmt.Sprint("net", i)
		w.do(network46(name))
		for j := range 10 {
			w.do(Grant{Network: netID(name), Node: nid(fmt.Sprint("w", j))})
		}
	}
	w.log = nil
	return w
}

// crowded is a network with 1,000 services, half of them on every node.
func crowded(b *testing.B) *world {
	w := newWorld(b)
	w.do(initCmd(), CreateToken{token("wt", "worker")}, join("w1", "wt"), network4("blue", "10.0.0.0/12"), Grant{Network: netID("blue"), Node: nid("w1")})
	for i := range 1000 {
		w.do(published(fmt.Sprint("s", i), make([]uint16, i%2)...))
	}
	w.log = nil
	return w
}

// bench applies commands, with a reader after each when asked for.
func bench(b *testing.B, readers bool, world func(*testing.B) *world, command func(i int) Command) {
	w := world(b)
	var entries [][]byte
	for i := range 7000 { // the pool has 8,192 subnets
		e, err := Encode(Level, fmt.Sprint("r", i), command(i))
		if err != nil {
			b.Fatal(err)
		}
		entries = append(entries, e)
	}
	i := 0
	for b.Loop() {
		if i == len(entries) {
			b.StopTimer()
			w, i = world(b), 0
			b.StartTimer()
		}
		w.index++
		if _, err := w.s.Apply(w.index, entries[i]); err != nil {
			b.Fatal(err)
		}
		i++
		if readers {
			w.s.View()
			w.s.Since(w.index-1, nid("w1"))
		}
	}
}

func BenchmarkApply(b *testing.B) {
	for _, readers := range []bool{false, true} {
		name := map[bool]string{false: "", true: "+readers"}[readers]
		b.Run("CreateNetwork"+name, func(b *testing.B) {
			bench(b, readers, large, func(i int) Command { return network46(fmt.Sprint("new", i)) })
		})
		b.Run("CreateService"+name, func(b *testing.B) {
			bench(b, readers, crowded, func(i int) Command { return service(fmt.Sprint("new", i)) })
		})
		b.Run("UpdateService"+name, func(b *testing.B) {
			bench(b, readers, crowded, func(i int) Command {
				return UpdateService{servID(fmt.Sprint("s", i%1000)), overlay.ServiceUpdate{Labels: map[string]string{"a": fmt.Sprint(i)}}}
			})
		})
		b.Run("Grant"+name, func(b *testing.B) {
			bench(b, readers, large, func(i int) Command {
				return Grant{Network: netID(fmt.Sprint("net", i%1000)), Node: nid(fmt.Sprint("w", i/1000%10)), Want: 1}
			})
		})
	}
}

func BenchmarkSnapshot(b *testing.B) {
	w := large(b)
	b.Run("capture", func(b *testing.B) {
		for b.Loop() {
			w.s.Snapshot()
		}
	})
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			b.SetBytes(int64(len(snapshot(b, w.s))))
		}
	})
}
