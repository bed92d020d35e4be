package overlay

import (
	"encoding/hex"
	"fmt"
	"net"
	"regexp"
	"strings"
)

// IDs are 128 random bits as 32 lower-case hexadecimal digits.
type (
	NodeID     string
	NetworkID  string
	EndpointID string
	ServiceID  string
)

const shortID = 12 // digits shown in lists and used in kernel names, as Docker does

func (id NodeID) Short() string     { return short(string(id)) }
func (id NetworkID) Short() string  { return short(string(id)) }
func (id EndpointID) Short() string { return short(string(id)) }
func (id ServiceID) Short() string  { return short(string(id)) }

func short(id string) string { return id[:min(len(id), shortID)] }

// NewID formats 16 random bytes, which the caller draws, as an ID.
func NewID[T ~string](random [16]byte) T { return T(hex.EncodeToString(random[:])) }

// ValidID says whether s has the form of an ID.
func ValidID(s string) bool {
	if len(s) != 32 || strings.ToLower(s) != s {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// MAC is an Ethernet address. It is comparable and marshals as text.
type MAC [6]byte

// MACFrom makes a locally administered unicast address of random bits.
func MACFrom(random [6]byte) MAC {
	random[0] = random[0]&^1 | 2
	return MAC(random)
}

func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return MAC{}, Errorf(Invalid, "%q is no MAC address; write six pairs like 02:42:ac:11:00:02", s)
	}
	return MAC(hw), nil
}

func (m MAC) String() string               { return net.HardwareAddr(m[:]).String() }
func (m MAC) IsZero() bool                 { return m == MAC{} }
func (m MAC) IsUnicast() bool              { return !m.IsZero() && m[0]&1 == 0 }
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

func (m *MAC) UnmarshalText(b []byte) error {
	v, err := ParseMAC(string(b))
	if err != nil {
		return err
	}
	*m = v
	return nil
}

var nameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)

// ValidateName checks the name of a network, workload, node or service. what is the word
// for the thing, for the message.
func ValidateName(what, name string) error {
	switch {
	case name == "":
		return Errorf(Invalid, "a %s needs a name", what)
	case len(name) > 63:
		return Errorf(Invalid, "%s name %q has %d characters; use at most 63", what, name[:20]+"…", len(name))
	case !nameForm.MatchString(name):
		return Errorf(Invalid, "%s name %q is not valid; use letters, digits, '_', '.' and '-', and begin with a letter or digit", what, name)
	}
	return nil
}

// Find resolves ref among things that have an ID and a name: a name first, then an ID, then
// a unique prefix of an ID. what is the word for the thing, for the message.
func Find[T any](what, ref string, things []T, key func(T) (id, name string)) (T, error) {
	var zero T
	var hits []T
	for _, t := range things {
		id, name := key(t)
		if name == ref || id == ref {
			return t, nil
		}
		if ref != "" && strings.HasPrefix(id, ref) {
			hits = append(hits, t)
		}
	}
	switch len(hits) {
	case 1:
		return hits[0], nil
	case 0:
		return zero, Errorf(NotFound, "there is no %s %q; `heddle %s ls` lists what there is", what, ref, what)
	}
	return zero, Errorf(Invalid, "%q is the beginning of %d %s IDs; write more of it", ref, len(hits), what)
}

func fmtRange(lo, hi any) string { return fmt.Sprintf("%v-%v", lo, hi) }
