//go:build linux

package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cage is a place for a canary: an interface in a workload's namespace, the network that it is in,
// and where to send.
type Cage struct {
	NS, Dev, Network string
	To               []netip.Addr
}

// Sung is what canary prints of a cage: how many frames came with its own network's name from
// elsewhere, and what names of other networks came.
type Sung struct {
	Cage
	Own     int
	Foreign map[string]int
}

const (
	canaryPort  = 7979
	canaryEvery = 20 * time.Millisecond
)

var canaryText = regexp.MustCompile(`heddle-canary<([^>]*)>`)

// canary CAGES: sends, in each of the cages (JSON), packets with the name of its network, and looks
// at all frames that come for names, until SIGINT. It prints a line when all listen and, at the
// end, a list of Sung as JSON.
func canary(args []string) error {
	if len(args) != 1 {
		return errors.New("canary: needs a list of cages")
	}
	var cages []Cage
	if err := json.Unmarshal([]byte(args[0]), &cages); err != nil {
		return err
	}
	stop, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer cancel()
	sung := make([]Sung, len(cages))
	errs := make([]error, len(cages))
	var all sync.WaitGroup
	for i, c := range cages {
		sung[i] = Sung{Cage: c, Foreign: map[string]int{}}
		ear, mouths, err := c.open()
		if err != nil {
			return fmt.Errorf("canary in %s: %w", c.NS, err)
		}
		all.Go(func() { sing(stop, c, mouths) })
		all.Go(func() {
			errs[i] = ear.each(stop, func(frame []byte, leaves bool) {
				if !leaves {
					sung[i].hear(frame)
				}
			})
		})
	}
	fmt.Println("listening")
	all.Wait()
	return errors.Join(errors.Join(errs...), json.NewEncoder(os.Stdout).Encode(sung))
}

// hear looks for names in a frame.
func (s *Sung) hear(frame []byte) {
	for _, m := range canaryText.FindAllSubmatch(frame, -1) {
		if name := string(m[1]); name != s.Network {
			s.Foreign[name]++
		} else {
			s.Own++
		}
	}
}

// open opens the sockets inside the cage's namespace: one that hears all, and one of each family
// to send by.
func (c Cage) open() (ear packets, mouths map[bool]net.PacketConn, err error) {
	mouths = map[bool]net.PacketConn{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocks: the thread ends
		var f *os.File
		if f, err = os.Open(c.NS); err != nil {
			return
		}
		defer f.Close()
		if err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return
		}
		if ear, err = openPackets(c.Dev); err != nil {
			return
		}
		bound := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			_ = raw.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), c.Dev) })
			return err
		}}
		for _, v4 := range []bool{true, false} {
			if mouths[v4], err = bound.ListenPacket(context.Background(), map[bool]string{true: "udp4", false: "udp6"}[v4], fmt.Sprintf(":%d", canaryPort)); err != nil {
				return
			}
		}
	}()
	<-done
	return ear, mouths, err
}

func sing(stop context.Context, c Cage, mouths map[bool]net.PacketConn) {
	text := []byte("heddle-canary<" + c.Network + ">")
	tick := time.NewTicker(canaryEvery)
	defer tick.Stop()
	for {
		for _, to := range c.To {
			_, _ = mouths[to.Is4()].WriteTo(text, &net.UDPAddr{IP: to.AsSlice(), Port: canaryPort}) // one that can't be sent reaches nobody
		}
		select {
		case <-tick.C:
		case <-stop.Done():
			return
		}
	}
}
