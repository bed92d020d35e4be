package dns

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"time"

	msg "github.com/miekg/dns"

	"github.com/heddle-net/heddle/overlay/names"
)

// LoopDomain is below the domain, and nobody's: each of the host's servers is asked now and then for
// a name there that nobody else knows. If that is asked for here, the server leads back, as one that
// runs in a workload and forwards to its own resolver.
const LoopDomain = "loop." + names.Domain

const (
	tokenBytes = 16
	loopName   = 2*tokenBytes + 1 + len(LoopDomain) + 1
	probeEvery = 30 * time.Second
)

// straight are the servers of which is not known that they lead back here.
func (s *Servers) straight() []netip.AddrPort {
	all := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []netip.AddrPort
	for _, at := range all {
		if !s.loops[at] {
			list = append(list, at)
		}
	}
	return list
}

// Probe is due when the servers have changed, and every half minute in which others are asked.
func (s *Servers) Probe() func(context.Context) {
	list := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.probed) < probeEvery && !s.changed {
		return nil
	}
	s.probed, s.changed = time.Now(), false
	s.tokens = map[string]netip.AddrPort{}
	questions := map[netip.AddrPort][]byte{}
	for _, at := range list {
		var token [tokenBytes]byte
		_, _ = rand.Read(token[:])
		name := hex.EncodeToString(token[:]) + "." + LoopDomain + "."
		q := new(msg.Msg).SetQuestion(name, msg.TypeTXT)
		if raw, err := q.Pack(); err == nil {
			s.tokens[name], questions[at] = at, raw
		}
	}
	return func(ctx context.Context) {
		for at, raw := range questions {
			_, _ = exchange(ctx, at, raw) // whatever it replies
		}
	}
}

// Heard marks the server that was asked for the name, until the file changes.
func (s *Servers) Heard(name string) (netip.AddrPort, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, asked := s.tokens[name]
	if !asked || s.loops[at] {
		return at, false
	}
	s.loops[at] = true
	return at, true
}
