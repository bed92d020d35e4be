package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath/netns"
)

// Locks and balancers are written and read, and flows ended, on a socket that a namespace's handle keeps. The nf_tables library
// can't keep one for each of many namespaces (see low), asks for an answer to each rule, and takes
// all expressions of all rules apart to read one comment.

// nft opens the handle's socket to nf_tables. What is done by it is no news to those who ask own.
func (h *handle) nft(own *portIDs) error {
	if h.sockets[unix.NETLINK_NETFILTER] != nil {
		return nil
	}
	return netns.Do(h.file, func() error {
		s, err := nl.Subscribe(unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("open nf_tables: %w", err)
		}
		tv := unix.NsecToTimeval(int64(answerTime))
		if err := s.SetReceiveTimeout(&tv); err != nil {
			s.Close()
			return fmt.Errorf("set up nf_tables: %w", err)
		}
		pid, err := s.GetPid()
		if err != nil {
			s.Close()
			return fmt.Errorf("set up nf_tables: %w", err)
		}
		own.keep(pid)
		h.forget = func() { own.forget(pid) }
		h.sockets[unix.NETLINK_NETFILTER] = &nl.SocketHandle{Socket: s}
		return nil
	})
}

func nfgen(family uint8, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
}

// netdev starts a message to nf_tables about the family that sees what enters a device.
func netdev(typ, flags uint16) *message {
	return request(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, nfgen(unix.NFPROTO_NETDEV, 0))
}

func (m *message) be32(typ uint16, v uint32) *message {
	return m.bytes(typ, binary.BigEndian.AppendUint32(nil, v))
}

// rule adds what a rule does, and its comment.
func (m *message) rule(family byte, exprs []expr.Any, comment string) (err error) {
	m.nest(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, func() {
		for _, e := range exprs {
			b, merr := expr.Marshal(family, e)
			if merr != nil {
				err = merr
			}
			m.bytes(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, b)
		}
	})
	m.bytes(unix.NFTA_RULE_USERDATA, userdata.AppendString(nil, userdata.TypeComment, comment))
	return err
}

// transact has nf_tables do all of the messages or none.
func (h *handle) transact(messages ...*message) error { return h.transactAt(0, messages...) }

// transactAt does none where the namespace's rules are not of the generation, unless that is 0.
func (h *handle) transactAt(generation uint32, messages ...*message) error {
	var b []byte
	put := func(typ, flags uint16, body []byte) {
		b = (&message{typ: typ, b: body}).appendTo(b, flags|unix.NLM_F_REQUEST, 0)
	}
	begin := &message{b: nfgen(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)}
	if generation != 0 {
		begin.be32(unix.NFNL_BATCH_GENID, generation)
	}
	put(unix.NFNL_MSG_BATCH_BEGIN, 0, begin.b)
	for i, m := range messages {
		flags := m.flags
		if i == len(messages)-1 {
			flags |= unix.NLM_F_ACK
		}
		put(m.typ, flags, m.b)
	}
	put(unix.NFNL_MSG_BATCH_END, 0, nfgen(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
	fd := h.sockets[unix.NETLINK_NETFILTER].Socket.GetFd()
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to nf_tables: %w", err)
	}
	return outcome(fd)
}

// outcome is what the kernel says to a transaction: it has said all when the sending returns.
func outcome(fd int) (err error) {
	buf, said := make([]byte, 1<<16), false
	for {
		n, _, rerr := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if errors.Is(rerr, unix.EAGAIN) {
			break
		}
		if rerr != nil {
			return fmt.Errorf("nf_tables: %w", rerr)
		}
		list, rerr := syscall.ParseNetlinkMessage(buf[:n])
		if rerr != nil {
			return fmt.Errorf("nf_tables: %w", rerr)
		}
		for _, m := range list {
			if m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4 {
				said = true
				if errno := int32(u32(m.Data)); errno != 0 && err == nil {
					err = unix.Errno(-errno)
				}
			}
		}
	}
	if err == nil && !said {
		err = errors.New("nf_tables did not answer")
	}
	return err
}
