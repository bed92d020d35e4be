package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"strings"

	"github.com/heddle-net/heddle/overlay"
)

// Token is a join token: which CA to trust, and a secret that the managers know by its hash.
// Role, expiry and uses are in the managers' state. It is a secret: log Redacted only.
type Token struct {
	CA     [sha256.Size]byte // digest of the CA's certificate
	Secret [16]byte
}

const (
	tokenPrefix = "HDL1-"
	caLen       = 52 // of the digest in base 32
	secretLen   = 26
)

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewToken draws a token for the cluster of a CA certificate.
func NewToken(caDER []byte) Token {
	t := Token{CA: Digest(caDER)}
	_, _ = rand.Read(t.Secret[:]) // never fails
	return t
}

// Text is the token as an operator pastes it: HDL1-CA-SECRET, both in base 32.
func (t Token) Text() string {
	return tokenPrefix + base32Lower.EncodeToString(t.CA[:]) + "-" + base32Lower.EncodeToString(t.Secret[:])
}

// String hides the secret, so that a token that slips into a log is useless.
func (t Token) String() string {
	return tokenPrefix + base32Lower.EncodeToString(t.CA[:])[:8] + "…"
}

// ParseToken reads a token as an operator pasted it. Case and space around it do not matter.
func ParseToken(s string) (Token, error) {
	var t Token
	s = strings.ToLower(strings.TrimSpace(s))
	rest, ok := strings.CutPrefix(s, strings.ToLower(tokenPrefix))
	if !ok {
		return t, overlay.Errorf(overlay.Invalid, "that is no join token; one begins with %s and is printed by `heddle token create worker` on a manager", tokenPrefix)
	}
	ca, secret, _ := strings.Cut(rest, "-")
	if len(ca) != caLen || len(secret) != secretLen {
		return t, overlay.Errorf(overlay.Invalid, "the join token is not whole: it has %d characters of %d; copy the whole line", len(s), len(tokenPrefix)+caLen+1+secretLen)
	}
	if !decode(t.CA[:], ca) || !decode(t.Secret[:], secret) {
		return Token{}, overlay.Errorf(overlay.Invalid, "the join token has a wrong character; copy it again")
	}
	return t, nil
}

// decode reads exactly len(dst) bytes and refuses stray bits at the end.
func decode(dst []byte, s string) bool {
	b, err := base32Lower.DecodeString(s)
	return err == nil && copy(dst, b) == len(dst) && base32Lower.EncodeToString(dst) == s
}

// Hash is what the managers keep of the token's secret.
func (t Token) Hash() []byte {
	h := sha256.Sum256(append([]byte("heddle join token\n"), t.Secret[:]...))
	return h[:]
}
