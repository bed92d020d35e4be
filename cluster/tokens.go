package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-net/heddle/cluster/control"
	"github.com/heddle-net/heddle/cluster/pki"
	"github.com/heddle-net/heddle/cluster/state"
	"github.com/heddle-net/heddle/overlay"
)

const (
	workerTokenLife  = 24 * time.Hour
	managerTokenLife = time.Hour
)

// Tokens are the tokens that a node may still join by, the newest first.
func (m *Manager) Tokens(context.Context) ([]overlay.TokenRow, error) {
	rows, now := []overlay.TokenRow{}, m.Now().Unix()
	for _, t := range m.state.View().Tokens {
		if t.Live(now) {
			rows = append(rows, t.Row())
		}
	}
	slices.SortFunc(rows, func(a, b overlay.TokenRow) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return rows, nil
}

// CreateToken makes a join token and the line to paste.
func (m *Manager) CreateToken(ctx context.Context, r overlay.TokenRequest) (overlay.TokenReply, error) {
	t, text, err := m.newToken(r)
	if err != nil {
		return overlay.TokenReply{}, err
	}
	return m.tokenReply(text)(propose[state.TokenResult](ctx, m, "token", state.CreateToken{Token: t}))
}

// RotateTokens makes a join token and revokes all others of its role.
func (m *Manager) RotateTokens(ctx context.Context, r overlay.TokenRequest) (overlay.TokenReply, error) {
	t, text, err := m.newToken(r)
	if err != nil {
		return overlay.TokenReply{}, err
	}
	return m.tokenReply(text)(propose[state.TokenResult](ctx, m, "rotate", state.RotateTokens{Token: t}))
}

// RevokeToken makes a token useless.
func (m *Manager) RevokeToken(ctx context.Context, ref string) error {
	var all []string
	for id := range m.state.View().Tokens {
		all = append(all, id)
	}
	id, err := overlay.Find("token", ref, all, func(id string) (string, string) { return id, id })
	if err != nil {
		return err
	}
	_, err = propose[state.TokenResult](ctx, m, "revoke", state.RevokeToken{ID: id})
	return err
}

// newToken draws a token as asked for, with the defaults of its role.
func (m *Manager) newToken(r overlay.TokenRequest) (state.NewToken, string, error) {
	life, uses := workerTokenLife, 0
	switch r.Role {
	case overlay.Worker:
	case overlay.Manager:
		life, uses = managerTokenLife, 1
	default:
		return state.NewToken{}, "", overlay.Errorf(overlay.Invalid, "role %q is unknown; use worker or manager", r.Role)
	}
	if r.TTL != nil {
		life = *r.TTL
	}
	if r.Uses != nil {
		uses = *r.Uses
	}
	if life < 0 || (life > 0 && life < time.Second) {
		return state.NewToken{}, "", overlay.Errorf(overlay.Invalid, "--ttl %v is too short; use a second or more, or 0 for no end", life)
	}
	if uses < 0 {
		return state.NewToken{}, "", overlay.Errorf(overlay.Invalid, "--uses %d is negative; use 0 for any number", uses)
	}
	var id [6]byte
	_, _ = rand.Read(id[:]) // never fails
	tok, now := pki.NewToken(m.state.View().CA), m.Now()
	t := state.NewToken{ID: hex.EncodeToString(id[:]), Hash: tok.Hash(), Role: r.Role, Created: now.Unix(), Uses: uses}
	if life > 0 {
		t.Expires = now.Add(life).Unix()
	}
	return t, tok.Text(), nil
}

func (m *Manager) tokenReply(text string) func(state.TokenResult, error) (overlay.TokenReply, error) {
	return func(r state.TokenResult, err error) (overlay.TokenReply, error) {
		if err != nil {
			return overlay.TokenReply{}, err
		}
		at, _ := m.address(m.Self)
		return overlay.TokenReply{Row: r.Token.Row(), Token: text, Join: JoinLine(at, text)}, nil
	}
}

// JoinLine is the line to paste on a host that is to join.
func JoinLine(manager netip.AddrPort, token string) string {
	at := manager.Addr().String()
	if manager.Port() != control.DefaultPort {
		at = manager.String()
	}
	return "heddle join " + at + " --token " + token
}
