package doctor

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/datapath"
	"github.com/heddle-net/heddle/overlay"
)

// healthy is a node in order, with one peer.
func healthy() Readings {
	at := netip.MustParseAddr
	return Readings{
		Host: Host{
			Features: []Feature{{Name: "VXLAN"}, {Name: "nf_tables"}}, DataDir: "/var/lib/heddle", Free: 10 << 30, Size: 20 << 30,
			Encryption: "kernel", Buffer: 4 << 20, BufferWant: 4 << 20, Links: []string{"hd-b1"},
		},
		Kernel: &Kernel{Objects: 12, Overlays: 1, Neighbors: []Neighbors{{Limit: 1024, There: 5, Coming: 8}, {Six: true, Limit: 1024}}},
		Cluster: &Cluster{
			Follows: "n1", Managers: []string{"n1"}, Revision: 7, Level: overlay.Level, Ports: Ports{5377, 5378, 4789, 5379},
			Link: Link{Name: "eth0", Addr: at("192.0.2.1"), MTU: 1500, Offloads: map[string]Offload{"tx-udp_tnl-segmentation": {On: true}, "tx-udp_tnl-csum-segmentation": {On: true}}},
			Peers: []Peer{{
				Name: "n2", Record: overlay.NodeRecord{MTU: 1500, Control: netip.MustParseAddrPort("192.0.2.2:5377"), Gossip: netip.MustParseAddrPort("192.0.2.2:5378"), DataPath4: at("192.0.2.2")}, Full: 1500, Passed: []int{1400, 1500},
				Way:    Way{Of: "n2", Addr: at("192.0.2.2"), In: "eth0", Back: "eth0"},
				Frames: &Frames{From: "web", To: "db", Echo: true, TCP: true, UDP: true, SummedTCP: true, SummedUDP: true},
			}},
			Uplinks: []Way{{Of: "a network's workloads", Addr: at("169.254.128.1"), In: "hd-b1", Back: "hd-b1"}},
		},
	}
}

func TestHealthy(t *testing.T) {
	for _, f := range Findings(healthy()) {
		if f.Verdict != overlay.Good || f.Mend != "" || f.Found == "" {
			t.Errorf("%+v", f)
		}
	}
	if n := len(Findings(healthy())); n < 20 {
		t.Errorf("%d findings; a check says nothing", n)
	}
}

func ini(path, text string) File { return File{path, text} }

// Each thing that can be wrong, what is said of it, and that nothing else is said but what is given.
func TestFindings(t *testing.T) {
	timeout := "i/o timeout"
	for _, tt := range []struct {
		name    string
		change  func(*Readings)
		verdict overlay.Verdict
		finding string
		found   string
		mend    string
	}{
		{"no daemon", func(r *Readings) { *r = Readings{Host: r.Host, Daemon: "no heddle daemon answers on /s"} }, overlay.Problem, "daemon", "no heddle daemon", "systemctl enable --now heddle"},
		{"a removed node", func(r *Readings) { r.Cluster, r.Removed = nil, "this node was removed" }, overlay.Problem, "daemon", "was removed", "leave --force"},
		{"a kernel without VXLAN", func(r *Readings) { r.Host.Features[0].Err = "load the module vxlan" }, overlay.Problem, "kernel", "VXLAN: load", ""},
		{"no WireGuard at all", func(r *Readings) { r.Host.Encryption, r.Host.Sealing = "", "no TUN" }, overlay.Warning, "encryption", "no encrypted network can be had: no TUN", "modprobe wireguard"},
		{"a full disk", func(r *Readings) { r.Host.Free = 3 << 20 }, overlay.Problem, "disk", "3 MiB", "df"},
		{"a disk that fills up", func(r *Readings) { r.Host.Free = 300 << 20 }, overlay.Warning, "disk", "300 MiB", "df"},
		{"an unread disk", func(r *Readings) { r.Host.Size = 0 }, overlay.Warning, "disk", "can't be read", ""},
		{"no more watches", func(r *Readings) { r.Host.Inotify = "too many open files" }, overlay.Problem, "inotify", "too many", "max_user_instances"},
		{"a small buffer", func(r *Readings) { r.Host.Buffer = 106496 }, overlay.Warning, "netlink buffer", "104 KiB", "net.core.rmem_max=4194304"},
		{"legacy rules", func(r *Readings) { r.Host.Legacy = []string{"ip filter"} }, overlay.Warning, "iptables-legacy", "ip filter", "iptables-legacy-save"},

		{"networkd takes all", func(r *Readings) {
			r.Host.Networkd = Manager{true, []File{ini("/etc/systemd/network/50-all.network", "[Match]\nName=*\n[Network]\nDHCP=yes\n")}}
		}, overlay.Problem, "systemd-networkd", "50-all.network is for", "00-heddle.network"},
		{"networkd takes all but some", func(r *Readings) {
			r.Host.Networkd = Manager{true, []File{ini("/a/1.network", "[Match]\nName=!eth0 lo\nType=ether\n")}}
		}, overlay.Problem, "systemd-networkd", "1.network is for", "00-heddle.network"},
		{"NetworkManager knows nothing of us", func(r *Readings) {
			r.Host.NetMan = Manager{true, []File{ini("/a", "[keyfile]\nunmanaged-devices=interface-name:docker0\n")}}
		}, overlay.Warning, "NetworkManager", "not told", "unmanaged-devices"},
		{"a later file takes it back", func(r *Readings) {
			r.Host.NetMan = Manager{true, []File{ini("/a", "[keyfile]\nunmanaged-devices+=interface-name:hd-*;interface-name:heddle*\n"), ini("/b", "[keyfile]\nunmanaged-devices=none\n")}}
		}, overlay.Warning, "NetworkManager", "not told", "unmanaged-devices"},
		{"a workload's own name for its link", func(r *Readings) {
			r.Host.Links = []string{"lan7"}
			r.Host.NetMan = Manager{true, []File{ini("/a", "[keyfile]\nunmanaged-devices=interface-name:hd-*,interface-name:heddle*\n")}}
		}, overlay.Warning, "NetworkManager", "lan7", "interface-name:lan7"},

		{"drift", func(r *Readings) { r.Kernel.Differences = []datapath.Difference{{Kind: "fdb"}} }, overlay.Warning, "kernel state", "1 objects", ""},
		{"a foreign link in the way", func(r *Readings) {
			r.Kernel.Differences = []datapath.Difference{{Kind: "link", Owner: "e1"}}
			r.Kernel.Errors = map[datapath.Owner]string{"e1": "link eth0 in namespace web is not heddle's; rename it"}
		}, overlay.Problem, "kernel state", "is not heddle's", ""},
		{"an unread kernel", func(r *Readings) { r.Kernel.Err = "read the kernel's state: no" }, overlay.Problem, "kernel state", "read the kernel", ""},
		{"bridged frames are filtered", func(r *Readings) { r.Kernel.Filtered = []string{"heddle-b1 net/bridge/bridge-nf-call-iptables"} }, overlay.Warning, "bridge-nf", "heddle-b1", "ip netns exec heddle-b1 sysctl -w net.bridge.bridge-nf-call-iptables=0"},
		{"a full neighbour table", func(r *Readings) { r.Kernel.Neighbors[0].There = 1000 }, overlay.Problem, "neighbours IPv4", "1000 of at most 1024", "net.ipv4.neigh.default.gc_thresh3=2048"},
		{"a neighbour table that may fill up", func(r *Readings) { r.Kernel.Neighbors[1].Coming = 3000 }, overlay.Warning, "neighbours IPv6", "3000 may come", "net.ipv6.neigh.default.gc_thresh3=8192"},
		{"a wall", func(r *Readings) { r.Kernel.Walls = []string{"the chain `inet f i` drops it; type `nft x`"} }, overlay.Problem, "firewall", "drops it", "nft x"},
		{"unread rules", func(r *Readings) { r.Kernel.WallsErr = "no" }, overlay.Warning, "firewall", "can't be read", ""},

		{"no manager", func(r *Readings) { r.Cluster.Follows = "" }, overlay.Warning, "managers", "none of n1 answers", "start heddle on n1"},
		{"a manager that does not run", func(r *Readings) { r.Cluster.Role = "disk" }, overlay.Problem, "managers", "disk", "restart"},
		{"managers of an older build", func(r *Readings) { r.Cluster.Level, r.Cluster.Behind = 1, []string{"n3"} }, overlay.Warning, "feature level", "waits for n3", "upgrade heddle on n3"},
		{"no address", func(r *Readings) { r.Cluster.Link.Err = "no link has it" }, overlay.Problem, "data-path address", "no link has it", "ip addr add 192.0.2.1"},
		{"two nodes at an address", func(r *Readings) { r.Cluster.Conflicts = []string{"n2 and n3"} }, overlay.Problem, "data-path address", "n2 and n3", ""},
		{"a node is gone", func(r *Readings) {
			p := &r.Cluster.Peers[0]
			p.Control, p.Gossip, p.Packets = timeout, timeout, timeout
		}, overlay.Problem, "peers", "n2 answers at none", "heddle node rm n2"},
		{"no control port", func(r *Readings) { r.Cluster.Peers[0].Control = timeout }, overlay.Problem, "port 5377/tcp", "n2 does not answer", "tcp dport 5377 accept"},
		{"no gossip streams", func(r *Readings) { r.Cluster.Peers[0].Gossip = timeout }, overlay.Problem, "port 5378/tcp", "n2 does not answer", "tcp dport 5378 accept"},
		{"no gossip packets", func(r *Readings) { r.Cluster.Peers[0].Packets = timeout }, overlay.Problem, "port 5378/udp", "n2 does not answer", "udp dport 5378 accept"},
		{"no VXLAN", func(r *Readings) { *r.Cluster.Peers[0].Frames = Frames{From: "web", To: "db"} }, overlay.Problem, "port 4789/udp", "nothing that web sends is answered by db on n2", "udp dport 4789 accept"},
		{"no WireGuard between two", func(r *Readings) { r.Cluster.Peers[0].Sealed = &Frames{From: "web", To: "db"} }, overlay.Problem, "port 5379/udp", "WireGuard does not pass", "udp dport 5379 accept"},
		{"TCP is spoilt", func(r *Readings) { r.Cluster.Peers[0].Frames.TCP = false }, overlay.Problem, "checksums", "TCP does not pass from web to db on n2", "ethtool -K eth0 tx-checksum-ip-generic off"},
		{"all is spoilt but echoes", func(r *Readings) { f := r.Cluster.Peers[0].Frames; f.TCP, f.UDP = false, false }, overlay.Problem, "checksums", "TCP and UDP do", "ethtool"},
		{"a smaller path", func(r *Readings) { r.Cluster.Peers[0].Passed = []int{576, 1400} }, overlay.Problem, "path MTU", "of 1400 bytes reach n2 and come back, those of 1500", "ip link set eth0 mtu 1400"},
		{"no echoes", func(r *Readings) { r.Cluster.Peers[0].Passed = nil }, overlay.Warning, "path MTU", "does not answer to echo requests", "icmp"},
		{"another MTU there", func(r *Readings) { r.Cluster.Peers[0].Record.MTU = 1400 }, overlay.Warning, "link MTU", "1500 here and 1400 on n2", "mtu 1500   # on n2"},
		{"another MTU here", func(r *Readings) { r.Cluster.Peers[0].Record.MTU = 9000 }, overlay.Warning, "link MTU", "1500 here and 9000 on n2", "ip link set eth0 mtu 9000"},
		{"an offload is off", func(r *Readings) { r.Cluster.Link.Offloads["tx-udp_tnl-csum-segmentation"] = Offload{} }, overlay.Warning, "offloads", "off on eth0", "ethtool -K eth0 tx-udp_tnl-csum-segmentation on"},
		{"strict, and answered elsewhere", func(r *Readings) { w := &r.Cluster.Peers[0].Way; w.Strict, w.Back = true, "tun0" }, overlay.Problem, "rp_filter", "n2 (192.0.2.2) by tun0", "net.ipv4.conf.eth0.rp_filter=2"},
		{"an uplink is answered elsewhere", func(r *Readings) { w := &r.Cluster.Uplinks[0]; w.Strict, w.Back = true, "tun0" }, overlay.Problem, "rp_filter", "strict on hd-b1", "net.ipv4.conf.hd-b1.rp_filter=2"},
		{"clocks far apart", func(r *Readings) { r.Cluster.Peers[0].Ahead = -2 * time.Hour }, overlay.Problem, "clock", "2h0m0s apart", "timedatectl"},
		{"clocks somewhat apart", func(r *Readings) { r.Cluster.Peers[0].Ahead = 10 * time.Minute }, overlay.Warning, "clock", "10m0s apart", "timedatectl"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := healthy()
			tt.change(&r)
			bad := slices.DeleteFunc(Findings(r), func(f overlay.Finding) bool { return f.Verdict == overlay.Good })
			if len(bad) != 1 {
				t.Fatalf("%d findings: %+v", len(bad), bad)
			}
			f := bad[0]
			if f.Verdict != tt.verdict || f.Name != tt.finding || !strings.Contains(f.Found, tt.found) || !strings.Contains(f.Mend, tt.mend) || (tt.mend == "") != (f.Mend == "") {
				t.Errorf("got %+v", f)
			}
		})
	}
}

// What looks like a problem and is none.
func TestStillGood(t *testing.T) {
	for name, change := range map[string]func(*Readings){
		"alone":                                   func(r *Readings) { r.Cluster.Peers = nil },
		"in no cluster":                           func(r *Readings) { r.Cluster = nil },
		"wireguard-go":                            func(r *Readings) { r.Host.Encryption = "wireguard-go" },
		"strict, and answered by the same link":   func(r *Readings) { r.Cluster.Peers[0].Way.Strict = true },
		"answered elsewhere, not strict":          func(r *Readings) { r.Cluster.Peers[0].Way.Back = "tun0" },
		"an offload that the device has not":      func(r *Readings) { r.Cluster.Link.Offloads["tx-udp_tnl-segmentation"] = Offload{Fixed: true} },
		"a device that is no device":              func(r *Readings) { r.Cluster.Link.Offloads = nil },
		"no workloads in common":                  func(r *Readings) { r.Cluster.Peers[0].Frames = nil },
		"a workload that answers to TCP alone":    func(r *Readings) { *r.Cluster.Peers[0].Frames = Frames{TCP: true, SummedTCP: true} },
		"a workload that answers to echoes alone": func(r *Readings) { *r.Cluster.Peers[0].Frames = Frames{Echo: true} },
		"an encrypted network":                    func(r *Readings) { p := &r.Cluster.Peers[0]; p.Sealed = p.Frames },
		"notifications were lost":                 func(r *Readings) { r.Kernel.Lost = 3 },
		"networkd with our file": func(r *Readings) {
			r.Host.Networkd = Manager{true, []File{ini("/x/00-heddle.network", "# ours\n[Match]\nName=hd-* heddle*\n\n[Link]\nUnmanaged=yes\n"), ini("/x/50-all.network", "[Match]\nName=*\n")}}
		},
		"networkd with files of others": func(r *Readings) {
			r.Host.Networkd = Manager{true, []File{
				ini("/x/10-eth.network", "[Match]\nName=eth* en*\n"), ini("/x/20-mac.network", "[Match]\nMACAddress=02:00:00:00:00:01\n"),
				ini("/x/80-ve.network", "[Match]\nKind=veth\nName=ve-*\n"), ini("/x/89.network", "[Match]\nType=ether\nKind=!*\n"), ini("/x/90.network", "[Network]\nDHCP=yes\n"),
			}}
		},
		"NetworkManager with our file": func(r *Readings) {
			r.Host.NetMan = Manager{true, []File{ini("/a", "[keyfile]\nunmanaged-devices=interface-name:docker0\n"), ini("/b", "[keyfile]\nunmanaged-devices+=interface-name:hd-*;interface-name:heddle*\n")}}
		},
		"NetworkManager by kind of device": func(r *Readings) {
			r.Host.NetMan = Manager{true, []File{ini("/a", "[device-veth]\nmatch-device=type:veth\nmanaged=0\n")}}
		},
		"NetworkManager with one link": func(r *Readings) {
			r.Host.NetMan = Manager{true, []File{ini("/a", "[main]\n[keyfile]\nunmanaged-devices=*,except:interface-name:eth0\n")}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := healthy()
			change(&r)
			for _, f := range Findings(r) {
				if f.Verdict != overlay.Good || f.Mend != "" {
					t.Errorf("%+v", f)
				}
			}
		})
	}
}

// What deploy/ installs is what is judged as right.
func TestWhatIsInstalled(t *testing.T) {
	r := healthy()
	r.Host.Networkd = Manager{true, []File{installed(t, "systemd/00-heddle.network"), ini("/x/50-all.network", "[Match]\nName=*\n")}}
	r.Host.NetMan = Manager{true, []File{installed(t, "NetworkManager/heddle.conf")}}
	for _, f := range Findings(r) {
		if f.Verdict != overlay.Good {
			t.Errorf("%+v", f)
		}
	}
}

func installed(t *testing.T, name string) File {
	t.Helper()
	b, err := os.ReadFile("../../../../deploy/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return File{name, string(b)}
}
