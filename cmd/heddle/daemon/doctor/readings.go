// Package doctor judges what was read of a node: which of it stands in the way of its overlays,
// and what mends it. It is pure: who reads is the daemon, or without one the command line.
package doctor

import (
	"net/netip"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

// Readings are all that is judged. What could not be read says why in an error, as text.
type Readings struct {
	Host    Host
	Daemon  string   // why no daemon answers; "" where one does
	Removed string   // that this node was removed from its cluster, and what to do; "" where it was not
	Kernel  *Kernel  // nil without a daemon
	Cluster *Cluster // nil outside of one
}

// Host is what is read of any host.
type Host struct {
	Features   []Feature // that heddle can't do without
	Encryption string    // what this host encrypts by, "kernel" or "wireguard-go", or ""
	Sealing    string    // why it can't
	DataDir    string
	Free, Size uint64 // bytes of the disk that has DataDir; Size 0 where it can't be read
	Inotify    string // why no more directories can be watched
	Buffer     int    // bytes for the kernel's notifications
	BufferWant int
	Links      []string // heddle's links among the host's own
	Networkd   Manager
	NetMan     Manager  // NetworkManager
	Legacy     []string // tables of iptables before nf_tables
}

// Feature is something that heddle needs of a kernel, and why it is not there.
type Feature struct{ Name, Err string }

// Manager is another program that manages links.
type Manager struct {
	Running bool
	Files   []File // of its configuration, in the order in which it reads them
}

// File is a file of settings.
type File struct{ Path, Text string }

// Kernel is what is read of heddle's own objects, and of what they meet.
type Kernel struct {
	Objects     int // that are wanted
	Err         string
	Differences []datapath.Difference
	Errors      map[datapath.Owner]string // what the reconciler can't do
	Lost        uint64                    // times that more notifications came than were kept
	Filtered    []string                  // NAMESPACE SETTING where the host's filter sees bridged frames
	Overlays    int                       // namespaces of networks
	Neighbors   []Neighbors
	Walls       []string // rules of others that drop what heddle needs, each with what to type
	WallsErr    string
}

// Neighbors is the table of neighbour entries of a family, which all namespaces share.
type Neighbors struct {
	Six    bool
	Limit  int
	There  int // that count: without heddle's own, which are permanent
	Coming int // if each workload here talked to all of its networks
	Full   uint64
}

// Cluster is what is read of the cluster, as this node sees it.
type Cluster struct {
	Follows   string // the manager that the facts come from, or ""
	Managers  []string
	Revision  uint64
	Role      string // why the manager on this node does not run
	Level     int    // that is in force
	Behind    []string
	Conflicts []string

	Link    Link
	Ports   Ports
	Peers   []Peer
	Uplinks []Way
}

// Ports are this cluster's.
type Ports struct{ Control, Gossip, DataPath, WireGuard uint16 }

// Link is the one that has the data-path address.
type Link struct {
	Name     string
	Addr     netip.Addr
	MTU      int
	Err      string
	Offloads map[string]Offload
	Strict   bool // rp_filter drops what comes by another link than the host would answer by
}

// Way is how the host answers what comes in on a link.
type Way struct {
	Of     string // whom it comes from, by name
	Addr   netip.Addr
	In     string // the link that it comes in on
	Back   string // the link that the host answers by; "" where it is not known
	Strict bool   // of In
}

// Peer is another node, as it answers.
type Peer struct {
	Name     string
	Record   overlay.NodeRecord
	Dead     bool // as membership sees it
	Control  string
	Gossip   string        // by TCP
	Packets  string        // to gossip, by UDP
	Ahead    time.Duration // its clock's, of ours; known where Control is ""
	Full     int           // bytes of the largest packet that should reach it
	Passed   []int         // sizes of packets that did, sorted
	SizesErr string
	Way      Way
	Frames   *Frames // in a plain network; nil where none could be tried
	Sealed   *Frames // in an encrypted one
}

// Frames are tries over the data path, from a workload here to one there. Summed ones have their
// checksum from the kernel, the others from the device if it does that.
type Frames struct {
	From, To             string
	Echo                 bool
	TCP, UDP             bool
	SummedTCP, SummedUDP bool
}

// Offload is what a device can do by itself.
type Offload struct{ On, Fixed bool }
