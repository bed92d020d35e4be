package datapath

// News is what a notification says of one object: how it is now, or that it is gone. Of several
// about one object only the last counts.
type News interface {
	// Key tells news of one object from news of others.
	Key() any
	// fits says whether they agree with what is believed.
	fits(*belief) bool
}

// The kinds of news.
type (
	// LinkNews is of a link, near or far end; of Link its key, owner, kind, MAC, MTU and whether
	// it is up are told.
	LinkNews struct {
		Link LinkState
		Gone bool
	}
	// PortNews is of the flags of a bridge's port. Altered says that one is set that heddle always
	// turns off.
	PortNews struct {
		Link    LinkKey
		Port    PortFlags
		Altered bool
	}
	// AddressNews is of an address.
	AddressNews struct {
		Address
		Gone bool
	}
	// NeighborNews is of a permanent neighbour entry, which is gone also when it is not permanent
	// any more.
	NeighborNews struct {
		Neighbor
		Gone bool
	}
	// FDBNews is of one half of a forwarding entry: that in the device (Self), or in the bridge.
	FDBNews struct {
		FDBEntry
		Self bool
		Gone bool
	}
	// RouteNews is of a route that is heddle's.
	RouteNews struct {
		Route
		Gone bool
	}
	// WGNews is of a WireGuard device and its peers, but for their endpoints and owners.
	WGNews struct {
		Link      LinkKey
		WireGuard WireGuardAttr
		Peers     []WGPeer
	}
	// NamespaceNews says that a name of a namespace was taken away, or given to another.
	NamespaceNews struct{ Name string }
	// TableNews says that somebody else changed one of heddle's tables of rules.
	TableNews struct {
		NS    NS
		Table string
	}
)

// Surprising says whether any of the news is not what a state has, so that the kernel must be
// read again. What heddle itself has done is no surprise, nor what others do with links of theirs.
func Surprising(s *State, news []News) bool {
	b := belief{State: s}
	for _, n := range news {
		if !n.fits(&b) {
			return true
		}
	}
	return false
}

// belief is a state with what is looked up in it often.
type belief struct {
	*State
	near map[NS]bool           // namespaces in which all is heddle's
	far  map[LinkKey]LinkState // by far end
}

func (b *belief) index() {
	if b.near != nil {
		return
	}
	b.near, b.far = map[NS]bool{}, map[LinkKey]LinkState{}
	for k, l := range b.Links {
		if k.NS != (NS{}) {
			b.near[k.NS] = true
		}
		if l.Kind == Veth && l.Peer.Name != "" {
			b.far[l.Peer.Key()] = l
		}
	}
}

// whole says whether all in a namespace is heddle's.
func (b *belief) whole(ns NS) bool {
	b.index()
	return b.near[ns]
}

func (n LinkNews) Key() any      { return n.Link.Key() }
func (n PortNews) Key() any      { return struct{ port LinkKey }{n.Link} }
func (n AddressNews) Key() any   { return n.Address.Key() }
func (n NeighborNews) Key() any  { return n.Neighbor.Key() }
func (n RouteNews) Key() any     { return n.Route.Key() }
func (n WGNews) Key() any        { return struct{ wireguard LinkKey }{n.Link} }
func (n NamespaceNews) Key() any { return n }
func (n TableNews) Key() any     { return n }
func (n FDBNews) Key() any {
	return struct {
		FDBKey
		self bool
	}{n.FDBEntry.Key(), n.Self}
}

func (n LinkNews) fits(b *belief) bool {
	key := n.Link.Key()
	if key.Name == "lo" { // carries its namespace's mark
		return n.fitsNamespace(b)
	}
	have, there := b.Links[key]
	if !there {
		b.index()
		near, far := b.far[key]
		if !far {
			return n.Gone || !b.near[key.NS] && n.Link.Owner == ""
		}
		have = LinkState{Link: Link{Kind: Veth, MAC: near.Peer.MAC, MTU: near.Peer.MTU, Owner: near.Peer.Owner}, Up: near.Up}
	}
	l := n.Link
	return !n.Gone && l.Kind == have.Kind && l.MAC == have.MAC && l.MTU == have.MTU && l.Owner == have.Owner && (l.Up || !have.Up)
}

func (n LinkNews) fitsNamespace(b *belief) bool {
	for _, ns := range b.Namespaces {
		if ns.NS() == n.Link.NS {
			return n.Link.Up && n.Link.Owner == ns.Owner
		}
	}
	return true
}

func (n PortNews) fits(b *belief) bool {
	have, there := b.Links[n.Link]
	return !there || have.Master == "" || have.Port == n.Port && !n.Altered
}

func (n AddressNews) fits(b *belief) bool {
	_, there := b.Addresses[n.Address.Key()]
	return there != n.Gone || !there && !b.whole(n.NS)
}

func (n NeighborNews) fits(b *belief) bool {
	have, there := b.Neighbors[n.Neighbor.Key()]
	if n.Gone {
		return !there
	}
	return have.MAC == n.MAC && there || !there && !b.whole(n.NS)
}

func (n FDBNews) fits(b *belief) bool {
	have, there := b.FDB[n.FDBEntry.Key()]
	switch {
	case !there:
		return n.Gone || !b.whole(n.NS)
	case have.VTEP == Damaged:
		return true // is to be set anyhow
	case n.Self:
		return n.Gone != have.VTEP.IsValid() && have.VTEP == n.VTEP
	}
	return !n.Gone
}

func (n RouteNews) fits(b *belief) bool {
	have, there := b.Routes[n.Route.Key()]
	if n.Gone {
		return !there
	}
	return there && have.Via == n.Via
}

func (n WGNews) fits(b *belief) bool {
	have, there := b.Links[n.Link]
	if !there || have.Kind != WireGuard {
		return true // another news tells of that
	}
	peers := 0
	for k := range b.WGPeers {
		if k.NS == n.Link.NS && k.Link == n.Link.Name {
			peers++
		}
	}
	for _, p := range n.Peers {
		if have, there := b.WGPeers[p.ID()]; !there || have.Address != p.Address || have.Keepalive != p.Keepalive {
			return false
		}
	}
	return have.WireGuard == n.WireGuard && peers == len(n.Peers)
}

func (n NamespaceNews) fits(b *belief) bool {
	_, there := b.Namespaces[n.Name]
	return !there
}

func (TableNews) fits(*belief) bool { return false }
