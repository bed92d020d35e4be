//go:build linux

package daemon

import (
	"cmp"
	"io"
	"net"
	"net/netip"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/store"
)

// free makes sure that nobody holds this node's ports, before anything is changed. VXLAN devices
// of others may have the data path's: they share it.
func (d *Daemon) free(at store.Addresses, dataPath uint16) error {
	inFile := func(option string) string { return "set " + option + " in " + DefaultConfigFile }
	for _, p := range []struct {
		datapath.Port
		where   netip.Addr
		instead string
	}{
		{datapath.Port{Proto: "tcp", Port: d.cfg.ControlPort}, at.Listen, inFile("control-port")},
		{datapath.Port{Proto: "tcp", Port: d.cfg.GossipPort}, at.Listen, inFile("gossip-port")},
		{datapath.Port{Proto: "udp", Port: d.cfg.GossipPort}, at.Listen, inFile("gossip-port")},
		{datapath.Port{Proto: "udp", Port: d.cfg.WireGuardPorts()[0]}, at.Local(), inFile("wireguard-port")},
		{datapath.Port{Proto: "udp", Port: d.cfg.WireGuardPorts()[1]}, at.Local(), inFile("wireguard-port")},
		{datapath.Port{Proto: "udp", Port: dataPath}, at.Local(), "make the cluster with another --data-path-port"},
	} {
		err := try(p.Proto, netip.AddrPortFrom(p.where, p.Port.Port).String())
		by := ""
		if err != nil {
			by = d.kernel.Program(p.Port)
		}
		if err == nil || by == "" && p.Port == (datapath.Port{Proto: "udp", Port: dataPath}) {
			continue
		}
		return overlay.Errorf(overlay.InUse, "port %d/%s is taken by %s (%w); stop that, or %s", p.Port.Port, p.Proto, cmp.Or(by, "somebody"), err, p.instead)
	}
	return nil
}

// try opens and closes a port.
func try(proto, where string) error {
	var c io.Closer
	var err error
	if proto == "tcp" {
		c, err = net.Listen("tcp", where)
	} else {
		c, err = net.ListenPacket("udp", where)
	}
	if err != nil {
		return err
	}
	return c.Close()
}
