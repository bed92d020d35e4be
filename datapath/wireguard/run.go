package wireguard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

// Run carries the packets of the link that this process was handed, until the link or the socket
// by which it is configured is deleted, or ctx ends.
func Run(ctx context.Context, log *slog.Logger) error {
	ready := os.NewFile(readyFD, "ready")
	defer ready.Close()
	unix.CloseOnExec(tunFD)
	unix.CloseOnExec(readyFD)
	err := carry(ctx, log, ready)
	if err != nil {
		fmt.Fprint(ready, err) // is read only by one who waits for the device
	}
	return err
}

func carry(ctx context.Context, log *slog.Logger, ready *os.File) error {
	link, err := openTunnel()
	if err != nil {
		return err
	}
	name, err := link.Name()
	if err != nil {
		return err
	}
	log = log.With("device", name)
	f, err := ipc.UAPIOpen(name)
	if err != nil {
		return fmt.Errorf("open the socket of %s: %w", name, err)
	}
	l, err := ipc.UAPIListen(name, f)
	if err != nil {
		return fmt.Errorf("listen on the socket of %s: %w", name, err)
	}
	defer l.Close()
	dev := device.NewDevice(link, conn.NewDefaultBind(), &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf:   func(format string, args ...any) { log.Error(fmt.Sprintf(format, args...)) },
	})
	defer dev.Close() // the ports are free before the socket is gone
	if err := dev.Up(); err != nil {
		return fmt.Errorf("set up %s: %w", name, err)
	}
	refused := make(chan error, 1)
	go func() { refused <- serve(l, dev, link) }()
	if _, err := fmt.Fprint(ready, isReady); err != nil {
		return fmt.Errorf("say that %s is ready: %w", name, err)
	}
	ready.Close()
	select {
	case <-ctx.Done():
	case <-dev.Wait():
	case err := <-refused:
		log.Error("the socket is gone", "err", err)
	}
	return nil
}

// serve answers those who configure the device.
func serve(l net.Listener, dev *device.Device, link *tunnel) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			dev.IpcHandle(c)
			link.look()
		}()
	}
}

// tunnel is the link. It is in another namespace than this process.
type tunnel struct {
	tun.Device
	there  int // a socket in its namespace
	mtu    atomic.Uint32
	events chan tun.Event
}

func openTunnel() (*tunnel, error) {
	ns, err := unix.IoctlRetInt(tunFD, unix.SIOCGSKNS)
	if err != nil {
		return nil, datapath.Errorf(datapath.Unsupported, "no link was handed to this process (%w); the daemon starts it where the kernel has no WireGuard", err)
	}
	f := os.NewFile(uintptr(ns), "the namespace of the link")
	defer f.Close()
	t := &tunnel{events: make(chan tun.Event, 1)}
	err = netns.Do(f, func() (err error) {
		t.there, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err == nil {
		t.Device, _, err = tun.CreateUnmonitoredTUNFromFD(tunFD)
	}
	if err != nil {
		return nil, fmt.Errorf("open the link: %w", err)
	}
	return t, nil
}

// MTU is the last one when the link is gone, which Read tells.
func (t *tunnel) MTU() (int, error) {
	err := t.ask()
	if errors.Is(err, unix.ENODEV) {
		err = nil
	}
	return int(t.mtu.Load()), err
}

// ask reads the MTU in the link's namespace.
func (t *tunnel) ask() error {
	name, err := t.Name()
	if err != nil {
		return err
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(t.there, unix.SIOCGIFMTU, request)
	}
	if err != nil {
		return fmt.Errorf("read the MTU of %s: %w", name, err)
	}
	t.mtu.Store(request.Uint32())
	return nil
}

// Events are never of the link's being up or down: the device always works as if it were up, so that
// nothing is to be waited for when it is.
func (t *tunnel) Events() <-chan tun.Event { return t.events }

// look makes the device ask for the MTU.
func (t *tunnel) look() {
	select {
	case t.events <- tun.EventMTUUpdate:
	default:
	}
}

// Read ends in the usual way when the link was deleted.
func (t *tunnel) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := t.Device.Read(bufs, sizes, offset)
	if err != nil && errors.Is(t.ask(), unix.ENODEV) {
		err = os.ErrClosed
	}
	return n, err
}
