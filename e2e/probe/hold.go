//go:build linux

package probe

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
)

// hold PORT/PROTO...: has TCP and UDP ports open until it is killed. It prints a line when it has.
func hold(args []string) error {
	if len(args) == 0 {
		return errors.New("hold: needs a port, as in 53/udp")
	}
	for _, a := range args {
		port, proto, _ := strings.Cut(a, "/")
		var err error
		if proto == "tcp" {
			_, err = net.Listen(proto, ":"+port)
		} else {
			_, err = net.ListenPacket(proto, ":"+port)
		}
		if err != nil {
			return err
		}
	}
	fmt.Println("holding")
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt)
	<-end
	return nil
}
