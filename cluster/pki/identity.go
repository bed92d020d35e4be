package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/heddle-net/heddle/overlay"
)

// Identity is who this node is, as its disk keeps it (format "disk"). A node has an ID and a
// key before it is a member; Cert and CA are empty until then.
type Identity struct {
	V    int                `json:"v"`
	Node overlay.NodeID     `json:"node"`
	Key  ed25519.PrivateKey `json:"key"`
	overlay.Place
	Cert []byte `json:"cert,omitempty"` // DER
	CA   []byte `json:"ca,omitempty"`   // DER
}

// NewIdentity draws a node ID and a key pair.
func NewIdentity() (Identity, error) {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Identity{}, fmt.Errorf("make the node's key: %w", err)
	}
	return Identity{V: 1, Node: overlay.NewID[overlay.NodeID](id), Key: key}, nil
}

// Public is the node's public key.
func (id Identity) Public() ed25519.PublicKey { return id.Key.Public().(ed25519.PublicKey) }

// Member says whether the node belongs to a cluster.
func (id Identity) Member() bool { return len(id.Cert) > 0 }

// Joined is the identity of a node that a cluster has taken in, checked.
func (id Identity) Joined(p overlay.Place, cert, ca []byte) (Identity, error) {
	id.Place, id.Cert, id.CA = p, cert, ca
	_, err := id.check()
	return id, err
}

// checked is an identity with its certificates parsed.
type checked struct {
	Identity
	leaf, ca *x509.Certificate
	subject  Subject
}

// check refuses an identity whose parts do not belong together.
func (id Identity) check() (*checked, error) {
	c := &checked{Identity: id}
	if len(id.Key) != ed25519.PrivateKeySize || !overlay.ValidID(string(id.Node)) {
		return nil, overlay.Errorf(overlay.Internal, "the node's identity has no valid ID or key")
	}
	if !id.Member() {
		return c, nil
	}
	var err error
	if c.ca, err = parseCA(id.CA); err != nil {
		return nil, err
	}
	if c.leaf, err = x509.ParseCertificate(id.Cert); err != nil {
		return nil, overlay.Errorf(overlay.Internal, "the node's certificate can't be read: %w", err)
	}
	var pub ed25519.PublicKey
	if c.subject, pub, err = verify(c.leaf, c.ca); err != nil {
		return nil, err
	}
	if c.subject.Node != id.Node || c.subject.Cluster != id.Cluster || !pub.Equal(id.Public()) {
		return nil, overlay.Errorf(overlay.Denied, "the node's certificate is for another node, key or cluster")
	}
	return c, nil
}

// Subject is what the identity's certificate says. It is zero for a node in no cluster.
func (id Identity) Subject() Subject {
	c, err := id.check()
	if err != nil {
		return Subject{}
	}
	return c.subject
}

// LoadIdentity reads an identity file. A missing one is fs.ErrNotExist. One that others may
// read or write is refused.
func LoadIdentity(path string) (Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return Identity{}, fmt.Errorf("open the node's identity: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Identity{}, fmt.Errorf("open the node's identity: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return Identity{}, overlay.Errorf(overlay.Denied, "%s holds a private key but has mode %04o; run `chmod 600 %s`, and `heddle leave` and join again if others could read it", path, st.Mode().Perm(), path)
	}
	var id Identity
	if err := json.NewDecoder(f).Decode(&id); err != nil {
		return Identity{}, overlay.Errorf(overlay.Internal, "%s can't be read: %w", path, err)
	}
	if err := overlay.CheckVersion("disk", id.V); err != nil {
		return Identity{}, err
	}
	if _, err := id.check(); err != nil {
		return Identity{}, fmt.Errorf("%s: %w", path, err)
	}
	return id, nil
}

// Save writes the identity with mode 0600, all of it or nothing, and returns when it is on
// the disk.
func (id Identity) Save(path string) (err error) {
	b, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("encode the node's identity: %w", err)
	}
	tmp := path + ".new"
	defer func() {
		if err != nil {
			_ = os.Remove(tmp)
			err = fmt.Errorf("save the node's identity: %w", err)
		}
	}()
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
