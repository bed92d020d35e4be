package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"time"

	"golang.org/x/sys/unix"
)

// conn is an rtnetlink socket (RFC 3549). It stays in the namespace of the thread that
// opened it. One caller at a time.
type conn struct {
	fd  int
	seq uint32
	buf []byte
}

func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1) // better messages, Linux 4.12
	unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	tv := unix.NsecToTimeval(int64(10 * time.Second))
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up netlink socket: %w", err)
	}
	return &conn{fd: fd, buf: make([]byte, 64<<10)}, nil
}

func (c *conn) close() { unix.Close(c.fd) }

// netlinkError is what the kernel answered.
type netlinkError struct {
	errno unix.Errno
	msg   string // the kernel's own words, when it has any
}

func (e *netlinkError) Error() string {
	if e.msg != "" {
		return fmt.Sprintf("%v (%s)", e.errno, e.msg)
	}
	return e.errno.Error()
}
func (e *netlinkError) Unwrap() error { return e.errno }

// do sends a request and waits for its acknowledgement.
func (c *conn) do(m *message) error {
	_, err := c.roundTrip(m, unix.NLM_F_ACK, nil)
	return err
}

// get sends a request and hands the answer to fn.
func (c *conn) get(m *message, fn func(payload []byte)) error {
	_, err := c.roundTrip(m, unix.NLM_F_ACK, fn)
	return err
}

// dump hands every object of a kind to fn; begin is called before the first, again when
// the kernel's table changed meanwhile.
func (c *conn) dump(m *message, begin func(), fn func(payload []byte)) error {
	for range 10 {
		begin()
		interrupted, err := c.roundTrip(m, unix.NLM_F_DUMP, fn)
		if err != nil || !interrupted {
			return err
		}
	}
	return errors.New("dump was interrupted ten times by changes")
}

func (c *conn) roundTrip(m *message, flags uint16, fn func([]byte)) (interrupted bool, err error) {
	c.seq++
	b := m.finish(flags, c.seq)
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, fmt.Errorf("send netlink request: %w", err)
	}
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("receive netlink answer: %w", err)
		}
		for b := c.buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			h := b[:unix.SizeofNlMsghdr]
			size := int(binary.NativeEndian.Uint32(h))
			if size < len(h) || size > len(b) {
				return false, errors.New("truncated netlink answer")
			}
			body := b[len(h):size]
			b = b[min(align(size), len(b)):]
			if binary.NativeEndian.Uint32(h[8:]) != c.seq {
				continue // of a request that was given up
			}
			interrupted = interrupted || binary.NativeEndian.Uint16(h[6:])&unix.NLM_F_DUMP_INTR != 0
			switch binary.NativeEndian.Uint16(h[4:]) {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				return interrupted, answer(h, body)
			default:
				if fn != nil {
					fn(body)
				}
			}
		}
	}
}

// answer reads the end of an exchange: an error number, then the request's header when it
// is an NLMSG_ERROR, then attributes with the kernel's words.
func answer(h, body []byte) error {
	if len(body) < 4 {
		return nil
	}
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	if errno == 0 {
		return nil
	}
	e := &netlinkError{errno: errno}
	const capped, tlvs = 0x100, 0x200 // NLM_F_CAPPED, NLM_F_ACK_TLVS
	if f := binary.NativeEndian.Uint16(h[6:]); f&tlvs != 0 && len(body) >= 4+unix.SizeofNlMsghdr {
		skip := 4 + unix.SizeofNlMsghdr
		if f&capped == 0 {
			skip = 4 + align(int(binary.NativeEndian.Uint32(body[4:])))
		}
		for t, v := range attributes(body[min(skip, len(body)):]) {
			if t == 1 { // NLMSGERR_ATTR_MSG
				e.msg = text(v)
			}
		}
	}
	return e
}

func align(n int) int { return (n + 3) &^ 3 }

// message is a netlink request under construction.
type message struct{ b []byte }

// request starts a message. body is the family's header.
func request(typ, flags uint16, body []byte) *message {
	m := &message{b: make([]byte, unix.SizeofNlMsghdr, 256)}
	binary.NativeEndian.PutUint16(m.b[4:], typ)
	binary.NativeEndian.PutUint16(m.b[6:], unix.NLM_F_REQUEST|flags)
	m.b = append(m.b, body...)
	return m
}

func (m *message) finish(flags uint16, seq uint32) []byte {
	binary.NativeEndian.PutUint32(m.b, uint32(len(m.b)))
	binary.NativeEndian.PutUint16(m.b[6:], binary.NativeEndian.Uint16(m.b[6:])|flags)
	binary.NativeEndian.PutUint32(m.b[8:], seq)
	return m.b
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
