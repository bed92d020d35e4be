//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

const needRoom = 500 << 20 // bytes on the disk that holds the hosts' state

// preflight says in one line each what this machine lacks.
func preflight(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, since it makes namespaces and links; run it as root")
	}
	var lacks []error
	if _, err := exec.LookPath("ip"); err != nil {
		lacks = append(lacks, errors.New("the program ip is missing; apt-get install iproute2"))
	}
	if _, err := cluster.Bin(); err != nil {
		lacks = append(lacks, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/var/tmp", &fs); err == nil && fs.Bavail*uint64(fs.Bsize) < needRoom {
		lacks = append(lacks, fmt.Errorf("/var/tmp has %d MB free and the hosts' state needs %d; set HEDDLE_LAB_DIR to a directory with room", fs.Bavail*uint64(fs.Bsize)>>20, needRoom>>20))
	}
	if len(lacks) == 0 {
		lacks = append(lacks, tryKernel(ctx))
	}
	return errors.Join(lacks...)
}

// tryKernel makes what heddle needs from the kernel on a host that goes away at once.
func tryKernel(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	l, err := lab.New(ctx, "preflight", lab.Config{})
	if err != nil {
		return err
	}
	defer l.Close()
	var lacks []error
	for _, try := range []struct {
		what string
		args []string
	}{
		{"vxlan", []string{"type", "vxlan", "id", "1", "dstport", "4789", "nolearning"}},
		{"bridge", []string{"type", "bridge"}},
		{"veth", []string{"type", "veth", "peer", "name", "try1"}},
	} {
		if err := l.Host(1).Run(ctx, append([]string{"ip", "link", "add", "try0"}, try.args...)...); err != nil {
			lacks = append(lacks, fmt.Errorf("the kernel makes no %s device; load or build its module %s (%w)", try.what, try.what, err))
			continue
		}
		if err := l.Host(1).Run(ctx, "ip", "link", "del", "try0"); err != nil {
			lacks = append(lacks, err)
		}
	}
	if err := lab.InNetNS(l.Host(1).Path("/proc/1/ns/net"), tryNFTables); err != nil {
		lacks = append(lacks, fmt.Errorf("the kernel has no nftables; load or build its module nf_tables (%w)", err))
	}
	return errors.Join(lacks...)
}

// tryNFTables asks nf_tables for its generation, which loads the module.
func tryNFTables() error {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	const getGen = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
	msg := make([]byte, 20) // struct nlmsghdr and struct nfgenmsg (RFC 3549)
	binary.NativeEndian.PutUint32(msg[0:], uint32(len(msg)))
	binary.NativeEndian.PutUint16(msg[4:], getGen)
	binary.NativeEndian.PutUint16(msg[6:], unix.NLM_F_REQUEST)
	if err := unix.Sendto(s, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	_ = unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2})
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s, buf, 0)
	if err != nil {
		return err
	}
	if n >= 20 && binary.NativeEndian.Uint16(buf[4:]) == unix.NLMSG_ERROR {
		return unix.Errno(-int32(binary.NativeEndian.Uint32(buf[16:])))
	}
	return nil
}
