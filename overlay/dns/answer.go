// Package dns answers workloads' questions for names (RFC 1034, 1035, 2782, 6891): what is heddle's
// from a table of names, all else by asking the host's own servers.
//
// It is given its sockets, and knows of no namespace.
package dns

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"strings"

	msg "github.com/miekg/dns"

	"github.com/heddle-net/heddle/overlay/names"
)

const (
	ttl    = 2 // seconds for which an answer may be kept
	ttlNot = 1 // seconds for which it may be kept that there is none

	header  = 12   // bytes of a message's header
	udpSize = 1232 // bytes of the longest UDP answer: what fits into a packet of IPv6's least MTU
	maxTCP  = 1<<16 - 1
)

// outcome is what becomes of a question.
type outcome int

const (
	drop    outcome = iota // it is no question: nobody hears of it
	replied                // there is a reply
	forward                // somebody else knows
)

// query is a question that was read.
type query struct {
	msg.Msg
	size int // bytes of the longest reply
}

// answer replies to a question of a workload, or says what else becomes of it. limit is the size of
// the longest reply where the question names none: 512 by UDP (RFC 1035), and what fits by TCP.
func answer(a *names.Asker, raw []byte, udp bool) (reply []byte, q *query, what outcome) {
	if len(raw) < header || raw[2]&0x80 != 0 {
		return nil, nil, drop
	}
	q = &query{size: maxTCP}
	if udp {
		q.size = msg.MinMsgSize
	}
	if !q.read(raw) {
		q.Id, q.Opcode, q.Question, q.Extra = binary.BigEndian.Uint16(raw), int(raw[2]>>3&0xf), nil, nil
		return q.refuse(msg.RcodeFormatError), q, replied
	}
	if opt := q.IsEdns0(); opt != nil && udp {
		q.size = min(max(int(opt.UDPSize()), msg.MinMsgSize), udpSize)
	}
	r, what := q.resolve(a)
	if what != replied {
		return nil, q, what
	}
	return q.pack(r), q, replied
}

// read reads a question. What claims to hold much is not even looked at.
func (q *query) read(raw []byte) bool {
	count := func(i int) uint16 { return binary.BigEndian.Uint16(raw[4+2*i:]) }
	if raw[2]>>3&0xf != msg.OpcodeQuery {
		q.Id, q.Opcode = binary.BigEndian.Uint16(raw), int(raw[2]>>3&0xf)
		return true
	}
	if count(0) != 1 || count(1) != 0 || count(2) != 0 || count(3) > 2 {
		return false
	}
	return q.Unpack(raw) == nil && len(q.Question) == 1
}

// refuse is a reply without an answer.
func (q *query) refuse(code int) []byte {
	r := q.reply()
	r.Rcode = code
	return q.pack(r)
}

// reply begins a reply.
func (q *query) reply() *msg.Msg {
	r := &msg.Msg{MsgHdr: msg.MsgHdr{
		Id: q.Id, Response: true, Opcode: q.Opcode, RecursionDesired: q.RecursionDesired, RecursionAvailable: true, CheckingDisabled: q.CheckingDisabled,
	}, Compress: true, Question: q.Question}
	if opt := q.IsEdns0(); opt != nil {
		r.SetEdns0(udpSize, opt.Do())
	}
	return r
}

// pack makes a reply fit.
func (q *query) pack(r *msg.Msg) []byte {
	b, err := r.Pack()
	if err == nil && len(b) > q.size {
		r.Truncate(q.size)
		b, err = r.Pack()
	}
	if err != nil { // of names that others gave
		r.Rcode, r.Answer, r.Ns, r.Extra = msg.RcodeServerFailure, nil, nil, nil
		b, _ = r.Pack()
	}
	return b
}

// resolve makes the reply to a well-formed question.
func (q *query) resolve(a *names.Asker) (*msg.Msg, outcome) {
	r := q.reply()
	r.Rcode = msg.RcodeRefused
	if q.Opcode != msg.OpcodeQuery {
		r.Rcode = msg.RcodeNotImplemented
		return r, replied
	}
	if opt := q.IsEdns0(); opt != nil && opt.Version() != 0 {
		r.Rcode = msg.RcodeBadVers
		return r, replied
	}
	asked := q.Question[0]
	if asked.Qclass != msg.ClassINET && asked.Qclass != msg.ClassANY || asked.Qtype == msg.TypeAXFR || asked.Qtype == msg.TypeIXFR {
		return r, replied
	}
	name := strings.TrimSuffix(strings.ToLower(asked.Name), ".")
	short, below := names.Below(name)
	r.Rcode, r.Authoritative = msg.RcodeSuccess, true
	ours := q.fill(r, a, short)
	switch {
	case ours, short == "" && below:
	case a.Partial() && (below || mayBeOurs(a, name)):
		r.Rcode, r.Authoritative = msg.RcodeServerFailure, false // it is not yet known that there is no such name
		return r, replied
	case !below && a.Host: // it has servers of its own, and may be one
		r.Rcode, r.Authoritative = msg.RcodeRefused, false
		return r, replied
	case !below && !a.Internal():
		return nil, forward
	default: // of a workload that can't get out, too: to refuse makes some wait and ask again
		r.Rcode = msg.RcodeNameError
	}
	if len(r.Answer) == 0 && below {
		r.Ns = append(r.Ns, authority())
	}
	return r, replied
}

// mayBeOurs says whether a name without the domain could be one of heddle's.
func mayBeOurs(a *names.Asker, name string) bool {
	if !strings.Contains(name, ".") {
		return true
	}
	for _, z := range a.Zones() {
		if strings.HasSuffix(name, "."+strings.ToLower(z.Name)) {
			return true
		}
	}
	return false
}

func authority() msg.RR {
	return &msg.SOA{
		Hdr: header4(names.Domain+".", msg.TypeSOA, ttlNot), Ns: names.Domain + ".", Mbox: "hostmaster." + names.Domain + ".",
		Serial: 1, Refresh: 60, Retry: 60, Expire: 60, Minttl: ttlNot,
	}
}

func header4(name string, kind uint16, ttl uint32) msg.RR_Header {
	return msg.RR_Header{Name: name, Rrtype: kind, Class: msg.ClassINET, Ttl: ttl}
}

// fill puts what is known of a name, in lower case and without the domain, into a reply. It says
// whether the name is known at all.
func (q *query) fill(r *msg.Msg, a *names.Asker, name string) (known bool) {
	asked := q.Question[0]
	if ip, ok := reversed(name); ok {
		all, ours := a.Names(ip)
		for _, n := range all {
			if asked.Qtype == msg.TypePTR || asked.Qtype == msg.TypeANY {
				r.Answer = append(r.Answer, &msg.PTR{Hdr: header4(asked.Name, msg.TypePTR, ttl), Ptr: n + "."})
			}
		}
		if ours && len(all) == 0 {
			r.Rcode = msg.RcodeNameError
			if a.Partial() {
				r.Rcode = msg.RcodeServerFailure
			}
		}
		return ours
	}
	if port, proto, service, ok := portOf(name); ok {
		return q.fillPorts(r, a, port, proto, service)
	}
	ips, known := a.Addrs(name)
	r.Answer = appendAddrs(r.Answer, asked.Name, asked.Qtype, ips)
	return known
}

// appendAddrs appends the addresses of a type, in any order.
func appendAddrs(to []msg.RR, name string, kind uint16, ips []netip.Addr) []msg.RR {
	begin := len(to)
	for _, ip := range ips {
		switch {
		case ip.Is4() && (kind == msg.TypeA || kind == msg.TypeANY):
			to = append(to, &msg.A{Hdr: header4(name, msg.TypeA, ttl), A: ip.AsSlice()})
		case ip.Is6() && (kind == msg.TypeAAAA || kind == msg.TypeANY):
			to = append(to, &msg.AAAA{Hdr: header4(name, msg.TypeAAAA, ttl), AAAA: ip.AsSlice()})
		}
	}
	shuffle(to[begin:])
	return to
}

func shuffle(all []msg.RR) {
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
}

// fillPorts answers for a named port of a service, with the addresses of where it is.
func (q *query) fillPorts(r *msg.Msg, a *names.Asker, port, proto, service string) (known bool) {
	ports, is := a.Ports(port, proto, service)
	if !is || len(ports) == 0 {
		return false
	}
	if kind := q.Question[0].Qtype; kind != msg.TypeSRV && kind != msg.TypeANY {
		return true
	}
	for _, p := range ports {
		r.Answer = append(r.Answer, &msg.SRV{Hdr: header4(q.Question[0].Name, msg.TypeSRV, ttl), Port: p.Port, Target: p.Target + "."})
		r.Extra = appendAddrs(r.Extra, p.Target+".", msg.TypeANY, p.IPs)
	}
	shuffle(r.Answer)
	return true
}

// portOf takes "_port._proto.service" apart.
func portOf(name string) (port, proto, service string, ok bool) {
	if !strings.HasPrefix(name, "_") {
		return "", "", "", false
	}
	port, rest, _ := strings.Cut(name[1:], ".")
	proto, service, ok = strings.Cut(rest, ".")
	proto, under := strings.CutPrefix(proto, "_")
	return port, proto, service, ok && under
}
