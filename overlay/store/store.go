// Package store keeps what a node must find again after a restart, in one bbolt file: its
// own endpoints and records, the last facts, and what other nodes said of themselves.
package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/agent"
	"github.com/heddle-net/heddle/overlay/own"
	"github.com/heddle-net/heddle/overlay/tunnel"
)

// Buckets of the file, and the keys in the one for single values.
var (
	endpoints = []byte("endpoints") // endpoint ID → agent.Row
	records   = []byte("records")   // network ID + endpoint ID → agent.OwnRecord
	counters  = []byte("counters")  // network ID → agent.Counter
	networks  = []byte("networks")  // network ID → agent.Grant
	barred    = []byte("barred")    // network ID → []overlay.Grant
	single    = []byte("single")

	keyVersion   = []byte("v")
	keyFacts     = []byte("facts")
	keyNodes     = []byte("nodes")
	keyNumber    = []byte("number")
	keyAddresses = []byte("addresses")
	keyTunnels   = []byte("wireguard")
	keyOwn       = []byte("own")
)

// version is the version of the file's layout (format "disk").
const version = 1

// Store is an open file. It is safe for concurrent use; every write is on the disk when it
// returns.
type Store struct{ db *bbolt.DB }

// Open opens or makes the file. It fails when another process has it open.
func Open(path string) (*Store, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, overlay.Errorf(overlay.InUse, "another heddle daemon has %s open; stop it, or use another --data-dir", path)
	}
	if err != nil {
		return nil, overlay.Errorf(overlay.Internal, "open %s: %w", path, err)
	}
	s := &Store{db}
	if err := s.prepare(); err != nil {
		db.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) prepare() error {
	if s.prepared() {
		return nil // a full disk keeps no daemon from starting
	}
	return s.db.Update(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{endpoints, records, counters, networks, barred, single} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		v := version
		if b := tx.Bucket(single).Get(keyVersion); b != nil {
			if err := json.Unmarshal(b, &v); err != nil {
				return overlay.Errorf(overlay.Internal, "the node's store has no readable version: %w", err)
			}
		}
		if err := overlay.CheckVersion("disk", v); err != nil {
			return err
		}
		return put(tx, single, keyVersion, v)
	})
}

// prepared says whether the file has this layout already.
func (s *Store) prepared() (ok bool) {
	_ = s.db.View(func(tx *bbolt.Tx) error {
		ok = true
		for _, b := range [][]byte{endpoints, records, counters, networks, barred, single} {
			ok = ok && tx.Bucket(b) != nil
		}
		var v int
		ok = ok && json.Unmarshal(tx.Bucket(single).Get(keyVersion), &v) == nil && v == version
		return nil
	})
	return ok
}

// unwritten is the error of a write that failed.
func (s *Store) unwritten(what string, err error) error {
	advice := "look at that disk"
	if errors.Is(err, syscall.ENOSPC) {
		advice = "free space there, then try again"
	}
	return overlay.Errorf(overlay.Internal, "write %s to %s: %w; %s", what, s.db.Path(), err, advice)
}

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }

// Clear forgets everything: for a node that left its cluster.
func (s *Store) Clear() error {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{endpoints, records, counters, networks, barred, single} {
			if err := tx.DeleteBucket(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return overlay.Errorf(overlay.Internal, "clear the node's store: %w", err)
	}
	return s.prepare()
}

func put(tx *bbolt.Tx, bucket, key []byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return tx.Bucket(bucket).Put(key, b)
}

// Load reads the node's own endpoints.
func (s *Store) Load() (agent.Saved, error) {
	out := agent.Saved{Counters: map[overlay.NetworkID]agent.Counter{}, Barred: map[overlay.NetworkID][]overlay.Grant{}}
	err := s.db.View(func(tx *bbolt.Tx) error {
		return errors.Join(
			tx.Bucket(endpoints).ForEach(func(_, b []byte) error {
				var r agent.Row
				if err := json.Unmarshal(b, &r); err != nil {
					return err
				}
				out.Endpoints = append(out.Endpoints, r)
				return overlay.CheckVersion("disk", r.V)
			}),
			tx.Bucket(records).ForEach(func(_, b []byte) error {
				var r agent.OwnRecord
				out.Records = append(out.Records, r)
				return json.Unmarshal(b, &out.Records[len(out.Records)-1])
			}),
			tx.Bucket(counters).ForEach(func(k, b []byte) error {
				var c agent.Counter
				err := json.Unmarshal(b, &c)
				out.Counters[overlay.NetworkID(k)] = c
				return err
			}),
			tx.Bucket(networks).ForEach(func(_, b []byte) error {
				var g agent.Grant
				err := json.Unmarshal(b, &g)
				out.Networks = append(out.Networks, g)
				return err
			}),
			tx.Bucket(barred).ForEach(func(k, b []byte) error {
				var runs []overlay.Grant
				err := json.Unmarshal(b, &runs)
				out.Barred[overlay.NetworkID(k)] = runs
				return err
			}))
	})
	if err != nil {
		return out, overlay.Errorf(overlay.Internal, "read the node's own endpoints: %w", err)
	}
	return out, nil
}

// Save makes a change of the node's own endpoints durable, all of it or nothing.
func (s *Store) Save(c agent.Change) error {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		if c.Forget {
			return forget(tx, c.Network)
		}
		for _, id := range c.Delete {
			if err := tx.Bucket(endpoints).Delete([]byte(id)); err != nil {
				return err
			}
		}
		if c.Put != nil {
			if err := put(tx, endpoints, []byte(c.Put.ID), c.Put); err != nil {
				return err
			}
		}
		for _, r := range c.Records {
			if err := putRecord(tx, r); err != nil {
				return err
			}
		}
		if c.Floor != (overlay.Version{}) {
			if err := sink(tx, c.Network, c.Floor); err != nil {
				return err
			}
		}
		if c.Barred != nil {
			if err := put(tx, barred, []byte(c.Network), *c.Barred); err != nil {
				return err
			}
		}
		if c.Grant != nil {
			if err := put(tx, networks, []byte(c.Network), c.Grant); err != nil {
				return err
			}
		}
		return raise(tx, c.Network, c.Counter)
	})
	if err != nil {
		return s.unwritten("the node's endpoints", err)
	}
	return nil
}

// putRecord keeps the higher version: changes made at the same time may be saved in any order.
func putRecord(tx *bbolt.Tx, r agent.OwnRecord) error {
	key := []byte(string(r.Network) + string(r.Endpoint))
	if b := tx.Bucket(records).Get(key); b != nil {
		var old agent.OwnRecord
		if err := json.Unmarshal(b, &old); err != nil {
			return err
		}
		if old.Version().Compare(r.Version()) > 0 {
			return nil
		}
	}
	return put(tx, records, key, r)
}

// sink drops a network's records up to a version.
func sink(tx *bbolt.Tx, id overlay.NetworkID, floor overlay.Version) error {
	var drop [][]byte
	c := tx.Bucket(records).Cursor()
	for k, b := c.Seek([]byte(id)); bytes.HasPrefix(k, []byte(id)); k, b = c.Next() {
		var r agent.OwnRecord
		if err := json.Unmarshal(b, &r); err != nil {
			return err
		}
		if r.Version().Compare(floor) <= 0 {
			drop = append(drop, k)
		}
	}
	for _, k := range drop {
		if err := tx.Bucket(records).Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// raise keeps the higher counter: changes made at the same time may be saved in any order.
func raise(tx *bbolt.Tx, id overlay.NetworkID, c agent.Counter) error {
	var old agent.Counter
	if b := tx.Bucket(counters).Get([]byte(id)); b != nil {
		if err := json.Unmarshal(b, &old); err != nil {
			return err
		}
	}
	if overlay.Version(old).Compare(overlay.Version(c)) >= 0 {
		return nil
	}
	return put(tx, counters, []byte(id), c)
}

func forget(tx *bbolt.Tx, id overlay.NetworkID) error {
	for _, b := range [][]byte{counters, networks, barred} {
		if err := tx.Bucket(b).Delete([]byte(id)); err != nil {
			return err
		}
	}
	var drop [][2][]byte
	_ = tx.Bucket(records).ForEach(func(k, _ []byte) error {
		if overlay.NetworkID(k[:len(id)]) == id {
			drop = append(drop, [2][]byte{records, k}, [2][]byte{endpoints, k[len(id):]})
		}
		return nil
	})
	for _, d := range drop {
		if err := tx.Bucket(d[0]).Delete(d[1]); err != nil {
			return err
		}
	}
	return nil
}

// SaveFacts keeps the newest facts.
func (s *Store) SaveFacts(f *overlay.Facts) error { return s.set(keyFacts, f) }

// LoadFacts is the newest facts that were kept, or nil.
func (s *Store) LoadFacts() (*overlay.Facts, error) {
	var f *overlay.Facts
	if err := s.get(keyFacts, &f); err != nil || f == nil {
		return nil, err
	}
	return f, overlay.CheckVersion("facts", f.V)
}

// SaveNodes keeps what other nodes said of themselves, so that they are found again when no
// manager answers.
func (s *Store) SaveNodes(n map[overlay.NodeID]overlay.SignedNode) error { return s.set(keyNodes, n) }

// LoadNodes is what SaveNodes kept.
func (s *Store) LoadNodes() (n map[overlay.NodeID]overlay.SignedNode, err error) {
	err = s.get(keyNodes, &n)
	return n, err
}

// NextNumber counts this node's own node records, from 1 or from what is above. A number that it
// gives with an error may come again.
func (s *Store) NextNumber(above uint64) (n uint64, err error) {
	if err := s.get(keyNumber, &n); err != nil {
		return 0, err
	}
	n = max(n, above) + 1
	return n, s.set(keyNumber, n)
}

// SaveTunnelKeys keeps this node's WireGuard keys.
func (s *Store) SaveTunnelKeys(k tunnel.Keys) error { return s.set(keyTunnels, k) }

// LoadTunnelKeys is what SaveTunnelKeys kept, or nil.
func (s *Store) LoadTunnelKeys() (k *tunnel.Keys, err error) {
	err = s.get(keyTunnels, &k)
	return k, err
}

// SaveOwn keeps this node's own networks.
func (s *Store) SaveOwn(o own.State) error { return s.set(keyOwn, o) }

// LoadOwn is what SaveOwn kept.
func (s *Store) LoadOwn() (o own.State, err error) {
	if err := s.get(keyOwn, &o); err != nil || o.V == 0 {
		return o, err
	}
	return o, overlay.CheckVersion("disk", o.V)
}

func (s *Store) set(key []byte, v any) error {
	if err := s.db.Update(func(tx *bbolt.Tx) error { return put(tx, single, key, v) }); err != nil {
		return s.unwritten(string(key), err)
	}
	return nil
}

func (s *Store) get(key []byte, v any) error {
	err := s.db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(single).Get(key); b != nil {
			return json.Unmarshal(b, v)
		}
		return nil
	})
	if err != nil {
		return overlay.Errorf(overlay.Internal, "read %s from the node's disk: %w", key, err)
	}
	return nil
}

// Addresses are where this node answers, as it was told at init or join.
type Addresses struct {
	Advertise netip.Addr `json:"advertise"` // control and gossip, for others
	Listen    netip.Addr `json:"listen"`    // what the ports bind to
	DataPath  netip.Addr `json:"dataPath"`  // VTEP, for others
	// Underlay is what this host itself calls DataPath, where that is translated on the way (1:1
	// NAT).
	Underlay netip.Addr `json:"underlay,omitzero"`
	// The links that have Advertise, and Local, or had them last.
	Link     string `json:"link,omitempty"`
	DataLink string `json:"dataLink,omitempty"`
}

// Local is this host's own address for the data path.
func (a Addresses) Local() netip.Addr {
	if a.Underlay.IsValid() {
		return a.Underlay
	}
	return a.DataPath
}

// SaveAddresses keeps the node's addresses.
func (s *Store) SaveAddresses(a Addresses) error { return s.set(keyAddresses, a) }

// LoadAddresses is what SaveAddresses kept.
func (s *Store) LoadAddresses() (a Addresses, err error) {
	err = s.get(keyAddresses, &a)
	return a, err
}
