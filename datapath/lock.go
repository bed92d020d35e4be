package datapath

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Lock keeps a port's workload to its own name: what it sends otherwise is dropped where it
// enters the port, and counted by kind. Allowed are IPv4, ARP and IPv6, untagged, from the MAC;
// with the IPs, and the link-local address that belongs to the MAC (RFC 4291, appendix A), as
// sender in all of them; but no router advertisements, redirects, and answers of DHCP.
// Key: (NS, Link).
type Lock struct {
	NS    NS
	Link  string // the bridge's side of the port
	MAC   MAC
	IPs   []netip.Addr
	Host  bool // the workload is the host itself, whose programs may send VXLAN only by way of this port
	Owner Owner
}

// Forgery is the kind of what a lock drops.
type Forgery string

const (
	ForgedMAC   Forgery = "mac"   // source MAC
	ForgedIP    Forgery = "ip"    // source address
	ForgedARP   Forgery = "arp"   // sender in ARP
	ForgedND    Forgery = "nd"    // sender, target or link-layer address in neighbour or router solicitations and neighbour advertisements
	ForgedRA    Forgery = "ra"    // router advertisements and redirects
	ForgedDHCP  Forgery = "dhcp"  // what DHCP and DHCPv6 servers send to clients
	ForgedVLAN  Forgery = "vlan"  // frames with a tag of IEEE 802.1Q or 802.1ad
	ForgedOther Forgery = "other" // neither IPv4 nor ARP nor IPv6
)

// Key is the port's key.
func (l Lock) Key() LinkKey { return LinkKey{l.NS, l.Link} }

// LinkLocal is the link-local address that belongs to the MAC.
func (m MAC) LinkLocal() netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// Allows names what the lock allows, whatever the order of its addresses.
func (l Lock) Allows() string {
	ips := slices.SortedFunc(slices.Values(l.IPs), netip.Addr.Compare)
	out := strings.TrimSpace(l.MAC.String() + " " + strings.Trim(fmt.Sprint(ips), "[]"))
	if l.Host {
		out += " host"
	}
	return out
}

func (l Lock) String() string { return fmt.Sprintf("%s/%s %s", l.NS, l.Link, l.Allows()) }

// addLocks locks ports before they are set up, and those that are not locked as wanted.
func (d *differ) addLocks() {
	for _, l := range d.want.Locks {
		if have, ok := d.have.Locks[l.Key()]; !ok || have.Allows() != l.Allows() || d.fresh(l.Key()) {
			d.do(SetLock{l})
		}
	}
}

// delLocks takes locks away after their ports.
func (d *differ) delLocks() {
	ending := d.endingNS()
	for _, l := range unwanted(d.have.Locks, d.want.Locks, Lock.Key, compareLinks) {
		if !ending[l.NS] {
			d.do(DelLock{l})
		}
	}
}
