package kernel

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// batchSize is how many requests go out at once: as many refusals, of about 1 KiB each, must fit
// into the socket's buffer of 208 KiB.
const batchSize = 128

// ApplyEntries does operations on forwarding and neighbour entries, no two of them on the same, many
// at once. The Nth error is of the Nth operation, and like one of Apply.
func (k *Kernel) ApplyEntries(ctx context.Context, ops []datapath.Op) []error {
	errs := make([]error, len(ops))
	for done := 0; done < len(ops); {
		done += k.applyBatch(ctx, ops[done:], errs[done:])
	}
	return errs
}

// applyBatch does the first operations that can be done at once, and says how many these are.
// What was refused is done again by itself: who asks to delete what is gone need not know, and the
// others learn why.
func (k *Kernel) applyBatch(ctx context.Context, ops []datapath.Op, errs []error) int {
	var at *handle
	var batch []*message
	for _, op := range ops[:min(batchSize, len(ops))] {
		h, m, err := k.entry(op)
		if err != nil || at != nil && h != at {
			break
		}
		at, batch = h, append(batch, m)
	}
	if len(batch) < 2 || ctx.Err() != nil {
		errs[0] = k.Apply(ctx, ops[0])
		return 1
	}
	refused, err := at.doAll(batch)
	for i := range batch {
		switch {
		case err != nil:
			errs[i] = fmt.Errorf("%s: %w", ops[i], err)
		case refused[i]:
			errs[i] = k.Apply(ctx, ops[i])
		}
	}
	return len(batch)
}

// doAll sends requests in one go, and says which the kernel refused. It works on them in their
// order, and answers those that it refuses and the last.
func (c *conn) doAll(all []*message) (refused []bool, err error) {
	sh := c.sockets[unix.NETLINK_ROUTE]
	first := sh.Seq + 1
	sh.Seq += uint32(len(all))
	var b []byte
	for i, m := range all {
		flags := m.flags | unix.NLM_F_REQUEST
		if i == len(all)-1 {
			flags |= unix.NLM_F_ACK
		}
		b = m.appendTo(b, flags, first+uint32(i))
	}
	c.requests += len(all)
	if err := unix.Sendto(sh.Socket.GetFd(), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send %d requests: %w", len(all), err)
	}
	refused = make([]bool, len(all))
	for {
		answers, from, err := sh.Socket.Receive()
		if err != nil {
			return nil, fmt.Errorf("receive the answers to %d requests: %w", len(all), err)
		}
		for _, a := range answers {
			i := int(a.Header.Seq - first) // of an earlier request that was given up, it is far away
			if from.Pid != nl.PidKernel || a.Header.Type != unix.NLMSG_ERROR || i < 0 || i >= len(all) {
				continue
			}
			refused[i] = u32(a.Data) != 0
			if i == len(all)-1 {
				return refused, nil
			}
		}
	}
}

// appendTo adds a whole message: struct nlmsghdr (netlink(7)) and the body.
func (m *message) appendTo(b []byte, flags uint16, seq uint32) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.SizeofNlMsghdr+len(m.b)))
	b = binary.NativeEndian.AppendUint16(b, m.typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, m.b...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}
