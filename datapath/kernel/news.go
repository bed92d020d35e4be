package kernel

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/datapath/netns"
)

// newsroom collects what notifications say, from all namespaces, until somebody takes it. What
// the same object was before is forgotten, so that it holds one word for each.
type newsroom struct {
	stirred chan struct{} // size 1

	mu   sync.Mutex
	news map[any]datapath.News
	lost bool

	overruns atomic.Uint64
}

func newNewsroom() *newsroom {
	return &newsroom{stirred: make(chan struct{}, 1), news: map[any]datapath.News{}}
}

func (r *newsroom) add(news []datapath.News, lost bool) {
	if len(news) == 0 && !lost {
		return
	}
	r.mu.Lock()
	for _, n := range news {
		r.news[n.Key()] = n
	}
	r.lost = r.lost || lost
	r.mu.Unlock()
	if lost {
		r.overruns.Add(1)
	}
	select {
	case r.stirred <- struct{}{}:
	default:
	}
}

// Stirred signals that TakeNews has something. Any goroutine may call it.
func (k *Kernel) Stirred() <-chan struct{} { return k.newsroom.stirred }

// TakeNews is what notifications said since the last call. With lost some are missing. Any
// goroutine may call it.
func (k *Kernel) TakeNews() (news []datapath.News, lost bool) {
	r := k.newsroom
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.news {
		news = append(news, n)
	}
	lost = r.lost
	r.news, r.lost = map[any]datapath.News{}, false // a burst's map would stay as large as it was
	return news, lost
}

const (
	newsBuffer   = 32 << 20 // bytes that the kernel may keep for a reader that is behind: 40,000 notifications
	newsDatagram = 16 << 10 // of one message, or several of a transaction; the kernel makes them of a page or two
)

// groups are the notifications that are read in each namespace of heddle's, and in the host's.
var groups = map[int][]int{
	unix.NETLINK_ROUTE: {
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	},
	unix.NETLINK_NETFILTER: {unix.NFNLGRP_NFTABLES},
}

// watcher reads the notifications of one namespace until it is closed.
type watcher struct {
	ns      datapath.NS
	room    *newsroom
	own     *portIDs
	sockets []*os.File
	links   map[int32]link // as last told
	readers sync.WaitGroup
	closed  chan struct{}
	file    *os.File   // the namespace
	command []string   // of processes of WireGuard devices
	mu      sync.Mutex // guards links and looking
	looking bool       // at WireGuard devices
}

// watchIn begins to read the notifications of an open namespace.
func (k *Kernel) watchIn(ns datapath.NS, h *handle) (*watcher, error) {
	w := &watcher{
		ns: ns, room: k.newsroom, own: &k.low.own, links: map[int32]link{},
		closed: make(chan struct{}), file: h.file, command: k.cfg.WireGuard,
	}
	err := netns.Do(h.file, func() error {
		for protocol, list := range groups {
			s, err := listen(protocol, list)
			if err != nil {
				return err
			}
			w.sockets = append(w.sockets, s)
		}
		return nil
	})
	if err == nil { // after the subscription, so that no change is missed
		var links []link
		links, err = h.links()
		for _, l := range links {
			w.links[l.index] = l
		}
	}
	if err != nil {
		w.close()
		return nil, err
	}
	for _, s := range w.sockets {
		w.readers.Go(func() { w.read(s) })
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lookAt()
	return w, nil
}

// listen opens a socket for notifications, in the namespace of the calling thread.
func listen(protocol int, groups []int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("open a socket for notifications: %w", err)
	}
	a := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, g := range groups {
		a.Groups |= 1 << (g - 1)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, newsBuffer) // more are lost without
	if err := unix.Bind(fd, a); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to notifications: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

func (w *watcher) close() {
	close(w.closed)
	for _, s := range w.sockets {
		s.Close()
	}
	w.readers.Wait()
}

// read passes on what a socket tells. When the kernel drops something it says so once, and drops
// all that follows until the socket was read empty: only then it is time to look what is missing.
func (w *watcher) read(s *os.File) {
	raw, err := s.SyscallConn()
	if err != nil {
		return // closed
	}
	buf := make([]byte, newsDatagram)
	for lost := false; ; {
		var n int
		var err error
		closed := raw.Read(func(fd uintptr) (done bool) {
			n, err = unix.Read(int(fd), buf)
			if err == unix.EAGAIN && lost {
				w.room.add(nil, true)
				lost = false
			}
			return err != unix.EAGAIN
		})
		switch {
		case closed != nil:
			return
		case err == unix.ENOBUFS:
			lost = true
		case err == unix.EINTR:
		case err != nil:
			return
		default:
			messages, err := syscall.ParseNetlinkMessage(buf[:n])
			lost = lost || err != nil
			w.tell(messages)
		}
	}
}

func (w *watcher) tell(messages []syscall.NetlinkMessage) {
	var news []datapath.News
	w.mu.Lock()
	for _, m := range messages {
		news = append(news, w.decode(m)...)
	}
	w.mu.Unlock()
	w.room.add(news, false)
}

// decode is what a notification says of heddle's objects, and of what stands among them.
func (w *watcher) decode(m syscall.NetlinkMessage) []datapath.News {
	if t := m.Header.Type; t>>8 == unix.NFNL_SUBSYS_NFTABLES {
		return w.decodeTable(m)
	}
	b := m.Data
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return w.decodeLink(b, m.Header.Type == unix.RTM_DELLINK)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if row, ok := parseAddr(b); ok && w.links[row.index].name != "" {
			a := datapath.Address{NS: w.ns, Link: w.links[row.index].name, Prefix: row.prefix}
			return []datapath.News{datapath.AddressNews{Address: a, Gone: m.Header.Type == unix.RTM_DELADDR}}
		}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if len(b) >= unix.SizeofNdMsg && b[0] == unix.AF_BRIDGE {
			return w.decodeFDB(b, m.Header.Type == unix.RTM_DELNEIGH)
		}
		return w.decodeNeighbor(b, m.Header.Type == unix.RTM_DELNEIGH)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		r, oif, ok := parseRoute(b)
		if r.NS = w.ns; r.Link == "" {
			r.Link = w.links[oif].name
		}
		if ok && r.Link != "" {
			return []datapath.News{datapath.RouteNews{Route: r, Gone: m.Header.Type == unix.RTM_DELROUTE}}
		}
	}
	return nil
}

func (w *watcher) decodeLink(b []byte, gone bool) []datapath.News {
	l := parseLink(b)
	key := datapath.LinkKey{NS: w.ns, Name: l.name}
	switch {
	case len(b) < unix.SizeofIfInfomsg || l.name == "":
		return nil
	case b[0] == unix.AF_BRIDGE: // a bridge tells of its port
		if flags, learning, ok := parsePort(b); ok && !gone {
			return []datapath.News{datapath.PortNews{Link: key, Port: flags, Altered: learning}}
		}
		return nil
	case l.name == "lo" && w.ns == (datapath.NS{}), l.kind == "" && l.name != "lo", fallbackDevices[l.name]:
		return nil
	}
	var news []datapath.News
	if old := w.links[l.index]; old.name != "" && old.name != l.name {
		news = append(news, w.linkNews(old, true))
	}
	if w.links[l.index] = l; gone {
		delete(w.links, l.index)
	}
	if l.kind == string(datapath.WireGuard) {
		w.lookAt()
	}
	return append(news, w.linkNews(l, gone))
}

func (w *watcher) linkNews(l link, gone bool) datapath.News {
	up := l.up && (l.kind != string(datapath.Veth) || l.oper == operUp)
	row := datapath.Link{NS: w.ns, Name: l.name, Owner: l.owner(), Kind: datapath.Kind(l.kind), MAC: l.mac, MTU: l.mtu}
	return datapath.LinkNews{Link: datapath.LinkState{Link: row, Up: up}, Gone: gone}
}

func (w *watcher) decodeNeighbor(b []byte, gone bool) []datapath.News {
	n, index, state, ok := parseNeighbor(b)
	if !ok || w.links[index].name == "" {
		return nil
	}
	n.NS, n.Link = w.ns, w.links[index].name
	return []datapath.News{datapath.NeighborNews{Neighbor: n, Gone: gone || state&unix.NUD_PERMANENT == 0}}
}

func (w *watcher) decodeFDB(b []byte, gone bool) []datapath.News {
	e, ok := parseFDB(b)
	l := w.links[e.index]
	if !ok || l.name == "" || !e.self && !e.static {
		return nil
	}
	if e.self && l.kind != string(datapath.VXLAN) {
		return nil
	}
	f := datapath.FDBEntry{NS: w.ns, Link: l.name, MAC: e.mac}
	if e.self {
		f.VTEP = e.vtep
	}
	return []datapath.News{datapath.FDBNews{FDBEntry: f, Self: e.self, Gone: gone}}
}

// decodeTable tells of changes of heddle's tables that are not heddle's own.
func (w *watcher) decodeTable(m syscall.NetlinkMessage) []datapath.News {
	if m.Header.Type&0xff == unix.NFT_MSG_NEWGEN || len(m.Data) < nfgenmsg || w.own.has(m.Header.Pid) {
		return nil
	}
	for t, v := range attributes(m.Data[nfgenmsg:]) {
		if t == unix.NFTA_TABLE_NAME && strings.HasPrefix(text(v), tableName) { // the first attribute of all kinds
			return []datapath.News{datapath.TableNews{NS: w.ns, Table: text(v)}}
		}
	}
	return nil
}

// portIDs are the netlink addresses of heddle's own sockets to nf_tables: those that stay open,
// and the newest of the others.
type portIDs struct {
	mu   sync.Mutex
	open map[uint32]bool
	ids  [256]uint32
	next int
}

func (p *portIDs) keep(id uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = map[uint32]bool{}
	}
	p.open[id] = true
}

func (p *portIDs) forget(id uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, id)
}

func (p *portIDs) add(id uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ids[p.next%len(p.ids)] = id
	p.next++
}

func (p *portIDs) has(id uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[id] {
		return true
	}
	for _, own := range p.ids {
		if own == id && id != 0 {
			return true
		}
	}
	return false
}

// nameWatch tells of names of namespaces that are taken away.
type nameWatch struct {
	file *os.File
	done chan struct{}
}

// watchNames begins to watch the directory of named namespaces, once.
func (k *Kernel) watchNames() error {
	if k.names != nil {
		return nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch %s: %w", k.cfg.Netns, err)
	}
	if _, err := unix.InotifyAddWatch(fd, string(k.cfg.Netns), unix.IN_DELETE|unix.IN_MOVED_FROM); err != nil {
		unix.Close(fd)
		return fmt.Errorf("watch %s: %w", k.cfg.Netns, err)
	}
	k.names = &nameWatch{os.NewFile(uintptr(fd), "inotify"), make(chan struct{})}
	go func(n *nameWatch) {
		defer close(n.done)
		n.read(k.newsroom)
	}(k.names)
	return nil
}

func (n *nameWatch) close() {
	n.file.Close()
	<-n.done
}

func (n *nameWatch) read(room *newsroom) {
	buf := make([]byte, 16*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		c, err := n.file.Read(buf)
		if err != nil {
			return // closed
		}
		var news []datapath.News
		lost := false
		for b := buf[:c]; len(b) >= unix.SizeofInotifyEvent; {
			length := int(u32(b[12:]))
			lost = lost || u32(b[4:])&unix.IN_Q_OVERFLOW != 0
			if name := text(b[unix.SizeofInotifyEvent:][:length]); name != "" {
				news = append(news, datapath.NamespaceNews{Name: name})
			}
			b = b[unix.SizeofInotifyEvent+length:]
		}
		room.add(news, lost)
	}
}
