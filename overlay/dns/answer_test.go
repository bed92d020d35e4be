package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	msg "github.com/miekg/dns"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
	"github.com/heddle-net/heddle/overlay/names"
	"github.com/heddle-net/heddle/overlay/services"
)

const blue, walled = overlay.NetworkID("b0"), overlay.NetworkID("c0")

func ips(all ...string) (out []netip.Addr) {
	for _, s := range all {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func networkOf(id overlay.NetworkID, name, prefix string, internal bool) names.Network {
	p := netip.MustParsePrefix(prefix)
	return names.Network{Network: overlay.Network{ID: id, NetworkSpec: overlay.NetworkSpec{Name: name, Internal: internal, Subnets: []overlay.Subnet{
		{Prefix: p, Gateway: p.Addr().Next()}, {Prefix: netip.MustParsePrefix("fd00::/64"), Gateway: netip.MustParseAddr("fd00::1")},
	}}}}
}

func own(id string, n overlay.NetworkID, workload string, at ...string) names.Endpoint {
	return names.Endpoint{ID: overlay.EndpointID(id), Network: n, Workload: workload, IPs: ips(at...), Named: true, Namespace: datapath.NS{Path: workload}}
}

// input has a network that leads out and one that does not, with a workload "here" in the first and
// "shut" in the second.
func input() names.Input {
	b, w := networkOf(blue, "blue", "10.1.0.0/24", false), networkOf(walled, "walled", "10.3.0.0/24", true)
	var many []services.Backend
	for i := range 200 {
		many = append(many, services.Backend{Workload: fmt.Sprintf("m%d", i), IPs: ips(fmt.Sprintf("10.1.0.%d", i)), Used: true})
	}
	b.Services = []*services.Service{
		{Service: overlay.Service{ServiceSpec: overlay.ServiceSpec{
			Name: "web", Mode: overlay.ModeVIP, VIPs: ips("10.1.0.200"), Ports: []overlay.ServicePort{{Name: "http", Proto: "tcp", Port: 80, Target: 8080}},
		}}, Backends: []services.Backend{{Workload: "w1", IPs: ips("10.1.0.21"), Used: true}, {Workload: "w2", IPs: ips("10.1.0.22")}}},
		{Service: overlay.Service{ServiceSpec: overlay.ServiceSpec{Name: "many", Mode: overlay.ModeDNSRR}}, Backends: many},
	}
	return names.Input{Self: "a1", Networks: []names.Network{b, w}, Own: []names.Endpoint{
		own("1", blue, "here", "10.1.0.5", "fd00::5"), own("2", blue, "four", "10.1.0.6"), own("3", walled, "shut", "10.3.0.5"),
		{ID: "4", Network: blue, Workload: "host", IPs: ips("10.1.0.7"), Host: true, Named: true},
	}}
}

func askerOf(in names.Input, n overlay.NetworkID, ip string) *names.Asker {
	return (*names.Table)(nil).Next(in).Asker(n, netip.MustParseAddr(ip))
}

// said is a reply in short: its code, what it answers, sorted, and the kinds of what else is in it.
func said(t *testing.T, reply []byte, what outcome) string {
	t.Helper()
	if what != replied {
		return map[outcome]string{drop: "dropped", forward: "forwarded"}[what]
	}
	var m msg.Msg
	if err := m.Unpack(reply); err != nil {
		t.Fatalf("the reply does not unpack: %v in %x", err, reply)
	}
	var out []string
	for _, rr := range m.Answer {
		words := strings.Fields(rr.String()) // name ttl class kind data
		out = append(out, strings.Join(words[3:], " "))
		if rr.Header().Ttl > 5 {
			t.Errorf("%s may be kept for %d s", rr, rr.Header().Ttl)
		}
	}
	slices.Sort(out)
	out = append([]string{msg.RcodeToString[m.Rcode]}, out...)
	for _, rr := range m.Ns {
		out = append(out, "+"+msg.TypeToString[rr.Header().Rrtype])
	}
	for _, rr := range m.Extra {
		out = append(out, "+"+msg.TypeToString[rr.Header().Rrtype])
	}
	if m.Truncated {
		out = append(out, "cut off")
	}
	return strings.Join(out, " ")
}

func TestAnswers(t *testing.T) {
	table := (*names.Table)(nil).Next(input())
	here, shut := table.Asker(blue, netip.MustParseAddr("10.1.0.5")), table.Asker(walled, netip.MustParseAddr("10.3.0.5"))
	host := table.Asker(blue, netip.MustParseAddr("10.1.0.7"))
	late := input()
	late.Networks[0].Partial = true
	for _, tc := range []struct {
		name string
		kind uint16
		by   *names.Asker
		want string
	}{
		{"here.", msg.TypeA, here, "NOERROR A 10.1.0.5"},
		{"HERE.Blue.Heddle.Internal.", msg.TypeAAAA, here, "NOERROR AAAA fd00::5"},
		{"here.heddle.internal.", msg.TypeANY, here, "NOERROR A 10.1.0.5 AAAA fd00::5"},
		{"four.", msg.TypeAAAA, here, "NOERROR"},
		{"four.heddle.internal.", msg.TypeAAAA, here, "NOERROR +SOA"},
		{"four.", msg.TypeMX, here, "NOERROR"},
		{"nobody.heddle.internal.", msg.TypeA, here, "NXDOMAIN +SOA"},
		{"heddle.internal.", msg.TypeSOA, here, "NOERROR +SOA"},
		{"nobody.", msg.TypeA, here, "forwarded"},
		{"example.com.", msg.TypeA, here, "forwarded"},
		{"notheddle.internal.", msg.TypeA, here, "forwarded"},
		{"example.com.", msg.TypeA, shut, "NXDOMAIN"},
		{"example.com.", msg.TypeA, host, "REFUSED"},
		{"here.", msg.TypeA, host, "NOERROR A 10.1.0.5"},
		{"here.heddle.internal.", msg.TypeA, shut, "NXDOMAIN +SOA"},
		{".", msg.TypeNS, here, "forwarded"},
		{"5.0.1.10.in-addr.arpa.", msg.TypePTR, here, "NOERROR PTR here.blue.heddle.internal."},
		{"5.0.1.10.in-addr.arpa.", msg.TypePTR, shut, "NXDOMAIN"},
		{"5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.D.f.ip6.arpa.", msg.TypePTR, here, "NOERROR PTR here.blue.heddle.internal."},
		{"99.0.1.10.in-addr.arpa.", msg.TypePTR, here, "NXDOMAIN"},
		{"5.0.1.10.in-addr.arpa.", msg.TypeA, here, "NOERROR"},
		{"9.9.9.9.in-addr.arpa.", msg.TypePTR, here, "forwarded"},
		{"web.", msg.TypeA, here, "NOERROR A 10.1.0.200"},
		{"tasks.web.", msg.TypeA, here, "NOERROR A 10.1.0.21"},
		{"_http._tcp.web.", msg.TypeSRV, here, "NOERROR SRV 0 0 80 web.blue.heddle.internal. +A"},
		{"_HTTP._TCP.tasks.web.blue.heddle.internal.", msg.TypeSRV, here, "NOERROR SRV 0 0 8080 w1.blue.heddle.internal. +A"},
		{"_http._tcp.web.", msg.TypeA, here, "NOERROR"},
		{"_https._tcp.web.heddle.internal.", msg.TypeSRV, here, "NXDOMAIN +SOA"},
		{"_sip._udp.example.com.", msg.TypeSRV, here, "forwarded"},
		{"here.", msg.TypeAXFR, here, "REFUSED"},
		{"nobody.heddle.internal.", msg.TypeA, askerOf(late, blue, "10.1.0.5"), "SERVFAIL"},
		{"nobody.blue.", msg.TypeA, askerOf(late, blue, "10.1.0.5"), "SERVFAIL"},
		{"nobody.", msg.TypeA, askerOf(late, blue, "10.1.0.5"), "SERVFAIL"},
		{"99.0.1.10.in-addr.arpa.", msg.TypePTR, askerOf(late, blue, "10.1.0.5"), "SERVFAIL"},
		{"four.", msg.TypeA, askerOf(late, blue, "10.1.0.5"), "NOERROR A 10.1.0.6"},
		{"example.com.", msg.TypeA, askerOf(late, blue, "10.1.0.5"), "forwarded"},
	} {
		raw, err := new(msg.Msg).SetQuestion(tc.name, tc.kind).Pack()
		if err != nil {
			t.Fatal(err)
		}
		reply, _, what := answer(tc.by, raw, true)
		if got := said(t, reply, what); got != tc.want {
			t.Errorf("%s %s: %s, want %s", tc.name, msg.TypeToString[tc.kind], got, tc.want)
		}
	}
}

// A reply has the size that the asker can take, and says so where that is not all.
func TestRepliesFit(t *testing.T) {
	here := askerOf(input(), blue, "10.1.0.5")
	for _, tc := range []struct {
		udp  bool
		edns uint16
		most int
		all  bool
	}{{true, 0, 512, false}, {true, 300, 512, false}, {true, 1000, 1000, false}, {true, 65535, udpSize, false}, {false, 0, maxTCP, true}} {
		q := new(msg.Msg).SetQuestion("many.", msg.TypeA)
		if tc.edns > 0 {
			q.SetEdns0(tc.edns, true)
		}
		raw, _ := q.Pack()
		reply, _, what := answer(here, raw, tc.udp)
		var m msg.Msg
		if err := m.Unpack(reply); err != nil || what != replied {
			t.Fatal(err, what)
		}
		if len(reply) > tc.most || len(reply) < tc.most-60 && !tc.all || m.Truncated == tc.all || tc.all && len(m.Answer) != 200 {
			t.Errorf("%+v: %d bytes, %d answers, cut off %v", tc, len(reply), len(m.Answer), m.Truncated)
		}
		if opt := m.IsEdns0(); (opt != nil) != (tc.edns > 0) || opt != nil && !opt.Do() {
			t.Errorf("%+v: EDNS is %v", tc, opt)
		}
	}
}

func TestAddressesAreInAnyOrder(t *testing.T) {
	here := askerOf(input(), blue, "10.1.0.5")
	raw, _ := new(msg.Msg).SetQuestion("many.", msg.TypeA).Pack()
	first := map[string]bool{}
	for range 50 {
		reply, _, _ := answer(here, raw, false)
		var m msg.Msg
		if err := m.Unpack(reply); err != nil {
			t.Fatal(err)
		}
		first[m.Answer[0].String()] = true
	}
	if len(first) < 10 {
		t.Errorf("of 200 addresses %d were first in 50 replies", len(first))
	}
}

func TestMalformedQuestions(t *testing.T) {
	here := askerOf(input(), blue, "10.1.0.5")
	good, _ := new(msg.Msg).SetQuestion("here.", msg.TypeA).Pack()
	change := func(f func(b []byte) []byte) []byte { return f(slices.Clone(good)) }
	edns := new(msg.Msg).SetQuestion("here.", msg.TypeA).SetEdns0(1232, false)
	edns.IsEdns0().SetVersion(1)
	later, _ := edns.Pack()
	chaos := new(msg.Msg).SetQuestion("version.bind.", msg.TypeTXT)
	chaos.Question[0].Qclass = msg.ClassCHAOS
	other, _ := chaos.Pack()
	for what, tc := range map[string]struct {
		raw  []byte
		want string
	}{
		"nothing":               {nil, "dropped"},
		"half a header":         {good[:11], "dropped"},
		"a reply":               {change(func(b []byte) []byte { b[2] |= 0x80; return b }), "dropped"},
		"a header":              {good[:12], "FORMERR"},
		"half a name":           {good[:14], "FORMERR"},
		"a name without an end": {change(func(b []byte) []byte { b[12] = 63; return b }), "FORMERR"},
		"a name in itself":      {change(func(b []byte) []byte { b[12], b[13] = 0xc0, 12; return b }), "FORMERR"},
		"two questions":         {change(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), "FORMERR"},
		"no question":           {change(func(b []byte) []byte { b[5] = 0; return b }), "FORMERR"},
		"an answer":             {change(func(b []byte) []byte { b[7] = 1; return b }), "FORMERR"},
		"much said":             {change(func(b []byte) []byte { b[10], b[11] = 0xff, 0xff; return b }), "FORMERR"},
		"an update":             {change(func(b []byte) []byte { b[2] = msg.OpcodeUpdate << 3; return b }), "NOTIMP"},
		"a later EDNS":          {later, "BADVERS +OPT"},
		"another class":         {other, "REFUSED"},
	} {
		reply, _, out := answer(here, tc.raw, true)
		if got := said(t, reply, out); got != tc.want && !(tc.want == "BADVERS +OPT" && got == "BADSIG +OPT") { // one number has two names
			t.Errorf("%s: %s, want %s", what, got, tc.want)
		}
		if out == replied && (reply[0] != tc.raw[0] || reply[1] != tc.raw[1]) {
			t.Errorf("%s: the reply has another ID", what)
		}
	}
}

// Whatever is asked, the reply is well-formed: it unpacks and is the same when packed again, fits, is
// to the same question, and is no longer than what was asked warrants.
func FuzzAnswer(f *testing.F) {
	table := (*names.Table)(nil).Next(input())
	here := table.Asker(blue, netip.MustParseAddr("10.1.0.5"))
	for _, name := range []string{"here.", "many.", "_http._tcp.web.", "5.0.1.10.in-addr.arpa.", "nobody.heddle.internal.", `a\.b\000c.heddle.internal.`} {
		for _, kind := range []uint16{msg.TypeA, msg.TypeANY, msg.TypeSRV, msg.TypePTR} {
			raw, err := new(msg.Msg).SetQuestion(name, kind).SetEdns0(1232, true).Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw, true)
			f.Add(raw[:len(raw)-3], false)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, udp bool) {
		reply, q, what := answer(here, raw, udp)
		var asked msg.Msg
		wellFormed := asked.Unpack(raw) == nil
		switch what {
		case forward:
			if !wellFormed || len(asked.Question) != 1 {
				t.Fatalf("what is malformed is passed on: %x", raw)
			}
			return
		case drop:
			if wellFormed && !asked.Response {
				t.Fatalf("a question is dropped: %s", &asked)
			}
			return
		}
		var m msg.Msg
		if err := m.Unpack(reply); err != nil {
			t.Fatalf("%x does not unpack: %v", reply, err)
		}
		if len(reply) > q.size || !m.Response || m.Id != uint16(raw[0])<<8|uint16(raw[1]) {
			t.Fatalf("%d bytes of %d: %s", len(reply), q.size, &m)
		}
		if m.Rcode != msg.RcodeFormatError && m.Rcode != msg.RcodeNotImplemented && (!wellFormed || len(m.Question) != 1 || m.Question[0] != asked.Question[0]) {
			t.Fatalf("the reply is to another question: %s\n%s", &asked, &m)
		}
		m.Compress = true
		again, err := m.Pack()
		var n msg.Msg
		if err != nil || n.Unpack(again) != nil || n.String() != m.String() {
			t.Fatalf("packed again it is another: %v\n%s\n%s", err, &m, &n)
		}
	})
}

// What reversed reads is what the library writes.
func FuzzReversed(f *testing.F) {
	f.Add([]byte{10, 1, 0, 5}, "5.0.1.10.in-addr.arpa")
	f.Add(netip.MustParseAddr("fd00::5").AsSlice(), "x.ip6.arpa")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		if ip, ok := netip.AddrFromSlice(b); ok && !ip.Is4In6() {
			arpa, err := msg.ReverseAddr(ip.String())
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := reversed(strings.TrimSuffix(arpa, ".")); !ok || got != ip {
				t.Fatalf("%s is %s, want %s", arpa, got, ip)
			}
		}
		if ip, ok := reversed(name); ok && !ip.Is4In6() {
			if arpa, err := msg.ReverseAddr(ip.String()); err != nil || arpa != name+"." {
				t.Fatalf("%q is %s, which is %q (%v)", name, ip, arpa, err)
			}
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	here := askerOf(input(), blue, "10.1.0.5")
	raw, _ := new(msg.Msg).SetQuestion("here.heddle.internal.", msg.TypeA).SetEdns0(1232, false).Pack()
	b.ReportAllocs()
	for b.Loop() {
		answer(here, raw, true)
	}
}
