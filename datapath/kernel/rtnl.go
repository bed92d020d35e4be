package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// conn is an rtnetlink socket (RFC 3549), and where it is needed one to nf_tables. They stay in
// the namespace of the thread that opened them. One caller at a time.
type conn struct {
	sockets  map[int]*nl.SocketHandle
	requests int // sent so far, dumps among them
	dumps    int
}

// answerTime is how long the kernel may take for a request.
const answerTime = 10 * time.Second

func dial() (*conn, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	_ = s.SetExtAck(true) // better messages, Linux 4.12
	tv := unix.NsecToTimeval(int64(answerTime))
	if err := s.SetReceiveTimeout(&tv); err != nil {
		s.Close()
		return nil, fmt.Errorf("set up netlink socket: %w", err)
	}
	return &conn{sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

func (c *conn) close() {
	for _, s := range c.sockets {
		_ = s.Close()
	}
}

// do sends a request and waits for its acknowledgement.
func (c *conn) do(m *message) error { return c.execute(m, unix.NLM_F_ACK, func([]byte) {}) }

// get sends a request and hands the answer to fn.
func (c *conn) get(m *message, fn func(payload []byte)) error {
	return c.execute(m, unix.NLM_F_ACK, fn)
}

// dump hands every object of a kind to fn; begin is called before the first, again when
// the kernel's table changed meanwhile.
func (c *conn) dump(m *message, begin func(), fn func(payload []byte)) error {
	var err error
	for range 10 {
		c.dumps++
		begin()
		if err = c.execute(m, unix.NLM_F_DUMP, fn); !errors.Is(err, nl.ErrDumpInterrupted) {
			return err
		}
	}
	return fmt.Errorf("ten times: %w", err)
}

func (c *conn) execute(m *message, flags int, fn func([]byte)) error {
	c.requests++
	r := nl.NewNetlinkRequest(int(m.typ), int(m.flags)|flags)
	r.Sockets = c.sockets
	r.AddRawData(m.b)
	protocol := unix.NETLINK_ROUTE
	if sub := m.typ >> 8; sub == unix.NFNL_SUBSYS_NFTABLES || sub == unix.NFNL_SUBSYS_CTNETLINK {
		protocol = unix.NETLINK_NETFILTER
	}
	return r.ExecuteIter(protocol, 0, func(b []byte) bool { fn(b); return true })
}

func align(n int) int { return (n + 3) &^ 3 }

// message is the body of a netlink request under construction.
type message struct {
	typ, flags uint16
	b          []byte
}

// request starts a message. body is the family's header.
func request(typ, flags uint16, body []byte) *message {
	return &message{typ, flags, append(make([]byte, 0, 256), body...)}
}

func (m *message) bytes(typ uint16, v []byte) *message {
	m.b = binary.NativeEndian.AppendUint16(m.b, uint16(4+len(v)))
	m.b = binary.NativeEndian.AppendUint16(m.b, typ)
	m.b = append(m.b, v...)
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
	return m
}

func (m *message) str(typ uint16, v string) *message { return m.bytes(typ, append([]byte(v), 0)) }
func (m *message) u8(typ uint16, v uint8) *message   { return m.bytes(typ, []byte{v}) }
func (m *message) u32(typ uint16, v uint32) *message {
	return m.bytes(typ, binary.NativeEndian.AppendUint32(nil, v))
}

func (m *message) flag(typ uint16, v bool) *message {
	if v {
		return m.u8(typ, 1)
	}
	return m.u8(typ, 0)
}

// nest puts what fn adds inside an attribute.
func (m *message) nest(typ uint16, fn func()) *message {
	start := len(m.b)
	m.b = binary.NativeEndian.AppendUint16(m.b, 0)
	m.b = binary.NativeEndian.AppendUint16(m.b, typ)
	fn()
	binary.NativeEndian.PutUint16(m.b[start:], uint16(len(m.b)-start))
	return m
}

// raw adds a header inside an attribute.
func (m *message) raw(b []byte) { m.b = append(m.b, b...) }

// attributes are the attributes of a payload.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			n := int(binary.NativeEndian.Uint16(b))
			if n < 4 || n > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&0x3fff, b[4:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

func u32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// The headers of rtnetlink's families: struct ifinfomsg, ifaddrmsg, ndmsg.

func ifinfo(index int32, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

func ifaddr(family uint8, bits int, index int32) []byte {
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1] = family, uint8(bits)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	return b
}

func ndmsg(family uint8, index int32, state uint16, flags uint8) []byte {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint16(b[8:], state)
	b[10] = flags
	return b
}
