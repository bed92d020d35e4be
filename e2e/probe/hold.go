//go:build linux

package probe

import (
	"errors"
	"fmt"
	"net"
)

// hold PORT: listens on a TCP and UDP port until it is killed. It prints a line when it does.
func hold(args []string) error {
	if len(args) != 1 {
		return errors.New("hold: needs a port")
	}
	u, err := net.ListenPacket("udp", ":"+args[0])
	if err != nil {
		return err
	}
	defer u.Close()
	l, err := net.Listen("tcp", ":"+args[0])
	if err != nil {
		return err
	}
	fmt.Println("holding")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		c.Close()
	}
}
