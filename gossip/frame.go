package gossip

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"

	"github.com/heddle-net/heddle/gossip/table"
	"github.com/heddle-net/heddle/overlay"
)

// version is the version of every frame (format "gossip").
const version = 1

// Kinds of frame. A packet is one frame; on a stream frames follow each other.
const (
	kindPush  = "push"  // records of one owner in one network, to be acknowledged
	kindAck   = "ack"   // answers a push
	kindNodes = "nodes" // node records and removals; acknowledged if it has an ID, also with nothing in it
	kindAsk   = "ask"   // begins an exchange: what the sender holds
	kindGive  = "give"  // what the other lacks
)

const (
	maxFrame    = 32 << 20 // bytes on a stream
	maxGive     = 1 << 20  // bytes of records that are given at a time, to who asks for more
	maxGiveAll  = 24 << 20 // to who does not, as earlier builds: their next exchange brings the rest
	maxPush     = 1300     // bytes of a push that goes as a packet; larger ones go as a stream
	maxNetworks = 4096     // of an exchange
)

// frame is anything that nodes say to each other.
type frame struct {
	V        int                       `json:"v"`
	Kind     string                    `json:"kind"`
	From     overlay.NodeID            `json:"from"`
	ID       uint64                    `json:"id,omitempty"` // of a push, and of its acknowledgement
	Hello    *overlay.Hello            `json:"hello,omitempty"`
	Networks []part                    `json:"networks,omitempty"`
	Held     map[overlay.NodeID]uint64 `json:"held,omitempty"` // node records by number, in an ask
	Said     string                    `json:"said,omitempty"` // what the sender's own node record is known by, in an ask
	Nodes    []overlay.SignedNode      `json:"nodes,omitempty"`
	Removals []overlay.Signed          `json:"removals,omitempty"`
	More     bool                      `json:"more,omitempty"` // in an ask: its sender asks again while there is more; in a give: there is
}

// part is what a frame says of one network.
type part struct {
	Network overlay.NetworkID `json:"network"`
	Digest  table.Digest      `json:"digest,omitempty"`
	Lease   *overlay.Signed   `json:"lease,omitempty"` // the sender's, in an ask: it takes part
	Batches []batch           `json:"batches,omitempty"`
}

// batch is a table.Batch as it travels: each record with the place of its lease.
type batch struct {
	Owner   overlay.NodeID   `json:"owner"`
	UpTo    overlay.Version  `json:"upTo,omitzero"`
	Leases  []overlay.Signed `json:"leases"`
	Records []record         `json:"records"`
}

type record struct {
	overlay.Signed
	Lease int `json:"lease"` // index in the batch's leases
}

// pack makes the wire form of claims; a lease that several have travels once.
func pack(b table.Batch) batch {
	out := batch{Owner: b.Owner, UpTo: b.UpTo}
	at := map[string]int{}
	for _, c := range b.Claims {
		d := c.Lease.Digest()
		i, ok := at[d]
		if !ok {
			i = len(out.Leases)
			at[d] = i
			out.Leases = append(out.Leases, c.Lease)
		}
		out.Records = append(out.Records, record{c.Signed, i})
	}
	return out
}

// fit cuts a batch to what there is room for, in bytes, of which it takes that away.
func fit(b table.Batch, room *int) (cut table.Batch, whole bool) {
	size := func(s overlay.Signed) int { return 4*len(s.Body)/3 + 256 } // as JSON, with its signature
	var lease []byte
	for i, c := range b.Claims {
		need := size(c.Signed)
		if !bytes.Equal(c.Lease.Sig, lease) {
			need += size(c.Lease)
		}
		lease = c.Lease.Sig
		if *room -= need; *room >= 0 {
			continue
		}
		if i == 0 {
			return table.Batch{}, false
		}
		return b.First(i), false
	}
	return b, true
}

// decode reads a frame and refuses unknown versions by name.
func decode(b []byte) (frame, error) {
	var f frame
	if err := json.Unmarshal(b, &f); err != nil {
		return f, overlay.Errorf(overlay.Invalid, "gossip frame: %w", err)
	}
	if err := overlay.CheckVersion("gossip", f.V); err != nil {
		return f, err
	}
	if len(f.Networks) > maxNetworks || !overlay.ValidID(string(f.From)) {
		return f, overlay.Errorf(overlay.Invalid, "gossip frame: malformed")
	}
	return f, nil
}

// send writes a frame to a stream behind its length.
func send(w io.Writer, f frame) error {
	f.V = version
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return sendBytes(w, b)
}

// sendBytes writes a frame that is encoded already.
func sendBytes(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// receive reads a frame from a stream.
func receive(r io.Reader) (frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return frame{}, overlay.Errorf(overlay.Invalid, "gossip frame of %d bytes is too long", n)
	}
	// It grows with what arrives, not with what is claimed, and by doubling: of 10,000 records
	// io.ReadAll leaves five times their size behind.
	var b bytes.Buffer
	if _, err := b.ReadFrom(io.LimitReader(r, int64(n))); err != nil {
		return frame{}, err
	}
	return decode(b.Bytes())
}
