//go:build linux

package vm

import (
	"bufio"
	"encoding/json"
	"errors"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// link is the near end of the serial port to a host's agent.
type link struct {
	conn net.Conn

	mu      sync.Mutex // guards what follows
	lastID  int
	waiting map[int]chan ending // each takes one
	boot    string              // the last agent's boot_id, "" before the first
	news    chan struct{}       // closed and replaced when boot changes, and at the end
	down    error               // why nothing comes any more
}

// ending is the end of a command, or why it isn't known.
type ending struct {
	answer
	err error
}

func newLink(conn net.Conn) *link {
	l := &link{conn: conn, waiting: map[int]chan ending{}, news: make(chan struct{})}
	go l.listen()
	return l
}

var errNewBoot = errors.New("it has been booted again meanwhile")

// listen takes answers until the connection ends.
func (l *link) listen() {
	lines := bufio.NewReader(l.conn)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.down = errors.New("it is off")
			l.forget(l.down)
			return
		}
		var a answer
		if json.Unmarshal(line, &a) != nil {
			continue // a former agent was cut off
		}
		l.mu.Lock()
		if a.ID == 0 && a.Boot != "" {
			l.boot = a.Boot
			l.forget(errNewBoot)
		} else if c := l.waiting[a.ID]; c != nil {
			delete(l.waiting, a.ID)
			c <- ending{answer: a}
		}
		l.mu.Unlock()
	}
}

// forget tells all who wait that no answer comes. The caller holds mu.
func (l *link) forget(why error) {
	for _, c := range l.waiting {
		c <- ending{err: why}
	}
	clear(l.waiting)
	close(l.news)
	l.news = make(chan struct{})
}

// state is the running system's boot_id, why there is none any more, and a channel that is
// closed at the next change.
func (l *link) state() (boot string, news <-chan struct{}, down error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.boot, l.news, l.down
}

// start sends a command and returns its number and where its end is told.
func (l *link) start(args []string) (int, <-chan ending, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down != nil {
		return 0, nil, l.down
	}
	l.lastID++
	c := make(chan ending, 1)
	if err := l.send(request{ID: l.lastID, Args: args}); err != nil {
		return 0, nil, err
	}
	l.waiting[l.lastID] = c
	return l.lastID, c, nil
}

func (l *link) signal(id int, s unix.Signal) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.send(request{ID: id, Signal: s})
}

// send writes one line. The caller holds mu.
func (l *link) send(r request) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = l.conn.Write(append(b, '\n'))
	return err
}
