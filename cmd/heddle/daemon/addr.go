//go:build linux

package daemon

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/overlay"
)

// candidate is an address of this host that others might reach it by.
type candidate struct {
	Link string
	Addr netip.Addr
}

// candidates are the host's addresses that others might reach it by.
func (d *Daemon) candidates() (all []candidate, err error) {
	host, err := d.kernel.GlobalAddrs()
	for _, h := range host {
		all = append(all, candidate{h.Link, h.Addr})
	}
	return all, seen(err)
}

// choose finds the address that a flag means: an address of this host, or an interface with
// one address of a family. With an empty value it is the only candidate there is; several
// are an error with a ready command for each. command is the verb and its other arguments.
func choose(command, flag, value string, all []candidate) (netip.Addr, error) {
	if value == "" {
		return only(command, flag, all)
	}
	if a, err := netip.ParseAddr(value); err == nil {
		if !slices.ContainsFunc(all, func(c candidate) bool { return c.Addr == a.Unmap() }) {
			return a, overlay.Errorf(overlay.Invalid, "%s %s is no address of this host; it has %s", flag, value, list(all))
		}
		return a.Unmap(), nil
	}
	var on []candidate
	for _, c := range all {
		if c.Link == value {
			on = append(on, c)
		}
	}
	if len(on) == 0 {
		return netip.Addr{}, overlay.Errorf(overlay.Invalid, "%s %q is neither an IP address nor an interface with a global one; this host has %s", flag, value, list(all))
	}
	return only(command, flag, on)
}

// only is the one candidate. An IPv4 address goes before the IPv6 ones of the same host.
func only(command, flag string, all []candidate) (netip.Addr, error) {
	pick := slices.DeleteFunc(slices.Clone(all), func(c candidate) bool { return !c.Addr.Is4() })
	if len(pick) == 0 {
		pick = all
	}
	switch len(pick) {
	case 0:
		return netip.Addr{}, overlay.Errorf(overlay.Invalid, "this host has no global address on a real interface; give it one, or name one with %s", flag)
	case 1:
		return pick[0].Addr, nil
	}
	var try []string
	for _, c := range pick {
		try = append(try, fmt.Sprintf("`heddle %s %s %s` (%s)", command, flag, c.Addr, c.Link))
	}
	return netip.Addr{}, overlay.Errorf(overlay.Invalid, "this host has %d addresses to choose from; use one of %s", len(pick), strings.Join(try, ", "))
}

func list(all []candidate) string {
	var s []string
	for _, c := range all {
		s = append(s, c.Addr.String()+" ("+c.Link+")")
	}
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}

func family(all []candidate, six bool) (out []candidate) {
	for _, c := range all {
		if c.Addr.Is6() == six {
			out = append(out, c)
		}
	}
	return out
}

func familyName(six bool) string {
	if six {
		return "IPv6"
	}
	return "IPv4"
}
