package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

const patience = time.Second // an operation that takes longer says what it waits for

// waiter says on stderr what an operation waits for, if it takes long. On a terminal it
// keeps to one line and clears it at the end.
type waiter struct {
	to       io.Writer
	terminal bool
	timer    *time.Timer

	mu   sync.Mutex
	what string
	late bool // patience has passed
	done bool
}

func (c *cli) startWaiter() *waiter {
	w := &waiter{to: c.err, terminal: isTerminal(c.err), what: "the daemon"}
	w.timer = time.AfterFunc(patience, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.late = true
		w.show()
	})
	return w
}

// say is told what the operation waits for. It may be called from any goroutine.
func (w *waiter) say(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.what == what {
		return
	}
	w.what = what
	if w.late {
		w.show()
	}
}

// show prints the line. w.mu is held.
func (w *waiter) show() {
	switch {
	case w.done:
	case w.terminal:
		fmt.Fprintf(w.to, "\r\x1b[Kwaiting for %s …", w.what)
	default:
		fmt.Fprintf(w.to, "waiting for %s …\n", w.what)
	}
}

func (w *waiter) stop() {
	w.timer.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = true
	if w.late && w.terminal {
		fmt.Fprint(w.to, "\r\x1b[K")
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	i, err := f.Stat()
	return err == nil && i.Mode()&os.ModeCharDevice != 0
}
