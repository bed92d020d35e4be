package state

import (
	"fmt"
	"testing"
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

// bench applies commands, with a reader after each when asked for.
func bench(b *testing.B, readers bool, command func(i int) Command) {
	w := large(b)
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
			w, i = large(b), 0
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
			bench(b, readers, func(i int) Command { return network46(fmt.Sprint("new", i)) })
		})
		b.Run("Grant"+name, func(b *testing.B) {
			bench(b, readers, func(i int) Command {
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
