package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/heddle-net/heddle/overlay"
)

// serviceRow is a service under the names that its JSON has, so that templates use them too.
type serviceRow struct {
	ID        overlay.ServiceID
	Name      string
	Network   string
	NetworkID overlay.NetworkID
	Mode      overlay.EndpointMode
	VIPs      []netip.Addr
	Ports     []portRow
	Publish   []publishRow
	Selector  map[string]string `json:",omitempty"`
	Health    *healthRow        `json:",omitempty"`
	Labels    map[string]string `json:",omitempty"`
	Created   uint64
	Updated   uint64
	Backends  []overlay.BackendRow
}

type portRow struct {
	Name   string `json:",omitempty"`
	Proto  string
	Port   uint16
	Target uint16
}

type publishRow struct {
	Addr   netip.Addr `json:",omitzero"`
	Port   uint16     `json:",omitempty"` // none while it is not chosen
	Target uint16
	Proto  string
	Mode   overlay.PublishMode `json:",omitempty"`
}

type healthRow struct {
	Kind     overlay.HealthKind
	Port     uint16 `json:",omitempty"`
	Path     string `json:",omitempty"`
	Command  string `json:",omitempty"`
	Interval string
	Timeout  string
	Rise     int
	Fall     int
}

func newServiceRow(s overlay.ServiceRow) serviceRow {
	r := serviceRow{
		ID: s.ID, Name: s.Name, Network: s.Network, NetworkID: s.NetworkID, Mode: s.Mode, VIPs: orEmpty(s.VIPs),
		Ports: make([]portRow, len(s.Ports)), Publish: publishRows(s.Publish), Selector: s.Selector, Health: newHealthRow(s.Health),
		Labels: s.Labels, Created: s.Created, Updated: s.Updated, Backends: orEmpty(s.Backends),
	}
	for i, p := range s.Ports {
		r.Ports[i] = portRow(p)
	}
	return r
}

func publishRows(all []overlay.Publish) []publishRow {
	rows := make([]publishRow, len(all))
	for i, p := range all {
		rows[i] = publishRow(p)
	}
	return rows
}

// newHealthRow shows what is asked for with all that it leaves open, and nothing for nothing.
func newHealthRow(h overlay.Health) *healthRow {
	if h.Kind == "" {
		return nil
	}
	h = h.DefaultHealth()
	return &healthRow{h.Kind, h.Port, h.Path, h.Command, h.Interval.String(), h.Timeout.String(), h.Rise, h.Fall}
}

// orEmpty is a list that JSON shows as one, though nothing is in it.
func orEmpty[T any](all []T) []T {
	if all == nil {
		return []T{}
	}
	return all
}

func (p portRow) String() string {
	s := strconv.Itoa(int(p.Port))
	if p.Target != p.Port {
		s += ":" + strconv.Itoa(int(p.Target))
	}
	if p.Name != "" {
		s = p.Name + ":" + s
	}
	return s + "/" + p.Proto
}

func (p publishRow) String() string {
	s := "?"
	if p.Port != 0 {
		s = strconv.Itoa(int(p.Port))
	}
	switch {
	case p.Addr.Is6():
		s = "[" + p.Addr.String() + "]:" + s
	case p.Addr.IsValid():
		s = p.Addr.String() + ":" + s
	}
	s += fmt.Sprintf("->%d/%s", p.Target, p.Proto)
	if p.Mode == overlay.PublishLocal {
		s += " local"
	}
	return s
}

// listed puts a cell of a table together; nothing is a dash.
func listed[T fmt.Stringer](all []T) string {
	s := make([]string, len(all))
	for i, v := range all {
		s[i] = v.String()
	}
	return cmp.Or(strings.Join(s, ", "), "-")
}
