package kernel

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
)

// Offload is what a device can do by itself.
type Offload struct {
	On    bool
	Fixed bool // it can't be switched
}

// Commands and structures of SIOCETHTOOL (linux/ethtool.h).
const (
	ethtoolStrings    = 0x1b
	ethtoolSetInfo    = 0x37
	ethtoolFeatures   = 0x3a
	ethtoolSet        = 4 // ETH_SS_FEATURES
	ethtoolNameLength = 32
	featureWords      = 4 // available, requested, active, never changed
)

// Offloads are the features of a host's device by the names that ethtool(8) has for them. Any
// goroutine may ask.
func (k *Kernel) Offloads(link string) (out map[string]Offload, err error) {
	err = k.visit(datapath.NS{}, func() error {
		names, err := featureNames(link)
		if err != nil {
			return err
		}
		blocks := (len(names) + 31) / 32
		b := make([]byte, 8+blocks*featureWords*4)
		binary.NativeEndian.PutUint32(b, ethtoolFeatures)
		binary.NativeEndian.PutUint32(b[4:], uint32(blocks))
		if err := ethtool(link, b); err != nil {
			return err
		}
		out = map[string]Offload{}
		for i, name := range names {
			words := b[8+i/32*featureWords*4:]
			has := func(word int) bool { return u32(words[word*4:])&(1<<(i%32)) != 0 }
			out[name] = Offload{On: has(2), Fixed: !has(0) || has(3)}
		}
		return nil
	})
	return out, err
}

func featureNames(link string) ([]string, error) {
	info := make([]byte, 4+4+8+4)
	binary.NativeEndian.PutUint32(info, ethtoolSetInfo)
	binary.NativeEndian.PutUint64(info[8:], 1<<ethtoolSet)
	if err := ethtool(link, info); err != nil {
		return nil, err
	}
	count := int(u32(info[16:]))
	b := make([]byte, 12+count*ethtoolNameLength)
	binary.NativeEndian.PutUint32(b, ethtoolStrings)
	binary.NativeEndian.PutUint32(b[4:], ethtoolSet)
	binary.NativeEndian.PutUint32(b[8:], uint32(count))
	if err := ethtool(link, b); err != nil {
		return nil, err
	}
	names := make([]string, count)
	for i := range names {
		names[i] = text(b[12+i*ethtoolNameLength:][:ethtoolNameLength])
	}
	return names, nil
}

// ethtool does one command on a device of the calling thread's namespace.
func ethtool(link string, command []byte) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket for ethtool: %w", err)
	}
	defer unix.Close(s)
	var req struct { // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:unix.IFNAMSIZ-1], link)
	req.data = unsafe.Pointer(&command[0])
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	runtime.KeepAlive(command)
	if errno != 0 {
		return fmt.Errorf("ask device %s for its offloads: %w", link, errno)
	}
	return nil
}
