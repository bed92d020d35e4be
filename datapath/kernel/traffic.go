package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// Traffic is what a balancer has led to the backends of its VIPs. Any goroutine may ask.
func (k *Kernel) Traffic(wanted datapath.Balancer) ([]datapath.Traffic, error) {
	b, err := k.openBalance(wanted.NS)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	type backend struct {
		service string
		addr    netip.Addr
	}
	services, all := map[netip.Addr]string{}, []datapath.Traffic{}
	for _, v := range wanted.VIPs {
		for _, a := range v.Addrs {
			services[a] = v.Service
		}
	}
	for _, f := range families {
		sums := map[backend]uint64{}
		err := b.h.dump(inet(unix.NFT_MSG_GETSETELEM, 0).str(unix.NFTA_SET_ELEM_LIST_SET, f.backends), func() { clear(sums) }, func(m []byte) {
			if len(m) <= nfgenmsg {
				return
			}
			for _, e := range attributes(attribute(m[nfgenmsg:], unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
				front, _, is := slotOf(f, attribute(attribute(e, unix.NFTA_SET_ELEM_KEY), unix.NFTA_DATA_VALUE))
				to, leads := targetOf(f, attribute(attribute(e, unix.NFTA_SET_ELEM_DATA), unix.NFTA_DATA_VALUE))
				if service := services[front.Addr]; is && leads && service != "" {
					sums[backend{service, to.Addr()}] += found(e)
				}
			}
		})
		if errors.Is(err, unix.ENOENT) { // it is not there yet
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("count what services get from %s: %w", wanted.NS, err)
		}
		for b, n := range sums {
			all = append(all, datapath.Traffic{Service: b.service, Backend: b.addr, Flows: n})
		}
	}
	return all, nil
}

// found is how many packets have found an element of a set.
func found(element []byte) uint64 {
	counter := attribute(attribute(element, unix.NFTA_SET_ELEM_EXPR), unix.NFTA_EXPR_DATA)
	if n := attribute(counter, unix.NFTA_COUNTER_PACKETS); len(n) == 8 {
		return binary.BigEndian.Uint64(n)
	}
	return 0
}
