package agent

import (
	"net/netip"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

// Store keeps the node's own endpoints on its disk.
type Store interface {
	Load() (Saved, error)
	// Save makes a change durable, all of it or nothing.
	Save(Change) error
}

// Saved is what a node knew of its own endpoints when it last ran.
type Saved struct {
	Endpoints []Row
	Records   []OwnRecord
	Counters  map[overlay.NetworkID]Counter
	Networks  []Grant // in which this node has a lease, as it knew them last
	Barred    map[overlay.NetworkID][]overlay.Grant
}

// Change is one durable step: rows to keep or drop, and the records that state it. Of two records
// of one endpoint the higher version stays, and so does the higher counter.
type Change struct {
	Network overlay.NetworkID
	Counter Counter
	Grant   *Grant // what is known of the network, if the disk does not have it yet
	Records []OwnRecord
	Floor   overlay.Version // records up to that count no more, and go
	Put     *Row
	Delete  []overlay.EndpointID
	Forget  bool             // the network is gone: drop its counter and all its rows and records
	Barred  *[]overlay.Grant // replaces what is barred, if set
}

// Counter numbers this node's changes in one network.
type Counter struct {
	Incarnation uint64 `json:"incarnation"`
	Number      uint64 `json:"number"`
}

// OwnRecord is a record that this node signed: of an endpoint, or a tombstone.
type OwnRecord struct {
	Network  overlay.NetworkID  `json:"network"`
	Endpoint overlay.EndpointID `json:"endpoint"`
	Signed   overlay.Signed     `json:"signed"`
	Released []netip.Addr       `json:"released,omitempty"` // by a tombstone: not to be taken again soon
}

// Version orders the records of one endpoint.
func (r OwnRecord) Version() overlay.Version { return number(r.Signed) }

// Row is one of the node's own endpoints as its disk keeps it.
type Row struct {
	V         int                `json:"v"`
	ID        overlay.EndpointID `json:"id"`
	Network   overlay.NetworkID  `json:"network"`
	Workload  string             `json:"workload"`
	MAC       overlay.MAC        `json:"mac"`
	IPs       []netip.Addr       `json:"ips"`
	Namespace datapath.NS        `json:"namespace"`
	Make      string             `json:"make,omitempty"` // name under /run/netns that heddle makes and removes
	IfName    string             `json:"ifname"`
	Aliases   []string           `json:"aliases,omitempty"`
	Service   string             `json:"service,omitempty"`
	Labels    map[string]string  `json:"labels,omitempty"`
	Publish   []overlay.Publish  `json:"publish,omitempty"` // with the ports that were chosen
	PID       int                `json:"pid,omitempty"`     // the process whose end detaches it
	Started   uint64             `json:"started,omitempty"`
	Host      bool               `json:"host,omitempty"`       // Namespace is the host's own
	Priority  int                `json:"gwPriority,omitempty"` // of the default route through it
	Boot      string             `json:"boot,omitempty"`       // in which Namespace was given
	Lost      int64              `json:"lost,omitempty"`       // when Namespace was missed, in Unix seconds; 0: it is there
	Check     overlay.Health     `json:"check,omitzero"`       // of its own, besides those of its services
	Health    string             `json:"health,omitempty"`     // as it was stated last
	Since     int64              `json:"since,omitempty"`      // of Health, in Unix seconds
	Leaving   int64              `json:"leaving,omitempty"`    // when its grace ends, in Unix milliseconds; 0: it does not leave
}
