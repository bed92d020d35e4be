package dns

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	msg "github.com/miekg/dns"
)

const (
	resolvConf = "/etc/resolv.conf"
	maxServers = 3 // resolv.conf(5), MAXNS

	tryTime  = 1500 * time.Millisecond // for one server; stub resolvers wait five seconds
	askTime  = 4500 * time.Millisecond // for all of them
	fresh    = 500 * time.Millisecond  // for which the file is taken to be as it was
	maxReply = 4096                    // bytes of the longest reply by UDP
)

// Servers are the host's own name servers, as resolv.conf(5) has them. They are asked from where the
// process is.
type Servers struct {
	file string
	port uint16

	mu     sync.Mutex
	looked time.Time
	stamp  fs.FileInfo
	list   []netip.AddrPort

	changed bool // since the probe
	probed  time.Time
	tokens  map[string]netip.AddrPort // names that were asked for, and of whom
	loops   map[netip.AddrPort]bool   // who leads back here
}

// NewServers reads the host's file when it is needed, and again when it has changed.
func NewServers() *Servers { return &Servers{file: resolvConf, port: 53} }

// now are the servers that count now.
func (s *Servers) now() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.looked) < fresh {
		return s.list
	}
	s.looked = time.Now()
	st, err := os.Stat(s.file)
	if err != nil {
		s.stamp, s.list = nil, nil
		return nil
	}
	if s.stamp != nil && os.SameFile(st, s.stamp) && st.ModTime().Equal(s.stamp.ModTime()) && st.Size() == s.stamp.Size() {
		return s.list
	}
	b, err := os.ReadFile(s.file)
	if err == nil {
		s.stamp, s.list = st, parse(string(b), s.port)
		s.changed, s.loops = true, map[netip.AddrPort]bool{}
	}
	return s.list
}

// parse reads the servers of a resolv.conf(5), which are at a port.
func parse(text string, port uint16) (list []netip.AddrPort) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" || len(list) == maxServers {
			continue
		}
		if ip, err := netip.ParseAddr(words[1]); err == nil {
			list = append(list, netip.AddrPortFrom(ip, port))
		}
	}
	return list
}

var errNoServer = errors.New("the host has no name server in " + resolvConf + " that leads elsewhere")

// Ask asks one server after the other until one knows.
func (s *Servers) Ask(ctx context.Context, raw []byte, q *msg.Msg) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	list := s.straight()
	if len(list) == 0 {
		return nil, errNoServer
	}
	if len(list) == 1 {
		list = append(list, list[0]) // a packet may be lost
	}
	var last []byte
	var errs error
	for _, at := range list {
		b, err := exchange(ctx, at, raw)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("ask %s: %w", at, err))
			continue
		}
		binary.BigEndian.PutUint16(b, q.Id)
		if code := b[3] & 0xf; code != msg.RcodeServerFailure && code != msg.RcodeRefused {
			return b, nil
		}
		last = b
	}
	if last != nil {
		return last, nil
	}
	return nil, errs
}

// exchange asks a server by UDP and, where the reply is cut off, by TCP. The reply's ID is no one's.
func exchange(ctx context.Context, at netip.AddrPort, raw []byte) ([]byte, error) {
	raw = bytes.Clone(raw)
	if _, err := rand.Read(raw[:2]); err != nil {
		return nil, err
	}
	b, err := over(ctx, "udp", at, func(c net.Conn) ([]byte, error) {
		if _, err := c.Write(raw); err != nil {
			return nil, err
		}
		buf := make([]byte, maxReply)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return nil, err
			}
			if replies(buf[:n], raw) {
				if n == len(buf) {
					buf[2] |= 0x02 // there may have been more
				}
				return buf[:n], nil
			}
		}
	})
	if err != nil || b[2]&0x02 == 0 {
		return b, err
	}
	whole, err := over(ctx, "tcp", at, func(c net.Conn) ([]byte, error) {
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...)); err != nil {
			return nil, err
		}
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return nil, err
		}
		b := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			return nil, err
		}
		if !replies(b, raw) {
			return nil, errors.New("the reply is to another question")
		}
		return b, nil
	})
	if err != nil {
		return b, nil // a part is better than nothing
	}
	return whole, nil
}

func over(ctx context.Context, network string, at netip.AddrPort, do func(net.Conn) ([]byte, error)) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, network, at.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	return do(c)
}

// replies says whether b is a reply to the question in raw: of its ID, and to the same question.
func replies(b, raw []byte) bool {
	if len(b) < header || b[2]&0x80 == 0 || !bytes.Equal(b[:2], raw[:2]) {
		return false
	}
	end := header
	for end < len(raw) && raw[end] != 0 { // the name of a question that was read is not compressed
		end += int(raw[end]) + 1
	}
	end += 1 + 4 // the root, type and class
	return end <= len(raw) && end <= len(b) && bytes.EqualFold(b[header:end], raw[header:end])
}
