package overlay

import (
	"net/netip"
	"slices"
)

// Record is what a node says of one of its endpoints, signed by the node's key and covered
// by the node's lease. Where the endpoint is, is a look-up of the owner's node record.
type Record struct {
	V int `json:"v"`
	Place
	Network     NetworkID         `json:"network"`
	Endpoint    EndpointID        `json:"endpoint"`
	Owner       NodeID            `json:"owner"`
	Incarnation uint64            `json:"incarnation"` // of the owner's own table, from 1; grows when the owner lost its disk
	Number      uint64            `json:"number"`      // counts the owner's changes in this network, from 1, without gaps
	Workload    string            `json:"workload,omitempty"`
	MAC         MAC               `json:"mac"`
	IPs         []netip.Addr      `json:"ips,omitempty"`
	Names       []string          `json:"names,omitempty"`
	Service     string            `json:"service,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Health      string            `json:"health,omitempty"`  // see HealthStarting and the others
	Since       int64             `json:"since,omitempty"`   // of Health: Unix seconds by the owner's clock, for people
	Deleted     bool              `json:"deleted,omitempty"` // a tombstone: the endpoint is gone; IPs and names are empty
	Lease       string            `json:"lease,omitempty"`   // digest of the lease that covers IPs
	Floor       uint64            `json:"floor,omitempty"`   // the owner's records of this incarnation up to that number count no more: what stands was stated again between it and this one
}

// Version orders the records of one owner in one network.
type Version struct {
	Incarnation uint64 `json:"i"`
	Number      uint64 `json:"n"`
}

func (v Version) Compare(w Version) int {
	switch {
	case v.Incarnation != w.Incarnation:
		if v.Incarnation < w.Incarnation {
			return -1
		}
		return 1
	case v.Number < w.Number:
		return -1
	case v.Number > w.Number:
		return 1
	}
	return 0
}

func (r Record) Version() Version { return Version{r.Incarnation, r.Number} }

// Claim is a record that was checked, with what is needed to pass it on and to order it
// against other owners' claims to the same address.
type Claim struct {
	Record  Record
	Granted []uint64 // Raft index at which IPs[i] was granted to the owner
	Signed  Signed
	Lease   Signed
}

// Beats says whether the claim's right to the address comes after the other's: by (cluster
// epoch, Raft index of the grant). Claims of one owner are ordered by version instead.
func (c Claim) Beats(o Claim, a netip.Addr) bool {
	if c.Record.Owner == o.Record.Owner {
		return c.Record.Version().Compare(o.Record.Version()) > 0
	}
	if c.Record.Epoch != o.Record.Epoch {
		return c.Record.Epoch > o.Record.Epoch
	}
	return c.granted(a) > o.granted(a)
}

func (c Claim) granted(a netip.Addr) uint64 {
	if i := slices.Index(c.Record.IPs, a); i >= 0 && i < len(c.Granted) {
		return c.Granted[i]
	}
	return 0
}
