package state

import (
	"crypto/sha256"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// maxDeadTokens bounds the tokens that are kept only to say why they are refused.
const maxDeadTokens = 256

func unix(s int64) time.Time { return time.Unix(s, 0).UTC() }

// check refuses a token by which nobody may join.
func (t Token) check(now int64) error {
	const fix = "make one with `heddle token create %s` on a manager"
	switch {
	case t.Revoked:
		return overlay.Errorf(overlay.Denied, "the join token was revoked; "+fix, t.Role)
	case t.Expires != 0 && now >= t.Expires:
		return overlay.Errorf(overlay.Denied, "the join token expired at %s; "+fix, unix(t.Expires).Format(time.RFC3339), t.Role)
	case t.Uses != 0 && t.Used >= t.Uses:
		return overlay.Errorf(overlay.Denied, "the join token is used up (%d of %d uses); "+fix, t.Used, t.Uses, t.Role)
	}
	return nil
}

func (n NewToken) validate(t *tables) error {
	switch {
	case n.ID == "" || len(n.ID) > 64 || len(n.Hash) != sha256.Size:
		return overlay.Errorf(overlay.Invalid, "join token %.64q has no proper ID or hash", n.ID)
	case n.Role != overlay.Manager && n.Role != overlay.Worker:
		return overlay.Errorf(overlay.Invalid, "%.16q is no role; use manager or worker", string(n.Role))
	case n.Uses < 0 || n.Expires < 0 || (n.Expires != 0 && n.Expires <= n.Created):
		return overlay.Errorf(overlay.Invalid, "join token %s could never be used; give it a longer --ttl and more --uses", n.ID)
	case t.byHash[string(n.Hash)] != "":
		return overlay.Errorf(overlay.Exists, "the secret of join token %s is in use; draw another", n.ID)
	}
	if _, taken := t.tokens.m[n.ID]; taken {
		return overlay.Errorf(overlay.Exists, "join token %s exists already; draw another ID", n.ID)
	}
	return nil
}

func (c CreateToken) apply(t *tables, _ uint64) (ref, error) {
	if err := c.Token.validate(t); err != nil {
		return ref{}, err
	}
	t.addToken(c.Token)
	return ref{Token: c.Token.ID}, nil
}

func (c RevokeToken) apply(t *tables, _ uint64) (ref, error) {
	tok, ok := t.tokens.m[c.ID]
	if !ok {
		return ref{}, noToken(c.ID)
	}
	t.revoke(tok)
	return ref{Token: c.ID}, nil
}

func (c RotateTokens) apply(t *tables, _ uint64) (ref, error) {
	if err := c.Token.validate(t); err != nil {
		return ref{}, err
	}
	for _, tok := range t.tokens.m { // in any order: each is changed alone
		if tok.Role == c.Token.Role {
			t.revoke(tok)
		}
	}
	t.addToken(c.Token)
	return ref{Token: c.Token.ID}, nil
}

func (t *tables) revoke(tok Token) {
	if !tok.Revoked {
		tok.Revoked = true
		t.tokens.edit()[tok.ID] = tok
		t.changed(key{table: tToken})
	}
}

// addToken adds a token that was checked, and forgets the oldest dead ones.
func (t *tables) addToken(n NewToken) {
	all := t.tokens.edit()
	all[n.ID] = Token{NewToken: n}
	t.byHash[string(n.Hash)] = n.ID
	t.changed(key{table: tToken})
	if len(all) <= maxDeadTokens {
		return
	}
	dead := slices.DeleteFunc(slices.Collect(maps.Values(all)), func(tok Token) bool { return tok.Live(n.Created) })
	slices.SortFunc(dead, func(a, b Token) int {
		if a.Created != b.Created {
			return int(max(-1, min(1, a.Created-b.Created)))
		}
		return strings.Compare(a.ID, b.ID)
	})
	for _, tok := range dead[:max(0, len(dead)-maxDeadTokens)] {
		delete(all, tok.ID)
		delete(t.byHash, string(tok.Hash))
	}
}
